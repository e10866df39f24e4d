//! What a feed knows: the order in which bytes are read, and which files are there at the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Extent;
use crate::error::Error;

/// The order of reading, and where everything is in it.
pub(super) struct Order {
    visits: Vec<Vec<Extent>>,
    /// By file and first byte.
    extents: BTreeMap<(usize, u64), Planned>,
    /// Visits that read something large of a file, ascending.
    large: BTreeMap<usize, Vec<usize>>,
}

/// A byte range and when it is read.
pub(super) struct Planned {
    pub(super) start_bytes: u64,
    end_bytes: u64,
    is_small: bool,
    /// Ascending.
    visits: Vec<usize>,
}

/// A file that should come.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) file: usize,
    /// The reader is there already.
    pub(super) is_urgent: bool,
}

impl Order {
    pub(super) fn new(visits: Vec<Vec<Extent>>) -> Self {
        let mut order = Self { visits, extents: BTreeMap::new(), large: BTreeMap::new() };
        for (number, visit) in order.visits.iter().enumerate() {
            for Extent { file, range, is_small } in visit {
                let planned = order.extents.entry((*file, range.start)).or_insert_with(|| Planned {
                    start_bytes: range.start,
                    end_bytes: range.end,
                    is_small: *is_small,
                    visits: Vec::new(),
                });
                planned.visits.push(number);
                let large = order.large.entry(*file).or_default();
                if !is_small && large.last() != Some(&number) {
                    large.push(number);
                }
            }
        }
        order
    }

    /// Every file that is read.
    pub(super) fn files(&self) -> impl Iterator<Item = usize> {
        self.large.keys().copied()
    }

    /// The least room in which every visit can be read.
    pub(super) fn least_room(&self, room_bytes: impl Fn(usize) -> u64) -> u64 {
        let of_visit = |visit: &Vec<Extent>| {
            let files: BTreeSet<usize> =
                visit.iter().filter(|extent| !extent.is_small).map(|extent| extent.file).collect();
            files.into_iter().map(&room_bytes).sum()
        };
        let largest = self.files().map(&room_bytes).max().unwrap_or(0);
        self.visits.iter().map(of_visit).max().unwrap_or(0).max(largest)
    }

    /// The extent that holds `range`.
    pub(super) fn find(&self, file: usize, range: &Range<u64>) -> Option<&Planned> {
        let (_, planned) = self.extents.range((file, 0)..=(file, range.start)).next_back()?;
        (range.end <= planned.end_bytes).then_some(planned)
    }

    /// The first visit from `from` on that reads something large of `file`.
    fn next_large(&self, file: usize, from: usize) -> Option<usize> {
        let visits = self.large.get(&file)?;
        visits.get(visits.partition_point(|&visit| visit < from)).copied()
    }

    fn of_file(&self, file: usize) -> impl Iterator<Item = &Planned> {
        self.extents.range((file, 0)..=(file, u64::MAX)).map(|(_, planned)| planned)
    }
}

impl Planned {
    fn is_read_from(&self, visit: usize) -> bool {
        self.visits.last().is_some_and(|&last| last >= visit)
    }
}

/// What is there.
#[derive(Default)]
pub(super) struct State {
    /// The visit the reader is at.
    position: usize,
    /// From `position` up to here everything is there.
    ready: usize,
    present: BTreeSet<usize>,
    /// Room that each file takes, those on their way included.
    rooms: BTreeMap<usize, u64>,
    pub(super) held_bytes: u64,
    /// Reads under way, by file.
    reading: BTreeMap<usize, usize>,
    /// Small ranges of files that are gone.
    kept: BTreeMap<(usize, u64), Vec<u8>>,
    pub(super) closed: bool,
    pub(super) failure: Option<Error>,
}

impl State {
    /// The reader reads `extent`; says whether it has moved.
    pub(super) fn enter(&mut self, extent: &Planned) -> bool {
        let later = extent.visits.partition_point(|&visit| visit < self.position);
        // None later: it begins again.
        let visit = extent.visits.get(later).or(extent.visits.first()).copied().unwrap_or(0);
        if visit < self.position {
            self.ready = 0;
        }
        std::mem::replace(&mut self.position, visit) != visit
    }

    /// The first file from here on that is not there.
    pub(super) fn wanted(&mut self, order: &Order) -> Option<Wanted> {
        let is_here = |extent: &Extent| {
            self.present.contains(&extent.file) || self.kept.contains_key(&(extent.file, extent.range.start))
        };
        // Files come first that come for something small only: they can go again at once.
        let of_size = |visit: &'_ [Extent], is_small| {
            visit
                .iter()
                .find(|extent| extent.is_small == is_small && !is_here(extent))
                .map(|extent| extent.file)
        };
        let from = self.ready.max(self.position);
        let absent = order.visits.iter().enumerate().skip(from).find_map(|(number, visit)| {
            of_size(visit, true).or_else(|| of_size(visit, false)).map(|file| (number, file))
        });
        self.ready = absent.map_or(order.visits.len(), |(number, _)| number);
        absent.map(|(number, file)| Wanted { file, is_urgent: number == self.position })
    }

    /// A file that nothing later reads, small ranges aside.
    pub(super) fn useless(&self, order: &Order) -> Option<usize> {
        let idle = self.present.iter().copied().filter(|file| !self.reading.contains_key(file));
        idle.into_iter().find(|&file| order.next_large(file, self.position).is_none())
    }

    /// The file whose next use is furthest away.
    pub(super) fn least_wanted(&self, order: &Order) -> Option<usize> {
        let idle = self.present.iter().copied().filter(|file| {
            !self.reading.contains_key(file) && self.rooms.get(file).is_some_and(|&room| room > 0)
        });
        idle.max_by_key(|&file| order.next_large(file, self.position).unwrap_or(usize::MAX))
    }

    /// Room is taken for a file that is going to come.
    pub(super) fn expect(&mut self, file: usize, room: u64) {
        self.rooms.insert(file, room);
        self.held_bytes += room;
    }

    pub(super) fn arrived(&mut self, file: usize) {
        self.present.insert(file);
    }

    /// A file is gone, and so is what was kept of others and is not read any more.
    pub(super) fn gone(&mut self, order: &Order, file: usize) {
        self.present.remove(&file);
        if order.next_large(file, self.position).is_some() {
            self.ready = 0;
        }
        self.held_bytes -= self.rooms.remove(&file).unwrap_or(0);
        let position = self.position;
        self.kept.retain(|at, _| order.extents.get(at).is_some_and(|planned| planned.is_read_from(position)));
    }

    /// Every file that is there.
    pub(super) fn take_present(&mut self) -> BTreeSet<usize> {
        self.rooms.clear();
        self.held_bytes = 0;
        std::mem::take(&mut self.present)
    }

    /// Small ranges of `file` that are still to be read.
    pub(super) fn to_keep(&self, order: &Order, file: usize) -> Vec<Range<u64>> {
        let small = order.of_file(file).filter(|planned| planned.is_small);
        let needed = small.filter(|planned| {
            planned.is_read_from(self.position) && !self.kept.contains_key(&(file, planned.start_bytes))
        });
        needed.map(|planned| planned.start_bytes..planned.end_bytes).collect()
    }

    pub(super) fn keep(&mut self, file: usize, start_bytes: u64, bytes: Vec<u8>) {
        self.kept.insert((file, start_bytes), bytes);
    }

    /// Copies from the kept range that begins at `start_bytes`, if there is one.
    pub(super) fn read_kept(&self, file: usize, start_bytes: u64, offset_bytes: u64, buf: &mut [u8]) -> bool {
        let Some(bytes) = self.kept.get(&(file, start_bytes)) else { return false };
        let skip = (offset_bytes - start_bytes) as usize;
        let Some(from) = bytes.get(skip..skip + buf.len()) else { return false };
        buf.copy_from_slice(from);
        true
    }

    /// Holds on to a file, if it is there, until the same number of calls of [`State::end_reading`].
    pub(super) fn begin_reading(&mut self, file: usize) -> bool {
        let is_there = self.present.contains(&file);
        if is_there {
            *self.reading.entry(file).or_insert(0) += 1;
        }
        is_there
    }

    pub(super) fn end_reading(&mut self, file: usize) {
        if let Some(count) = self.reading.get_mut(&file) {
            *count -= 1;
            if *count == 0 {
                self.reading.remove(&file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file: usize, start: u64, is_small: bool) -> Extent {
        Extent { file, range: start..start + 10, is_small }
    }

    fn arrive(state: &mut State, file: usize) {
        state.expect(file, 100);
        state.arrived(file);
    }

    /// Small ranges at the end of file 1, read before and between the large ones of files 0 and 1.
    fn order() -> Order {
        Order::new(vec![
            vec![extent(1, 90, true)],
            vec![extent(0, 0, false)],
            vec![extent(1, 80, true)],
            vec![extent(0, 10, false), extent(2, 0, true)],
            vec![extent(1, 0, false)],
            vec![extent(1, 90, true)],
        ])
    }

    #[test]
    fn files_come_in_the_order_of_need_and_small_ranges_do_not_hold_them() {
        let order = order();
        assert_eq!(order.least_room(|_| 100), 100);
        let mut state = State::default();
        let next = |state: &mut State| state.wanted(&order).map(|wanted| (wanted.file, wanted.is_urgent));
        assert_eq!(next(&mut state), Some((1, true)));
        arrive(&mut state, 1);
        assert_eq!(next(&mut state), Some((0, false)));
        // The reader waits for file 0, there is room for one: file 1 goes, its small ranges stay.
        assert!(state.enter(order.find(0, &(3..7)).unwrap()));
        assert_eq!(next(&mut state), Some((0, true)));
        assert_eq!(state.useless(&order), None);
        assert_eq!(state.least_wanted(&order), Some(1));
        assert_eq!(state.to_keep(&order, 1), [80..90, 90..100]);
        for start in [80, 90] {
            state.keep(1, start, (start as u8..).take(10).collect());
        }
        state.gone(&order, 1);
        arrive(&mut state, 0);
        assert_eq!(next(&mut state), Some((2, false)));
        assert!(state.enter(order.find(1, &(80..90)).unwrap()));
        let mut buf = [0; 2];
        assert!(state.read_kept(1, 80, 83, &mut buf));
        assert_eq!(buf, [83, 84]);
        assert!(!state.read_kept(0, 80, 83, &mut buf));
        // A file that has nothing but a small range goes as soon as it has come.
        arrive(&mut state, 2);
        assert_eq!(state.useless(&order), Some(2));
        state.enter(order.find(1, &(0..10)).unwrap());
        state.gone(&order, 2);
        assert!(state.read_kept(1, 90, 90, &mut buf) && !state.read_kept(1, 80, 80, &mut buf));
        assert_eq!(state.useless(&order), Some(0));
    }

    #[test]
    fn a_file_that_is_being_read_stays_and_a_second_pass_wants_everything_again() {
        let order = order();
        let mut state = State::default();
        arrive(&mut state, 0);
        assert!(state.begin_reading(0) && !state.begin_reading(1));
        state.enter(order.find(1, &(0..10)).unwrap());
        assert_eq!((state.useless(&order), state.least_wanted(&order)), (None, None));
        state.end_reading(0);
        assert_eq!(state.useless(&order), Some(0));
        assert!(state.enter(order.find(0, &(0..10)).unwrap()));
        assert_eq!(state.useless(&order), None);
    }

    #[test]
    fn only_what_is_in_the_order_is_found() {
        let order = order();
        assert!(order.find(0, &(0..10)).is_some() && order.find(0, &(12..20)).is_some());
        assert!(order.find(0, &(5..15)).is_none() && order.find(3, &(0..1)).is_none());
    }
}
