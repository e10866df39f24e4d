//! Whether a transfer is fast enough to be called one.

use std::time::{Duration, Instant};

use super::patience::Failure;
use crate::source::notice::FLOOR_BYTES_PER_SECOND;

/// Timeouts that a transfer is watched for before it is judged.
const WINDOW_TIMEOUTS: u32 = 2;

/// Judges a transfer by the time it was waited for; what the receiver does with the bytes takes no part.
pub(super) struct Pace {
    window: Duration,
    /// Of the current window: time waited, bytes that came.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// `timeout`: the longest wait for a single byte.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { window: timeout * WINDOW_TIMEOUTS, waited: Duration::ZERO, bytes: 0 }
    }

    /// After a wait since `start` that `bytes` ended.
    pub(super) fn came(&mut self, start: Instant, bytes: usize) -> Result<(), Failure> {
        self.waited += start.elapsed();
        self.bytes += bytes as u64;
        if self.waited < self.window {
            return Ok(());
        }
        let (bytes, seconds) = (self.bytes, self.waited.as_secs_f64());
        if !is_progress(bytes, self.waited) {
            return Err(Failure::again(format!("the transfer stalled: {bytes} bytes in {seconds:.0} s")));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

/// Whether `bytes` in `time` are at least the floor rate.
pub(super) fn is_progress(bytes: u64, time: Duration) -> bool {
    bytes > 0 && bytes as f64 >= FLOOR_BYTES_PER_SECOND as f64 * time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lines_pass_and_trickles_do_not() {
        for (bytes, passes) in [(5_000_usize, true), (600, true), (400, false), (10, false)] {
            let mut pace = Pace::new(Duration::from_secs(10));
            let second_ago = || Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
            let results: Vec<bool> = (0..60).map(|_| pace.came(second_ago(), bytes).is_ok()).collect();
            assert_eq!(results.iter().all(|ok| *ok), passes, "{bytes} bytes a second");
            assert!(results[..15].iter().all(|ok| *ok), "judged before the window was over");
        }
    }

    #[test]
    fn one_byte_at_once_is_progress_and_none_never_is() {
        assert!(is_progress(1, Duration::ZERO));
        assert!(!is_progress(0, Duration::ZERO));
    }
}
