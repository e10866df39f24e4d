//! Brings the files of a streamed source, in the order of the schedule, while jobs run.
//!
//! A file is brought when there is room for it; its jobs are handed to the workers when its digest
//! has matched; it is released when the last of them is recorded in the journal.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::queue::Queue;
use super::{Progress, Transfer};
use crate::error::{Error, Result};
use crate::plan::Schedule;
use crate::source::{Source, Supply};

/// How long a wait for room sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// The files of a run that come and go.
pub(super) struct Intake<'a> {
    source: &'a dyn Source,
    supply: &'a dyn Supply,
    schedule: &'a Schedule,
    state: Mutex<State>,
    released: Condvar,
}

struct State {
    /// Bytes of files that are there or on their way.
    held_bytes: u64,
    /// Jobs not yet recorded, by the file of their weight.
    left: BTreeMap<usize, usize>,
}

impl<'a> Intake<'a> {
    /// Nothing is brought yet.
    pub(super) fn new(source: &'a dyn Source, supply: &'a dyn Supply, schedule: &'a Schedule) -> Self {
        let mut left = BTreeMap::new();
        for &(file, _) in schedule.needs.values() {
            *left.entry(file).or_insert(0) += 1;
        }
        let state = Mutex::new(State { held_bytes: 0, left });
        Self { source, supply, schedule, state, released: Condvar::new() }
    }

    /// Brings every file of the schedule and hands its jobs to `queue`.
    pub(super) fn run(&self, queue: &Queue, halt: &AtomicBool, progress: &dyn Progress) -> Result<()> {
        let total_bytes = self.schedule.steps.iter().map(|step| self.supply.room_bytes(step.file)).sum();
        let mut kept = vec![false; self.source.files().len()];
        for (number, step) in self.schedule.steps.iter().enumerate() {
            let file = step.file;
            let room = self.supply.room_bytes(file);
            let held_bytes = self.wait_for_room(room, halt)?;
            let report = |bytes| {
                progress.transfer(&Transfer {
                    name: &self.source.files()[file].name,
                    number: number + 1,
                    files: self.schedule.steps.len(),
                    // Files of a cache are read, not transferred.
                    bytes: if room == 0 { 0 } else { bytes },
                    total_bytes,
                    held_bytes,
                });
            };
            report(0);
            self.supply.bring(file, halt, &report)?;
            if !std::mem::replace(&mut kept[file], true) {
                self.keep(file)?;
            }
            let is_its_own = |job: usize| self.schedule.needs.get(&job).is_some_and(|need| need.0 == file);
            // Asked before the workers have its jobs: the last of them releases it, maybe at once.
            let is_awaited = self.lock().left.contains_key(&file);
            queue.scales_arrived(file, is_its_own);
            if !step.scales_only {
                queue.weights_arrived(file, is_its_own);
            }
            if step.scales_only || !is_awaited {
                self.release(file, room)?;
            }
        }
        Ok(())
    }

    fn keep(&self, file: usize) -> Result<()> {
        let ranges: &[Range<u64>] = self.schedule.keep.get(&file).map_or(&[], Vec::as_slice);
        ranges.iter().try_for_each(|range| self.supply.keep(file, range.clone()))
    }

    /// The job's bytes are on the disk and in the journal.
    pub(super) fn recorded(&self, job: usize) -> Result<()> {
        let Some(&(file, _)) = self.schedule.needs.get(&job) else { return Ok(()) };
        let is_last = {
            let mut state = self.lock();
            let left = state.left.get_mut(&file).map_or(0, |left| {
                *left -= 1;
                *left
            });
            if left == 0 {
                state.left.remove(&file);
            }
            left == 0
        };
        if is_last { self.release(file, self.supply.room_bytes(file)) } else { Ok(()) }
    }

    fn release(&self, file: usize, room: u64) -> Result<()> {
        self.supply.release(file)?;
        self.lock().held_bytes -= room;
        self.released.notify_all();
        Ok(())
    }

    /// Waits until `room` more bytes fit and takes them; returns what is held then.
    fn wait_for_room(&self, room: u64, halt: &AtomicBool) -> Result<u64> {
        let mut state = self.lock();
        while state.held_bytes > 0 && state.held_bytes + room > self.supply.limit_bytes() {
            if halt.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            state = self.released.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.held_bytes += room;
        Ok(state.held_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::plan::Step;
    use crate::source::SourceFile;

    const FILES: usize = 20_000;
    const FILE_BYTES: u64 = 7;

    struct Silent;

    impl Progress for Silent {
        fn stage(&self, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
    }

    /// Files that are there as soon as they are asked for; counts how often each is released.
    struct AtOnce {
        files: Vec<SourceFile>,
        released: Vec<AtomicUsize>,
    }

    impl Source for AtOnce {
        fn location(&self) -> String {
            "test".into()
        }

        fn files(&self) -> &[SourceFile] {
            &self.files
        }

        fn read_at(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
    }

    impl Supply for AtOnce {
        fn limit_bytes(&self) -> u64 {
            3 * FILE_BYTES
        }

        fn room_bytes(&self, _: usize) -> u64 {
            FILE_BYTES
        }

        fn is_owed(&self, _: usize) -> bool {
            false
        }

        fn bring(&self, _: usize, _: &AtomicBool, _: &(dyn Fn(u64) + Sync)) -> Result<()> {
            Ok(())
        }

        fn is_kept(&self, _: usize, _: &Range<u64>) -> bool {
            false
        }

        fn keep(&self, _: usize, _: Range<u64>) -> Result<()> {
            Ok(())
        }

        fn release(&self, file: usize) -> Result<()> {
            match self.released[file].fetch_add(1, Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(Error::Interrupted),
            }
        }

        fn finish(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_is_released_once_however_fast_its_jobs_are() {
        let file = |number| SourceFile {
            name: format!("{number}"),
            len_bytes: FILE_BYTES,
            sha256: None,
            modified: None,
        };
        let source = AtOnce {
            files: (0..FILES).map(file).collect(),
            released: (0..FILES).map(|_| AtomicUsize::new(0)).collect(),
        };
        // Every third file has no job left.
        let jobs = (0..FILES).filter(|file| file % 3 > 0);
        let schedule = Schedule {
            steps: (0..FILES).map(|file| Step { file, scales_only: false }).collect(),
            needs: jobs.map(|file| (file, (file, Vec::new()))).collect(),
            ..Schedule::default()
        };
        let intake = Intake::new(&source, &source, &schedule);
        let queue = Queue::new(Vec::new(), &schedule.needs);
        let halt = AtomicBool::new(false);
        let halting = |result: Result<()>| halt.fetch_or(result.is_err(), Ordering::Relaxed);
        std::thread::scope(|scope| {
            let worker = || {
                while let Some(job) = queue.next(|| !halt.load(Ordering::Relaxed)) {
                    halting(intake.recorded(job));
                }
            };
            scope.spawn(worker);
            scope.spawn(worker);
            halting(intake.run(&queue, &halt, &Silent));
        });
        for (file, released) in source.released.iter().enumerate() {
            assert_eq!(released.load(Ordering::Relaxed), 1, "file {file}");
        }
        assert_eq!(intake.lock().held_bytes, 0);
    }
}
