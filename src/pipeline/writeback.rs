//! Sends written bytes to the disk while the run goes on, and records what is there in the journal.
//!
//! Without it the system keeps the whole result in memory and the final sync takes as long as
//! writing it out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::journal::{Done, Journal};
use crate::disk::DiskFile;
use crate::error::Result;

/// Which files have been written to since they were last synced.
pub(super) struct Dirty(Vec<AtomicBool>);

impl Dirty {
    /// None yet.
    pub(super) fn new(files: usize) -> Self {
        Self((0..files).map(|_| AtomicBool::new(false)).collect())
    }

    /// Bytes were written to file number `file`.
    pub(super) fn mark(&self, file: usize) {
        self.0[file].store(true, Ordering::Relaxed);
    }
}

/// What workers and a calibration say.
pub(super) enum Finished {
    /// The bytes of a job are written.
    Job(Done),
    /// What was said before is to be recorded now.
    Settle,
}

/// Once an `interval`, or when it is told to, syncs dirty files and records the jobs that `finished` names, until its sender is dropped; then
/// tells `recorded` of each.
pub(super) fn run(
    files: &[DiskFile],
    dirty: &Dirty,
    finished: &Receiver<Finished>,
    journal: &mut Journal,
    interval: Duration,
    recorded: impl Fn(usize) -> Result<()>,
) -> Result<()> {
    let mut batch: Vec<Done> = Vec::new();
    loop {
        // Without an interval, as soon as a job is done.
        if interval.is_zero()
            && let Ok(Finished::Job(done)) = finished.recv()
        {
            batch.push(done);
        }
        let deadline = Instant::now() + interval;
        let ended = loop {
            match finished.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Finished::Job(done)) => batch.push(done),
                Ok(Finished::Settle) => break false,
                Err(RecvTimeoutError::Timeout) => break false,
                Err(RecvTimeoutError::Disconnected) => break true,
            }
        };
        for (file, flag) in files.iter().zip(&dirty.0) {
            if flag.swap(false, Ordering::Relaxed) {
                file.sync()?;
            }
        }
        if !batch.is_empty() {
            journal.append(&batch)?;
            batch.drain(..).try_for_each(|done| recorded(done.job))?;
        }
        if ended {
            return Ok(());
        }
    }
}
