//! Jobs on their way to the workers: those whose files are there, lowest number first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a worker sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// Jobs that are ready, and how many are still to come.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ready: BinaryHeap<Reverse<usize>>,
    /// Jobs that are neither ready nor handed out.
    to_come: usize,
    /// Jobs by the file they wait for; a job that waits for several is in each list.
    waiting: BTreeMap<usize, Vec<usize>>,
    /// For how many files a job waits.
    waits: BTreeMap<usize, usize>,
    closed: bool,
}

impl Queue {
    /// `ready` can run now; the others wait for the files named with them.
    pub(super) fn new(ready: Vec<usize>, needs: &BTreeMap<usize, (usize, Vec<usize>)>) -> Self {
        let mut waiting: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut waits = BTreeMap::new();
        for (&job, (file, others)) in needs {
            for &needed in [file].into_iter().chain(others) {
                waiting.entry(needed).or_default().push(job);
            }
            waits.insert(job, 1 + others.len());
        }
        let state = State {
            ready: ready.into_iter().map(Reverse).collect(),
            to_come: needs.len(),
            waiting,
            waits,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// So many jobs more will be handed out.
    pub(super) fn promise(&self, jobs: usize) {
        self.lock().to_come += jobs;
    }

    /// These jobs, which were promised, can run now.
    pub(super) fn hand_out(&self, jobs: &[usize]) {
        let mut state = self.lock();
        state.to_come -= jobs.len();
        state.ready.extend(jobs.iter().map(|&job| Reverse(job)));
        self.changed.notify_all();
    }

    /// The scales of `file` are there.
    pub(super) fn scales_arrived(&self, file: usize, is_its_own: impl Fn(usize) -> bool) {
        self.arrived_for(file, |job| !is_its_own(job));
    }

    /// The weights of `file` are there.
    pub(super) fn weights_arrived(&self, file: usize, is_its_own: impl Fn(usize) -> bool) {
        self.arrived_for(file, is_its_own);
    }

    fn arrived_for(&self, file: usize, concerns: impl Fn(usize) -> bool) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(jobs) = state.waiting.remove(&file) else { return };
        let (concerned, others): (Vec<usize>, Vec<usize>) = jobs.into_iter().partition(|&job| concerns(job));
        if !others.is_empty() {
            state.waiting.insert(file, others);
        }
        for job in concerned {
            let Some(waits) = state.waits.get_mut(&job) else { continue };
            *waits -= 1;
            if *waits == 0 {
                state.waits.remove(&job);
                state.to_come -= 1;
                state.ready.push(Reverse(job));
            }
        }
        self.changed.notify_all();
    }

    /// The next job; waits for one. `None` when there will be none, or `patient`, asked a few times
    /// a second, says no.
    pub(super) fn next(&self, patient: impl Fn() -> bool) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.closed || !patient() {
                return None;
            }
            if let Some(Reverse(job)) = state.ready.pop() {
                return Some(job);
            }
            if state.to_come == 0 {
                return None;
            }
            state = self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No more jobs: the run has failed or was stopped.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
