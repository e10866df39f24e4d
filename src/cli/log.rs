//! `-v` and `--log FILE`: what happens on the way, retries and their reasons above all.
//!
//! Everything that is said on stderr goes to the log too, with the time (UTC) in front. What is only worth a line for somebody who
//! looks for the reason of something (each retry, each new connection) is a detail: it is in the log always, and on stderr with
//! `-v`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches};

use crate::error::{Error, Result};
use crate::shell;

/// What the first line of every log has behind the time.
const MARK: &str = " requant ";
/// Characters of a time: `2026-12-01T14:40:00.123Z`.
const TIME_CHARS: usize = 24;

static FILE: OnceLock<Mutex<File>> = OnceLock::new();
static IS_VERBOSE: AtomicBool = AtomicBool::new(false);

/// `--verbose` and `--log`.
pub(super) fn arguments() -> [Arg; 2] {
    [
        Arg::new("verbose")
            .short('v')
            .long("verbose")
            .action(ArgAction::SetTrue)
            .conflicts_with("quiet")
            .help("Say on stderr what is retried on the network, and why"),
        Arg::new("log")
            .long("log")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Append what -v and progress say to FILE, with times"),
    ]
}

/// Begins the log of a run of `words`, if one is asked for.
///
/// # Errors
/// When the file cannot be written, or is something else than a log.
pub(super) fn start(matches: &ArgMatches, words: impl Iterator<Item = String>) -> Result<()> {
    // Subcommands that print what they know at once have neither option.
    let flag = matches.try_get_one::<bool>("verbose").ok().flatten();
    IS_VERBOSE.store(flag == Some(&true), Ordering::Relaxed);
    let Some(path) = matches.try_get_one::<PathBuf>("log").ok().flatten() else { return Ok(()) };
    let file = open(path)?;
    // One run, one log.
    let _ = FILE.set(Mutex::new(file));
    let words: Vec<String> = words.collect();
    line(&format!(
        "requant {}: {}",
        env!("CARGO_PKG_VERSION"),
        shell::line(words.iter().map(String::as_str))
    ));
    Ok(())
}

/// Whether details are said on stderr.
pub(super) fn is_verbose() -> bool {
    IS_VERBOSE.load(Ordering::Relaxed)
}

/// Adds a line to the log, if there is one. That it cannot be written is no reason to stop what it is about.
pub(super) fn line(text: &str) {
    if let Some(file) = FILE.get() {
        let line = format!("{} {}\n", time(SystemTime::now()), super::console::escaped(text));
        let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// Opens a log to go on with, or a new one: never a file that is something else.
fn open(path: &Path) -> Result<File> {
    let options = OpenOptions::new().read(true).append(true).create(true).to_owned();
    let mut file = options.open(path).map_err(Error::io(path, "open"))?;
    let metadata = file.metadata().map_err(Error::io(path, "stat"))?;
    if metadata.is_file() && metadata.len() > 0 {
        let mut start = [0; TIME_CHARS + MARK.len()];
        let is_log = file.read_exact(&mut start).is_ok() && start.ends_with(MARK.as_bytes());
        if !is_log {
            let message = "is there, and is no log of requant; name another file";
            return Err(Error::Request(format!("--log {}: {message}", path.display())));
        }
    }
    Ok(file)
}

/// `2026-12-01T14:40:00.123Z`.
fn time(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of the Gregorian calendar, so many days after 1 January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Whole cycles of 400 years first.
    let (mut year, mut left) = (1970 + 400 * (days / 146_097), days % 146_097);
    let len = |year: u64| if is_leap(year) { 366 } else { 365 };
    while left >= len(year) {
        left -= len(year);
        year += 1;
    }
    let months = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for days in months {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_as_date_dash_u_gives_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_709_164_800, "2024-02-29T00:00:00.007Z"),
            (1_767_225_599, "2025-12-31T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
            (13_574_563_200, "2400-02-29T00:00:00.007Z"),
        ] {
            let text = time(UNIX_EPOCH + Duration::from_millis(1000 * seconds + 7));
            assert_eq!(text, expected);
            assert_eq!(text.len(), TIME_CHARS);
        }
    }

    #[test]
    fn nothing_else_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        drop(open(&path).unwrap());
        std::fs::write(&path, format!("{} requant 0.1.0: x\n", time(SystemTime::now()))).unwrap();
        drop(open(&path).unwrap());
        for other in ["GGUF", "x", &"a".repeat(100)] {
            std::fs::write(&path, other).unwrap();
            assert!(open(&path).unwrap_err().to_string().contains("is no log of requant"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), *other);
        }
    }
}
