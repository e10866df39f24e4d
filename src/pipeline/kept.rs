//! What an unfinished run has left is compared with its journal before anything goes on from it.
//!
//! A power cut, a bad disk or another program may have changed bytes since they were recorded. A job whose bytes
//! are not those that it wrote is done again. (Bytes that belong to no job follow from the plan: `staging` writes
//! them anew.)

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Progress;
use super::execute::Written;
use super::journal::Done;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::plan::Blueprint;

/// Bytes read at a time, at most.
const CHUNK_BYTES: usize = 1 << 20;

/// Files of an unfinished run, and what its journal says about them.
pub(super) struct Kept<'a> {
    pub(super) blueprint: &'a Blueprint,
    /// What each job writes.
    pub(super) written: &'a [Written],
    pub(super) files: &'a [DiskFile],
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
}

impl Kept<'_> {
    /// Takes jobs out of `done` whose bytes are not what they were, and says how many; calls `sound` with each of the
    /// others.
    ///
    /// # Errors
    /// When a file cannot be read or written, and [`Error::Interrupted`] once `stop` is set.
    pub(super) fn check(
        &self,
        done: &mut [Option<Done>],
        threads: usize,
        sound: &(dyn Fn(usize) + Sync),
    ) -> Result<usize> {
        let recorded: Vec<Done> = done.iter().flatten().copied().collect();
        if recorded.is_empty() {
            return Ok(0);
        }
        let job_bytes = |job: usize| self.written[job].len_bytes(self.blueprint);
        let total = recorded.iter().map(|done| job_bytes(done.job)).sum();
        self.progress.stage("check", total);
        let (next, damaged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let walk = || -> Result<()> {
            let mut buffer = Vec::new();
            while let Some(record) = recorded.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                if self.fingerprint(record.job, &mut buffer)? == record.wrote {
                    sound(record.job);
                } else {
                    damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record.job);
                }
                self.progress.advance(job_bytes(record.job));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.min(recorded.len())).map(|_| scope.spawn(walk)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let damaged = damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        damaged.iter().for_each(|&job| done[job] = None);
        Ok(damaged.len())
    }

    /// Of the bytes that are now where `job` wrote, in the order in which it did.
    fn fingerprint(&self, job: usize, buffer: &mut Vec<u8>) -> Result<u128> {
        let mut found = Fingerprint::new();
        for (placement, runs) in self.written[job].runs(self.blueprint) {
            let staged = &self.files[placement.file];
            for (offset, range) in runs.pieces() {
                let (mut offset, end) = (offset, offset + range.len() as u64);
                while offset < end {
                    buffer.resize(CHUNK_BYTES.min((end - offset) as usize), 0);
                    staged.read_exact_at(buffer, placement.offset_bytes + offset)?;
                    found.update(buffer);
                    offset += buffer.len() as u64;
                }
            }
        }
        Ok(found.finish())
    }
}
