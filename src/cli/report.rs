//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::size::human;
use super::{console, log};
use crate::pipeline::{Progress, Transfer};
use crate::source::hub::Notice;

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the reporter for this process: `quiet` silences it.
pub(super) fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if std::io::stderr().is_terminal() {
        let bars = MultiProgress::new();
        let bar = bars.add(ProgressBar::no_length());
        *on_terminal() = Some(bars.clone());
        Box::new(Bars { bars, bar, transfer: OnceLock::new() })
    } else {
        Box::new(Lines { state: Mutex::new(LinesState::default()) })
    }
}

/// The bars that are on the terminal now.
fn on_terminal() -> MutexGuard<'static, Option<MultiProgress>> {
    static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);
    BARS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs what happened on the network, and shows it on stderr, above the bars if there are any: a detail with `-v` only.
pub(super) fn on_network(notice: Notice<'_>, quiet: bool) {
    let Notice { place, what, is_detail } = notice;
    let text = format!("{place}: {what}");
    log::line(&text);
    if quiet || is_detail && !log::is_verbose() {
        return;
    }
    let print = || {
        // A closed stderr is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    };
    match &*on_terminal() {
        Some(bars) => bars.suspend(print),
        None => print(),
    }
}

/// Says nothing.
struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// A bar with bytes, rate and time left; above it one for what arrives from a hub.
struct Bars {
    bars: MultiProgress,
    bar: ProgressBar,
    transfer: OnceLock<ProgressBar>,
}

impl Bars {
    fn style(bar: &ProgressBar, template: &str) {
        // The templates are constants below; a bad one would show in the first run.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(100));
    }
}

impl Progress for Bars {
    fn stage(&self, name: &str, total_bytes: u64) {
        let template = if total_bytes == 0 {
            "{msg} {elapsed}"
        } else {
            "{msg:8} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}"
        };
        Self::style(&self.bar, template);
        self.bar.reset();
        self.bar.set_length(total_bytes);
        self.bar.set_message(console::escaped(name).into_owned());
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn transfer(&self, transfer: &Transfer<'_>) {
        let bar = self.transfer.get_or_init(|| {
            let bar = self.bars.insert_before(&self.bar, ProgressBar::new(transfer.total_bytes));
            let template = "download [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta} {msg}";
            Self::style(&bar, template);
            bar
        });
        bar.inc(transfer.bytes);
        if transfer.bytes == 0 {
            bar.set_message(console::escaped(&place(transfer)).into_owned());
        }
    }

    fn damaged(&self, jobs: usize) {
        // Where the bar cannot be drawn there is nobody to read a line either.
        let _ = self.bars.println(damaged(jobs));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        *on_terminal() = None;
        if let Some(transfer) = self.transfer.get() {
            transfer.finish_and_clear();
        }
        self.bar.finish_and_clear();
    }
}

/// `shard 3 of 163, spool 8.60 GB`; without a spool `file 3 of 170`.
fn damaged(jobs: usize) -> String {
    format!(
        "{jobs} finished pieces of the unfinished result were damaged on the disk and are converted again"
    )
}

fn place(transfer: &Transfer<'_>) -> String {
    if transfer.held_bytes == 0 {
        return format!("file {} of {}", transfer.number, transfer.files);
    }
    format!("shard {} of {}, spool {}", transfer.number, transfer.files, human(transfer.held_bytes))
}

/// A line when a stage begins and every few seconds.
struct Lines {
    state: Mutex<LinesState>,
}

#[derive(Default)]
struct LinesState {
    stage: Option<StageState>,
    transfer: Option<StageState>,
    /// Shard and spool, as the last transfer said.
    place: String,
    last_line: Option<Instant>,
}

struct StageState {
    name: String,
    total_bytes: u64,
    done_bytes: u64,
    started: Instant,
}

impl StageState {
    fn begin(name: &str, total_bytes: u64) -> Self {
        Self { name: name.to_owned(), total_bytes, done_bytes: 0, started: Instant::now() }
    }
}

impl LinesState {
    /// Prints where everything stands, unless that was done just now.
    fn print(&mut self) {
        if self.last_line.is_some_and(|last| last.elapsed() < LINE_INTERVAL) {
            return;
        }
        self.last_line = Some(Instant::now());
        if let Some(transfer) = &self.transfer {
            console::note(format_args!("{}, {}", transfer.line(), self.place));
        }
        if let Some(stage) = &self.stage {
            console::note(format_args!("{}", stage.line()));
        }
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Lines {
    fn stage(&self, name: &str, total_bytes: u64) {
        let of = if total_bytes == 0 { String::new() } else { format!(": {}", human(total_bytes)) };
        console::note(format_args!("{name}{of}"));
        let mut state = self.lock();
        state.last_line = Some(Instant::now());
        state.stage = Some(StageState::begin(name, total_bytes));
    }

    fn advance(&self, bytes: u64) {
        let mut state = self.lock();
        if let Some(stage) = &mut state.stage {
            stage.done_bytes += bytes;
            state.print();
        }
    }

    fn transfer(&self, transfer: &Transfer<'_>) {
        let mut state = self.lock();
        if transfer.bytes == 0 {
            console::note(format_args!("download: {}, {}", transfer.name, place(transfer)));
            state.place = place(transfer);
        }
        let total = state.transfer.get_or_insert_with(|| StageState::begin("download", transfer.total_bytes));
        total.done_bytes += transfer.bytes;
        state.print();
    }

    fn damaged(&self, jobs: usize) {
        console::note(damaged(jobs));
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
