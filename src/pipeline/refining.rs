//! Jobs whose weights somebody else encodes, in an order of its own: calibration, which has to know what matrices are
//! multiplied with before it encodes them.
//!
//! Such jobs are held back until they are handed out at the [`Desk`]. For everything else (reading, writing, recording, what a
//! stop leaves) they are jobs like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::maxima::Maxima;
use super::queue::Queue;
use super::writeback::Finished;
use crate::checkpoint::{Catalogue, TileReader};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::plan::OutputTensor;

/// How long a wait sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// Encodes the weights of some jobs.
pub trait Refinement: Send + Sync {
    /// Encodes rows of `output` into one slice per part of its codec: `tile`, which is what was read of the rows `rows` of the
    /// source tensor, in this order.
    ///
    /// # Errors
    /// When it has not been told of these rows.
    fn encode(
        &self,
        output: &OutputTensor,
        tensor_scale: f32,
        rows: &[usize],
        tile: &[f32],
        dst: &mut [&mut [u8]],
    ) -> Result<()>;
}

/// Where a calibration keeps how far it has come.
#[derive(Debug, Clone)]
pub struct Keep {
    /// Writes it.
    pub disk: Disk,
    /// A file of its own.
    pub path: PathBuf,
    /// What the run was asked for: what was kept by another one is of no use.
    pub request: Value,
}

/// A matrix whose inputs left directions open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Damped {
    /// Name of its tensor in the source.
    pub name: String,
    /// What was added to each column, of the mean square of the inputs.
    pub damping: f64,
}

/// Decides when and how jobs are encoded.
pub trait Calibration: Sync {
    /// Whether it wants the job with this number.
    fn takes(&self, job: usize) -> bool;

    /// Finds out how far an earlier run has come, of which `done` says what is done. Gives the jobs that it takes
    /// and need not be done again. Called before [`Calibration::run`].
    ///
    /// # Errors
    /// When what was kept cannot be read.
    fn go_on(&self, keep: Keep, done: &dyn Fn(usize) -> bool) -> Result<Vec<usize>>;

    /// Hands out every job that it takes and that is not done. Called once, on a thread of its own.
    ///
    /// # Errors
    /// Of its own, or the desk's.
    fn run(&self, desk: &dyn Desk) -> Result<()>;

    /// Matrices that needed more damping than others.
    fn damped(&self) -> Vec<Damped>;
}

/// Where jobs are handed out.
pub trait Desk: Sync {
    /// The factor on all scales of an output tensor, for codecs that have one: [`requant_formats::Codec::encode_under`].
    ///
    /// # Errors
    /// When a tensor that it follows from cannot be read.
    fn tensor_scale(&self, output: &OutputTensor) -> Result<f32>;

    /// Has `jobs` done, and waits for them.
    ///
    /// # Errors
    /// When the run has failed or was stopped.
    fn encode(&self, jobs: &[usize], refinement: Arc<dyn Refinement>) -> Result<()>;

    /// Waits until every job that was handed out is recorded: if the power is cut now, none of them has to be done
    /// again.
    ///
    /// # Errors
    /// As [`Desk::encode`].
    fn settle(&self) -> Result<()>;
}

/// Jobs that were handed out.
#[derive(Default)]
pub(super) struct Handed {
    state: Mutex<Out>,
    changed: Condvar,
}

#[derive(Default)]
struct Out {
    /// At work.
    working: BTreeMap<usize, Arc<dyn Refinement>>,
    /// Not recorded.
    unrecorded: BTreeSet<usize>,
}

impl Handed {
    /// What encodes the job, if it is one of these.
    pub(super) fn of(&self, job: usize) -> Option<Arc<dyn Refinement>> {
        self.lock().working.get(&job).cloned()
    }

    /// The job's bytes are written.
    pub(super) fn finished(&self, job: usize) {
        self.lock().working.remove(&job);
        self.changed.notify_all();
    }

    /// The job is recorded.
    pub(super) fn recorded(&self, job: usize) {
        self.lock().unrecorded.remove(&job);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The desk of a run.
pub(super) struct Counter<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) maxima: &'a Maxima,
    pub(super) handed: &'a Handed,
    pub(super) queue: &'a Queue,
    /// Has what is done recorded soon.
    pub(super) finished: Sender<Finished>,
    /// Set when the run has failed.
    pub(super) failed: &'a AtomicBool,
    pub(super) stop: &'a AtomicBool,
}

impl Desk for Counter<'_> {
    fn tensor_scale(&self, output: &OutputTensor) -> Result<f32> {
        Ok(self.maxima.tensor_scale(self.source, output, &mut TileReader::default())?.0)
    }

    fn encode(&self, jobs: &[usize], refinement: Arc<dyn Refinement>) -> Result<()> {
        let mut out = self.handed.lock();
        out.working.extend(jobs.iter().map(|&job| (job, Arc::clone(&refinement))));
        out.unrecorded.extend(jobs);
        self.queue.hand_out(jobs);
        self.wait(out, |out| out.working.is_empty())
    }

    fn settle(&self) -> Result<()> {
        // Only closed when recording has failed, which ends the wait.
        let _ = self.finished.send(Finished::Settle);
        self.wait(self.handed.lock(), |out| out.unrecorded.is_empty())
    }
}

impl Counter<'_> {
    fn wait(&self, mut out: MutexGuard<'_, Out>, is_over: impl Fn(&Out) -> bool) -> Result<()> {
        while !is_over(&out) {
            if self.failed.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            out = self.handed.changed.wait_timeout(out, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}
