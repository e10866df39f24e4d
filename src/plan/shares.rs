//! Deals the jobs of a plan out to several machines.
//!
//! Jobs in the order of the bytes they read are cut into as many runs as there are shares. A cut costs what it makes
//! two shares fetch: every file that is read on both sides of it, for weights or for scales. Among all cuts that keep
//! every share within [`TOLERANCE`] of an equal part of the bytes, those that cost least are taken: they lie between
//! files where that is possible, and inside a file where it is not. Which share does a job follows from the plan alone,
//! so every machine comes to the same answer by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Blueprint, Job, output_rows};
use crate::checkpoint::SourceTensor;

/// How far the bytes of a share may be from an equal part, as a fraction of it. (A single job may be larger.)
pub const TOLERANCE: f64 = 0.05;
/// Most shares.
pub const MAX_SHARES: u32 = 65_536;
/// Places tried for a cut inside a file lie this far from each other, as a fraction of a share ...
const GRID: f64 = 0.025;
/// ... and so many of them on either side of the place of an equal cut.
const GRID_STEPS: i32 = 10;
/// How far from the place of an equal cut a cut between files may lie, as a fraction of a share.
const REACH: f64 = 0.5;
/// Places between files that are tried for a cut, at most: those nearest to that of an equal cut.
const MOST_PLACES: usize = 64;

/// What a share has to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ShareTotals {
    /// Its number, from 1.
    pub job: u32,
    /// Source files that it reads, scales included: position in the source.
    pub files: BTreeSet<usize>,
    /// Units of work.
    pub pieces: u64,
    /// Bytes of weights that it reads.
    pub bytes_in: u64,
    /// Bytes of tensors that it writes.
    pub bytes_out: u64,
}

/// Which of `count` shares does each of `jobs`, counted from 0.
pub fn shares(blueprint: &Blueprint, tensors: &[SourceTensor], jobs: &[Job], count: u32) -> Vec<u32> {
    let place = |job: &Job| {
        let weight = &tensors[blueprint.tensors[job.tensor].pieces[job.piece].source];
        (weight.file, weight.offset_bytes, job.source_rows.start)
    };
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&number| (place(&jobs[number]), number));
    let bytes: Vec<u64> = order.iter().map(|&job| source_bytes(blueprint, tensors, &jobs[job])).collect();
    let files: Vec<BTreeSet<usize>> =
        order.iter().map(|&job| files_of(blueprint, tensors, &jobs[job])).collect();
    let cuts = cut(&bytes, &crossings(&files), count as usize);
    let mut share_of = vec![0; jobs.len()];
    for (share, ends) in cuts.windows(2).enumerate() {
        order[ends[0]..ends[1]].iter().for_each(|&job| share_of[job] = share as u32);
    }
    share_of
}

/// What each of `count` shares has to do, if `share_of` says which one does a job.
pub fn share_totals(
    blueprint: &Blueprint,
    tensors: &[SourceTensor],
    jobs: &[Job],
    share_of: &[u32],
    count: u32,
) -> Vec<ShareTotals> {
    let mut totals: Vec<ShareTotals> =
        (1..=count).map(|job| ShareTotals { job, ..ShareTotals::default() }).collect();
    for (job, &share) in jobs.iter().zip(share_of) {
        let of_share = &mut totals[share as usize];
        of_share.pieces += 1;
        of_share.bytes_in += source_bytes(blueprint, tensors, job);
        of_share.files.extend(files_of(blueprint, tensors, job));
        let output = &blueprint.tensors[job.tensor];
        let piece = &output.pieces[job.piece];
        let rows = output_rows(piece, job.source_rows.len(), tensors[piece.source].matrix().1);
        let runs = output.runs(job.first_row..job.first_row + rows);
        of_share.bytes_out += runs.map(|(_, runs)| runs.len_bytes() as u64).sum::<u64>();
    }
    totals
}

/// Bytes of weights that `job` reads.
pub fn source_bytes(blueprint: &Blueprint, tensors: &[SourceTensor], job: &Job) -> u64 {
    let tensor = &tensors[blueprint.tensors[job.tensor].pieces[job.piece].source];
    let rows = tensor.matrix().0.max(1) as u64;
    tensor.len_bytes * job.source_rows.len() as u64 / rows
}

/// Files that `job` reads: of its weight, of scales, and of tensors that it shares a factor with.
pub fn files_of(blueprint: &Blueprint, tensors: &[SourceTensor], job: &Job) -> BTreeSet<usize> {
    let output = &blueprint.tensors[job.tensor];
    let piece = &output.pieces[job.piece];
    let with_scales = |id: usize| [id].into_iter().chain(tensors[id].companions().iter().copied());
    let own = if piece.unscaled { vec![piece.source] } else { with_scales(piece.source).collect() };
    let shared = output.scale_sources.iter().flat_map(|&id| with_scales(id));
    own.into_iter().chain(shared).map(|id| tensors[id].file).collect()
}

/// For each place between units, the first and the last end included, how many files are read on both sides of it.
fn crossings(files: &[BTreeSet<usize>]) -> Vec<u32> {
    let mut ends: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (unit, file) in
        files.iter().enumerate().flat_map(|(unit, files)| files.iter().map(move |f| (unit, *f)))
    {
        ends.entry(file).or_insert((unit, unit)).1 = unit;
    }
    let mut steps = vec![0i64; files.len() + 2];
    for (first, last) in ends.into_values() {
        steps[first + 1] += 1;
        steps[last + 1] -= 1;
    }
    let mut open = 0;
    let running = steps.into_iter().take(files.len() + 1).map(|step| {
        open += step;
        u32::try_from(open).unwrap_or(0)
    });
    running.collect()
}

/// How bad it is to have cut at some place and before; less is better, the first difference counts.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Cost {
    /// By how much the worst share misses [`TOLERANCE`], in bytes.
    beyond_bytes: f64,
    /// Files that are fetched once more.
    crossings: u64,
    /// Squares of the distances from equal cuts, in shares.
    drift: f64,
}

/// A place that was tried for a cut.
struct Tried {
    /// Units before it.
    place: usize,
    cost: Cost,
    /// The best place of the cut before, among those tried for it.
    from: usize,
}

/// Where to cut units of so many `bytes` for `count` shares: for each share where it begins, then the end of the last.
/// `crossings` is what a cut costs at each place.
fn cut(bytes: &[u64], crossings: &[u32], count: usize) -> Vec<usize> {
    // Units without a byte count a little, so that a plan of nothing else is dealt out too.
    let mut before = vec![0.0f64];
    for &len in bytes {
        before.push(before[before.len() - 1] + len.max(1) as f64);
    }
    let share_bytes = (before[bytes.len()] / count as f64).max(f64::MIN_POSITIVE);
    let is_cheap = |place: usize| {
        let (here, left, right) = (crossings[place], crossings[place - 1], crossings[place + 1]);
        here == 0 || here <= left && here <= right && (here < left || here < right)
    };
    let cheap: Vec<usize> = (1..bytes.len()).filter(|&place| is_cheap(place)).collect();
    let mut tried =
        vec![vec![Tried { place: 0, cost: Cost { beyond_bytes: 0.0, crossings: 0, drift: 0.0 }, from: 0 }]];
    for number in 1..=count {
        let places = if number == count {
            vec![bytes.len()]
        } else {
            places_for(number as f64 * share_bytes, share_bytes, &before, &cheap)
        };
        let last = &tried[number - 1];
        let now = places.into_iter().filter_map(|place| {
            let drift = ((before[place] - number as f64 * share_bytes) / share_bytes).powi(2);
            let costs =
                last.iter().enumerate().filter(|(_, from)| from.place <= place).map(|(from, tried)| {
                    let miss = (before[place] - before[tried.place] - share_bytes).abs();
                    let beyond_bytes = (miss - TOLERANCE * share_bytes).max(tried.cost.beyond_bytes).max(0.0);
                    let crossings = tried.cost.crossings + u64::from(crossings[place]);
                    (Cost { beyond_bytes, crossings, drift: tried.cost.drift + drift }, from)
                });
            let best = costs.min_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
            best.map(|(cost, from)| Tried { place, cost, from })
        });
        let now = now.collect();
        tried.push(now);
    }
    let mut cuts = vec![bytes.len()];
    let mut from = tried[count].first().map_or(0, |last| last.from);
    for number in (0..count).rev() {
        let Some(chosen) = tried[number].get(from) else { break };
        cuts.push(chosen.place);
        from = chosen.from;
    }
    cuts.reverse();
    cuts
}

/// Places to try for the cut that would be at `equal` if shares were equal, ascending: cheap ones, and a grid.
fn places_for(equal: f64, share_bytes: f64, before: &[f64], cheap: &[usize]) -> Vec<usize> {
    let distance = |place: &usize| (before[*place] - equal).abs();
    let within = |limit: f64| cheap.partition_point(|&place| before[place] < equal + limit);
    let mut places = cheap[within(-REACH * share_bytes)..within(REACH * share_bytes)].to_vec();
    places.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    places.truncate(MOST_PLACES);
    for step in -GRID_STEPS..=GRID_STEPS {
        let wanted = equal + f64::from(step) * GRID * share_bytes;
        let after = before.partition_point(|&bytes| bytes < wanted).min(before.len() - 1);
        let is_nearer_before = after > 0 && wanted - before[after - 1] <= before[after] - wanted;
        places.push(if is_nearer_before { after - 1 } else { after });
    }
    places.sort_unstable();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Units of a checkpoint: files with jobs of some bytes; a job may read scales of another file.
    fn units(shape: &[(Vec<u32>, Option<usize>)]) -> (Vec<u64>, Vec<BTreeSet<usize>>) {
        let mut bytes = Vec::new();
        let mut files = Vec::new();
        for (file, (jobs, scales)) in shape.iter().enumerate() {
            for (number, &job) in jobs.iter().enumerate() {
                bytes.push(u64::from(job));
                // The last weight of a file has its scale in another one.
                let stray = scales.filter(|_| number + 1 == jobs.len()).map(|at| at % shape.len());
                files.push([file].into_iter().chain(stray).collect());
            }
        }
        (bytes, files)
    }

    fn check(bytes: &[u64], files: &[BTreeSet<usize>], count: usize) -> Vec<usize> {
        let cuts = cut(bytes, &crossings(files), count);
        assert_eq!((cuts.len(), cuts[0], cuts[count]), (count + 1, 0, bytes.len()));
        assert!(cuts.is_sorted(), "{cuts:?}");
        let total: u64 = bytes.iter().map(|&len| len.max(1)).sum();
        let (share, largest) = (total as f64 / count as f64, bytes.iter().copied().max().unwrap_or(0));
        for ends in cuts.windows(2) {
            let len: u64 = bytes[ends[0]..ends[1]].iter().map(|&len| len.max(1)).sum();
            let miss = (len as f64 - share).abs();
            assert!(
                miss <= (TOLERANCE * share).max(largest.max(1) as f64) + 1.0,
                "{cuts:?}: {len} of {share}"
            );
        }
        cuts
    }

    /// Files fetched by all shares together.
    fn fetched(files: &[BTreeSet<usize>], cuts: &[usize]) -> usize {
        let of_share =
            |ends: &[usize]| files[ends[0]..ends[1]].iter().flatten().collect::<BTreeSet<_>>().len();
        cuts.windows(2).map(of_share).sum()
    }

    proptest! {
        #[test]
        fn every_job_is_in_one_share_and_shares_are_balanced(
            shape in prop::collection::vec(
                (prop::collection::vec(0u32..5000, 1..40), prop::option::of(0usize..30)), 1..30),
            count in 1usize..70,
        ) {
            let (bytes, files) = units(&shape);
            check(&bytes, &files, count);
        }
    }

    #[test]
    fn cuts_lie_between_files_where_that_keeps_the_balance() {
        // 48 files of 100 small jobs each: 16 shares of three files.
        let (bytes, files) = units(&vec![(vec![10; 100], None); 48]);
        for count in [1, 2, 3, 4, 6, 8, 12, 16, 24, 48] {
            assert_eq!(fetched(&files, &check(&bytes, &files, count)), 48, "{count}");
        }
        // Files that differ a little: still none is fetched twice.
        let shape: Vec<_> = (0..48).map(|file| (vec![10 + file % 2; 100], None)).collect();
        let (bytes, files) = units(&shape);
        assert_eq!(fetched(&files, &check(&bytes, &files, 16)), 48);
    }

    #[test]
    fn a_checkpoint_of_163_files_is_cut_through_few_of_them() {
        let (bytes, files) = units(&vec![(vec![33; 130], None); 163]);
        // Ten whole files are 2 % less than an equal part, eleven 8 % more; no fewer than three files are torn.
        assert_eq!(fetched(&files, &check(&bytes, &files, 16)) - 163, 3);
        // More shares than files: every cut but a few is inside a file.
        let cuts = check(&bytes, &files, 326);
        assert_eq!(fetched(&files, &cuts), 326);
    }

    #[test]
    fn a_weight_and_its_scale_in_the_next_file_stay_together_where_they_can() {
        // Every second file has its last scale in the file after it: the clean places are those after pairs.
        let shape: Vec<_> = (0..32).map(|file| (vec![10; 50], (file % 2 == 0).then_some(file + 1))).collect();
        let (bytes, files) = units(&shape);
        assert_eq!(fetched(&files, &check(&bytes, &files, 8)), 32);
        assert_eq!(fetched(&files, &check(&bytes, &files, 16)), 32);
    }

    #[test]
    fn more_shares_than_jobs_leave_some_without_work() {
        let (bytes, files) = units(&[(vec![7, 7, 7], None)]);
        let cuts = check(&bytes, &files, 5);
        assert_eq!(cuts.windows(2).filter(|ends| ends[0] == ends[1]).count(), 2, "{cuts:?}");
        assert_eq!(check(&[], &[], 3), [0, 0, 0, 0]);
    }
}
