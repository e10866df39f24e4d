//! What the hub was asked and what it sent: the log that tests look into.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which of the three servers was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The hub itself, `127.0.0.1`.
    Hub,
    /// The server of large files, `localhost` on another port.
    Cdn,
    /// The server that knows what files in Xet storage are put together from.
    Cas,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who was asked.
    pub host: Host,
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// There was a header `Authorization`.
    pub had_token: bool,
    /// The repository's file that was asked for.
    pub file: Option<String>,
    /// Status of the answer; 0 if the connection was closed instead.
    pub status: u16,
}

/// Log and counters of a running hub.
#[derive(Default)]
pub(crate) struct Record {
    requests: Mutex<Vec<Request>>,
    body_bytes: Mutex<HashMap<String, u64>>,
}

impl Record {
    pub(crate) fn add(&self, request: Request) {
        lock(&self.requests).push(request);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    pub(crate) fn sent(&self, file: &str, len_bytes: u64) {
        let mut counts = lock(&self.body_bytes);
        match counts.get_mut(file) {
            Some(count) => *count += len_bytes,
            None => {
                counts.insert(file.to_string(), len_bytes);
            }
        }
    }

    /// Takes back what was counted and did not get through.
    pub(crate) fn not_sent(&self, file: &str, len_bytes: u64) {
        if let Some(count) = lock(&self.body_bytes).get_mut(file) {
            *count = count.saturating_sub(len_bytes);
        }
    }

    pub(crate) fn bytes_of(&self, file: &str) -> u64 {
        lock(&self.body_bytes).get(file).copied().unwrap_or(0)
    }

    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.body_bytes).values().sum()
    }

    pub(crate) fn clear(&self) {
        lock(&self.requests).clear();
        lock(&self.body_bytes).clear();
    }
}

/// Locks, also after another thread panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
