//! Sends written bytes to the disk while the run goes on, so that the last sync has little left.
//!
//! Without it the system keeps the whole result in memory and the final sync takes as long as
//! writing it out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::staging::StagedFile;
use crate::error::{Error, Result};

/// How often written files are synced.
const INTERVAL: Duration = Duration::from_millis(250);

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

/// Syncs dirty files until the sender of `done` is dropped.
pub(super) fn run(files: &[StagedFile], dirty: &Dirty, done: &Receiver<()>) -> Result<()> {
    loop {
        match done.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        for (staged, flag) in files.iter().zip(&dirty.0) {
            if flag.swap(false, Ordering::Relaxed) {
                staged.file.sync_data().map_err(Error::io(&staged.path, "sync"))?;
            }
        }
    }
}
