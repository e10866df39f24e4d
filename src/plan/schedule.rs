//! The order in which shards are downloaded when the spool holds only a few of them.
//!
//! A job reads rows of one weight and the weight's scale. The scale may be in another shard. Tensors that share a factor
//! on their scales also need each other's largest magnitude. Bytes that a job needs from another shard are kept aside when
//! that shard is downloaded. They are few: scales are small, and tensors that share a factor are rarely in different shards.
//!
//! What remains is the order. Shards come in ascending order while all that wait for a later shard's scales fit into the
//! spool. Otherwise shards whose scales others need come first. Shards that need each other's scales in a circle are
//! downloaded twice, the first time for their scales only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Blueprint, Job};
use crate::checkpoint::SourceTensor;

/// One download of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// File number in the source.
    pub file: usize,
    /// Only its scales are kept; it is downloaded again for its weights.
    pub scales_only: bool,
}

/// The order of downloads, the bytes that are kept of each shard, and the shards that each job waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Shards in the order of their downloads.
    pub steps: Vec<Step>,
    /// For each shard the byte ranges to keep when it is downloaded: scales of weights in other shards, and weights in it
    /// that share a scale factor with tensors in other shards.
    pub keep: BTreeMap<usize, Vec<Range<u64>>>,
    /// For each job that is still to run: the shard of its weight, and the other shards that it reads scales or weights
    /// with a shared factor from.
    pub needs: BTreeMap<usize, (usize, Vec<usize>)>,
}

impl Schedule {
    /// Downloads those of `files` as well that would not be; they come last, since no job waits for them.
    pub fn bring_too(&mut self, files: impl IntoIterator<Item = usize>) {
        let coming: BTreeSet<usize> = self.steps.iter().map(|step| step.file).collect();
        let more = files.into_iter().filter(|file| !coming.contains(file));
        self.steps.extend(more.map(|file| Step { file, scales_only: false }));
    }
}

/// How many of the ranges added last are searched for a duplicate. A job needs at most its own scale, and weight and scale
/// of a few tensors that share its factor, and jobs of one weight follow each other.
const STRAYS_LOOKED_AT: usize = 16;

/// Byte range of a tensor in its file.
type Stray = (usize, Range<u64>);

/// Orders the downloads for the jobs for which `pending` returns true.
///
/// `room_bytes` returns the spool space of a shard, of which `limit_bytes` are available; `is_kept` returns whether an
/// earlier run has kept a range.
pub fn schedule(
    blueprint: &Blueprint,
    tensors: &[SourceTensor],
    jobs: &[Job],
    pending: impl Fn(usize) -> bool,
    room_bytes: impl Fn(usize) -> u64,
    limit_bytes: u64,
    is_kept: impl Fn(usize, &Range<u64>) -> bool,
) -> Schedule {
    let mut schedule = Schedule::default();
    let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (number, job) in jobs.iter().enumerate().filter(|&(number, _)| pending(number)) {
        let weight = &tensors[blueprint.tensors[job.tensor].pieces[job.piece].source];
        let strays =
            strays(blueprint, job, tensors).into_iter().filter(|(file, range)| !is_kept(*file, range));
        let others = wanted.entry(weight.file).or_default();
        let mut needed = BTreeSet::new();
        for (file, range) in strays {
            others.insert(file);
            needed.insert(file);
            let ranges = schedule.keep.entry(file).or_default();
            // The jobs of one weight share a scale and follow each other.
            if !ranges.iter().rev().take(STRAYS_LOOKED_AT).any(|known| *known == range) {
                ranges.push(range);
            }
        }
        schedule.needs.insert(number, (weight.file, needed.into_iter().collect()));
    }
    // A shard that holds only scales is downloaded too.
    for &file in schedule.keep.keys() {
        wanted.entry(file).or_default();
    }
    let ascending = most_room(&wanted, &room_bytes) <= limit_bytes;
    schedule.steps = if ascending {
        wanted.keys().map(|&file| Step { file, scales_only: false }).collect()
    } else {
        scales_first(wanted)
    };
    schedule
}

/// Byte ranges that `job` reads from shards other than its weight's: scales, and weights that share its scale factor.
fn strays(blueprint: &Blueprint, job: &Job, tensors: &[SourceTensor]) -> Vec<Stray> {
    let output = &blueprint.tensors[job.tensor];
    let piece = &output.pieces[job.piece];
    let own = tensors[piece.source].file;
    let beside = |id: usize| tensors[id].companion_spans(tensors).map(|(stored, span)| (stored.file, span));
    let mut read: Vec<Stray> = if piece.unscaled { Vec::new() } else { beside(piece.source).collect() };
    for &id in &output.scale_sources {
        read.push((tensors[id].file, tensors[id].span()));
        read.extend(beside(id));
    }
    read.retain(|(file, _)| *file != own);
    read
}

/// The most spool space in use at once if shards are downloaded in ascending order and each stays until the scales that
/// it waits for are there.
fn most_room(wanted: &BTreeMap<usize, BTreeSet<usize>>, room_bytes: impl Fn(usize) -> u64) -> u64 {
    let mut waiting: Vec<(usize, u64)> = Vec::new();
    let mut most = 0;
    for (&file, others) in wanted {
        let room = room_bytes(file);
        most = most.max(room + waiting.iter().map(|&(_, room)| room).sum::<u64>());
        waiting.push((others.last().map_or(file, |&last| last.max(file)), room));
        waiting.retain(|&(until, _)| until > file);
    }
    most
}

/// An order in which each shard can be deleted as soon as its own jobs are done.
fn scales_first(mut wanted: BTreeMap<usize, BTreeSet<usize>>) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((&lowest, _)) = wanted.first_key_value() {
        let free = wanted.iter().find(|(_, others)| others.is_empty()).map(|(&file, _)| file);
        let next = free.unwrap_or(lowest);
        for other in wanted.remove(&next).unwrap_or_default() {
            steps.push(Step { file: other, scales_only: true });
            wanted.values_mut().for_each(|others| {
                others.remove(&other);
            });
        }
        steps.push(Step { file: next, scales_only: false });
        wanted.values_mut().for_each(|others| {
            others.remove(&next);
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(usize, &[usize])]) -> BTreeMap<usize, BTreeSet<usize>> {
        list.iter().map(|&(file, others)| (file, others.iter().copied().collect())).collect()
    }

    /// Every file comes, once for its weights, and never before a scale that it needs.
    fn check(wanted: &BTreeMap<usize, BTreeSet<usize>>, steps: &[Step]) {
        let mut come = BTreeSet::new();
        let mut done = BTreeSet::new();
        for step in steps {
            come.insert(step.file);
            if !step.scales_only {
                assert!(wanted[&step.file].is_subset(&come), "{steps:?}");
                assert!(done.insert(step.file), "{steps:?}");
            }
        }
        assert_eq!(done.len(), wanted.len(), "{steps:?}");
    }

    #[test]
    fn a_chain_runs_backwards_without_fetching_twice() {
        let wanted = files(&[(1, &[2]), (2, &[3]), (3, &[])]);
        let steps = scales_first(wanted.clone());
        check(&wanted, &steps);
        assert_eq!(steps.iter().map(|step| step.file).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn a_circle_fetches_as_little_as_possible_twice() {
        let wanted = files(&[(0, &[1]), (1, &[2]), (2, &[0]), (7, &[])]);
        let steps = scales_first(wanted.clone());
        check(&wanted, &steps);
        assert_eq!(steps.len(), 5);
        let all = files(&[(0, &[1, 2]), (1, &[0, 2]), (2, &[0, 1])]);
        check(&all, &scales_first(all.clone()));
    }

    #[test]
    fn waiting_files_take_room() {
        // 1 waits for 2, then both can go; 3 waits for 1, which has been there.
        let wanted = files(&[(1, &[2]), (2, &[]), (3, &[1])]);
        assert_eq!(most_room(&wanted, |_| 10), 20);
        assert_eq!(most_room(&files(&[(1, &[3]), (2, &[3]), (3, &[])]), |_| 10), 30);
        assert_eq!(most_room(&files(&[(1, &[]), (2, &[])]), |_| 10), 10);
    }
}
