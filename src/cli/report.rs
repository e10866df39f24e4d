//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::size::human;
use crate::pipeline::Progress;

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the reporter for this process: `quiet` silences it.
pub(super) fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar { bar: ProgressBar::no_length() })
    } else {
        Box::new(Lines { state: Mutex::new(None) })
    }
}

/// Says nothing.
struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// A bar with bytes, rate and time left.
struct Bar {
    bar: ProgressBar,
}

impl Progress for Bar {
    fn stage(&self, name: &str, total_bytes: u64) {
        let template = if total_bytes == 0 {
            "{msg} {elapsed}"
        } else {
            "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}"
        };
        // The templates are constants above; a bad one would show in the first run.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.reset();
        self.bar.set_length(total_bytes);
        self.bar.set_message(name.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line when a stage begins and every few seconds.
struct Lines {
    state: Mutex<Option<StageState>>,
}

struct StageState {
    name: String,
    total_bytes: u64,
    done_bytes: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress for Lines {
    fn stage(&self, name: &str, total_bytes: u64) {
        let now = Instant::now();
        let of = if total_bytes == 0 { String::new() } else { format!(": {}", human(total_bytes)) };
        eprintln!("{name}{of}");
        let state =
            StageState { name: name.to_owned(), total_bytes, done_bytes: 0, started: now, last_line: now };
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(state);
    }

    fn advance(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(state) = state.as_mut() else { return };
        state.done_bytes += bytes;
        if state.last_line.elapsed() >= LINE_INTERVAL {
            state.last_line = Instant::now();
            eprintln!("{}", state.line());
        }
    }
}

impl StageState {
    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.done_bytes as f64 / seconds.max(1e-9);
        let left = self.total_bytes.saturating_sub(self.done_bytes) as f64 / rate.max(1.0);
        format!(
            "{}: {} of {} ({:.0}%), {:.2} GB/s, ETA {left:.0} s",
            self.name,
            human(self.done_bytes),
            human(self.total_bytes),
            100.0 * self.done_bytes as f64 / self.total_bytes.max(1) as f64,
            rate / 1e9,
        )
    }
}
