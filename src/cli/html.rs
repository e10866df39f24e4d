//! `--report FILE.html`: what a command found, as a page.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};

use super::{console, headings};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::html_report::{self, Subject};
use crate::pipeline::output::{Kept, is_in_one_of};

/// Endings of files that may be replaced.
const ENDINGS: [&str; 2] = ["html", "htm"];

/// `--report`.
pub(super) fn argument() -> Arg {
    Arg::new("report")
        .long("report")
        .value_name("FILE.html")
        .value_parser(clap::value_parser!(PathBuf))
        .help_heading(headings::CHECKS)
        .help("Write what was made and measured as a page of HTML with plots, complete in one file")
}

/// Refuses, before any work, a file that must not be written or cannot be. `kept` is what the command reads or writes
/// otherwise.
///
/// # Errors
/// Says why.
pub(super) fn check(matches: &ArgMatches, kept: &[Kept]) -> Result<()> {
    let Some(path) = given(matches) else { return Ok(()) };
    let refuse = |why: String| Err(Error::Request(format!("--report {}: {why}", path.display())));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !ENDINGS.iter().any(|ending| extension.eq_ignore_ascii_case(ending)) {
        return refuse("the name of a page ends in .html".to_owned());
    }
    if let Some(Kept { what, path }) = is_in_one_of(path, kept) {
        return refuse(format!("is, or lies in, {what} ({}); name another file", path.display()));
    }
    if path.is_dir() {
        return refuse("is a directory".to_owned());
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => refuse(format!("the directory {} does not exist", parent.display())),
        None => Ok(()),
    }
}

/// Writes the page, if one is asked for.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(matches: &ArgMatches, subject: &Subject<'_>) -> Result<()> {
    let Some(path) = given(matches) else { return Ok(()) };
    Disk::default().replace(path, html_report::page(subject)?.as_bytes())?;
    if !matches.get_flag("quiet") {
        console::note(format_args!("report: {}", path.display()));
    }
    Ok(())
}

fn given(matches: &ArgMatches) -> Option<&Path> {
    matches.get_one::<PathBuf>("report").map(PathBuf::as_path)
}
