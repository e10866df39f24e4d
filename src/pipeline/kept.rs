//! What an unfinished run has left is compared with its journal before anything goes on from it.
//!
//! A power cut, a bad disk or another program may have changed bytes since they were recorded. A job whose bytes
//! are not those that it wrote is done again. (Bytes that belong to no job follow from the plan: `staging` writes
//! them anew.)

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Progress;
use super::execute::written_bands;
use super::journal::Done;
use crate::checkpoint::Catalogue;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::plan::{Blueprint, Job};

/// Bytes read at a time, at most.
const CHUNK_BYTES: usize = 1 << 20;

/// Files of an unfinished run, and what its journal says about them.
pub(super) struct Kept<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) blueprint: &'a Blueprint,
    pub(super) jobs: &'a [Job],
    pub(super) files: &'a [DiskFile],
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
}

impl Kept<'_> {
    /// Takes jobs out of `done` whose bytes are not what they were, and says how many.
    ///
    /// # Errors
    /// When a file cannot be read or written, and [`Error::Interrupted`] once `stop` is set.
    pub(super) fn check(&self, done: &mut [Option<Done>], threads: usize) -> Result<usize> {
        let recorded: Vec<Done> = done.iter().flatten().copied().collect();
        if recorded.is_empty() {
            return Ok(0);
        }
        let total = recorded.iter().map(|done| self.job_bytes(done.job)).sum();
        self.progress.stage("check", total);
        let (next, damaged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let walk = || -> Result<()> {
            let mut buffer = Vec::new();
            while let Some(record) = recorded.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                if self.fingerprint(record.job, &mut buffer)? != record.wrote {
                    damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record.job);
                }
                self.progress.advance(self.job_bytes(record.job));
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
        if !damaged.is_empty() {
            self.progress.damaged(damaged.len());
        }
        Ok(damaged.len())
    }

    /// Of the bytes that are now where `job` wrote, in the order in which it did.
    fn fingerprint(&self, job: usize, buffer: &mut Vec<u8>) -> Result<u128> {
        let output = &self.blueprint.tensors[self.jobs[job].tensor];
        let mut found = Fingerprint::new();
        for band in written_bands(self.source, output, &self.jobs[job]) {
            for (placement, runs) in output.runs(band) {
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
        }
        Ok(found.finish())
    }

    fn job_bytes(&self, job: usize) -> u64 {
        let output = &self.blueprint.tensors[self.jobs[job].tensor];
        let bands = written_bands(self.source, output, &self.jobs[job]);
        bands.flat_map(|band| output.runs(band)).map(|(_, runs)| runs.len_bytes() as u64).sum()
    }
}
