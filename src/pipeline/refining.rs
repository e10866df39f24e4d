//! Jobs whose weights somebody else encodes, in an order of its own: calibration, which has to know what matrices are
//! multiplied with before it encodes them.
//!
//! Such jobs are held back until they are handed out at the [`Desk`]. For everything else (reading, writing, recording, what a
//! stop leaves) they are jobs like any other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::maxima::Maxima;
use super::queue::Queue;
use crate::checkpoint::{Catalogue, TileReader};
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

/// Decides when and how jobs are encoded.
pub trait Calibration: Sync {
    /// Whether it wants the job with this number.
    fn takes(&self, job: usize) -> bool;

    /// Hands out every job that it takes. Called once, on a thread of its own.
    ///
    /// # Errors
    /// Of its own, or the desk's.
    fn run(&self, desk: &dyn Desk) -> Result<()>;
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
}

/// Jobs that were handed out.
#[derive(Default)]
pub(super) struct Handed {
    state: Mutex<BTreeMap<usize, Arc<dyn Refinement>>>,
    changed: Condvar,
}

impl Handed {
    /// What encodes the job, if it is one of these.
    pub(super) fn of(&self, job: usize) -> Option<Arc<dyn Refinement>> {
        self.lock().get(&job).cloned()
    }

    /// The job's bytes are written.
    pub(super) fn finished(&self, job: usize) {
        self.lock().remove(&job);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<dyn Refinement>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The desk of a run.
pub(super) struct Counter<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) maxima: &'a Maxima,
    pub(super) handed: &'a Handed,
    pub(super) queue: &'a Queue,
    /// Set when the run has failed.
    pub(super) failed: &'a AtomicBool,
    pub(super) stop: &'a AtomicBool,
}

impl Desk for Counter<'_> {
    fn tensor_scale(&self, output: &OutputTensor) -> Result<f32> {
        Ok(self.maxima.tensor_scale(self.source, output, &mut TileReader::default())?.0)
    }

    fn encode(&self, jobs: &[usize], refinement: Arc<dyn Refinement>) -> Result<()> {
        let mut state = self.handed.lock();
        state.extend(jobs.iter().map(|&job| (job, Arc::clone(&refinement))));
        self.queue.hand_out(jobs);
        while !state.is_empty() {
            if self.failed.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            state =
                self.handed.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}
