//! The speed limit shared by all connections, and waits that end when the hub stops.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::record::lock;

const NAP: Duration = Duration::from_millis(10);

/// A limit in bytes per second over everything that is sent; 0 is none.
pub(crate) struct Throttle {
    bytes_per_second: AtomicU64,
    free_from: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new() -> Throttle {
        Throttle { bytes_per_second: AtomicU64::new(0), free_from: Mutex::new(Instant::now()) }
    }

    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.store(bytes_per_second.map_or(0, |rate| rate.max(1)), Ordering::Relaxed);
        *lock(&self.free_from) = Instant::now();
    }

    /// Bytes to send at once, so that about twenty pieces go out each second.
    pub(crate) fn piece_bytes(&self, at_most: usize) -> usize {
        match self.bytes_per_second.load(Ordering::Relaxed) {
            0 => at_most,
            rate => usize::try_from(rate / 20).unwrap_or(at_most).clamp(1, at_most),
        }
    }

    /// Waits until `len_bytes` may have been sent.
    pub(crate) fn wait(&self, len_bytes: usize, stop: &AtomicBool) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free_from = lock(&self.free_from);
            let cost = Duration::from_secs_f64(len_bytes as f64 / rate as f64);
            *free_from = (*free_from).max(Instant::now()) + cost;
            *free_from
        };
        pause(until.saturating_duration_since(Instant::now()), stop);
    }
}

/// Sleeps for `duration`, or until `stop` is set.
pub(crate) fn pause(duration: Duration, stop: &AtomicBool) {
    let end = Instant::now() + duration;
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(NAP));
    }
}
