//! Which bytes of a file are finished: intervals that grow together, and the point up to which
//! nothing is missing.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long a waiter sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// The finished bytes of one file.
pub(crate) struct Frontier {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// All bytes before this one are finished.
    complete_to: u64,
    /// Finished intervals beyond it: start to end.
    ahead: BTreeMap<u64, u64>,
    /// No more intervals will come.
    closed: bool,
}

impl Frontier {
    /// A file of which nothing is finished.
    pub(crate) fn new() -> Self {
        let state = State { complete_to: 0, ahead: BTreeMap::new(), closed: false };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Records that `start..end` is finished. Intervals never overlap.
    pub(crate) fn add(&self, start: u64, end: u64) {
        if start == end {
            return;
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        state.ahead.insert(start, end);
        let before = state.complete_to;
        while let Some(entry) = state.ahead.first_entry() {
            if *entry.key() != state.complete_to {
                break;
            }
            state.complete_to = entry.remove();
        }
        if state.complete_to != before {
            self.moved.notify_all();
        }
    }

    /// Wakes every waiter for good: the run has failed or was stopped.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.moved.notify_all();
    }

    /// Waits until more than `position` bytes are complete and says how many are; `None` once
    /// closed.
    pub(crate) fn wait_past(&self, position: u64) -> Option<u64> {
        self.wait_past_while(position, || true)
    }

    /// As [`Frontier::wait_past`]; `None` also once `patient`, asked a few times a second, says no.
    pub(crate) fn wait_past_while(&self, position: u64, patient: impl Fn() -> bool) -> Option<u64> {
        let mut state = self.lock();
        while state.complete_to <= position {
            if state.closed || !patient() {
                return None;
            }
            let waited = self.moved.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Some(state.complete_to)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the map consistent: every change above is a single step.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_only_when_the_gap_closes() {
        let frontier = Frontier::new();
        frontier.add(10, 20);
        frontier.add(30, 40);
        frontier.add(0, 10);
        assert_eq!(frontier.wait_past(0), Some(20));
        frontier.add(20, 30);
        assert_eq!(frontier.wait_past(20), Some(40));
        frontier.close();
        assert_eq!(frontier.wait_past(40), None);
    }
}
