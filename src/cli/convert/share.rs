//! `requant convert --job I/N`: one share of a conversion.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::ArgMatches;
use serde_json::json;

use super::{needs, peak_rss_bytes, settings, verify_read};
use crate::cli::console::{self, Page};
use crate::cli::destination::Destination;
use crate::cli::job::Job;
use crate::cli::size::human;
use crate::cli::{plan, report};
use crate::error::{Error, Result};
use crate::pipeline::{self, Asked, ShareState};

/// How often a plan is made when other shares have begun at another commit.
const MAX_COMMITS: usize = 3;

/// Plans, does the share, and reports.
pub(super) fn once(
    matches: &ArgMatches,
    destination: &Destination,
    job: &Job,
    started: Instant,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    let output = destination.path.as_path();
    let (quiet, share) = (matches.get_flag("quiet"), job.share);
    let mut commits = 1;
    let outcome = loop {
        let request = plan::Request::from_matches(matches, Some(output), Some(share), stop)?;
        destination.check(&request.blueprint)?;
        let settings = settings(matches, &request)?;
        let progress = report::progress(quiet);
        let (source, blueprint) = (request.source.catalogue(), &request.blueprint);
        let before_work = || {
            if !matches.get_flag("ignore-space") {
                pipeline::check_space(&needs(&request, output), pipeline::OR_IGNORE_SPACE)?;
            }
            verify_read(&request, &*progress, stop)
        };
        let asked = Asked { share, array: job.array, before_work: &before_work };
        let outcome =
            pipeline::convert_share(source, blueprint, output, &settings, &asked, &*progress, stop)?;
        if outcome.state != ShareState::OtherCommit {
            break outcome;
        }
        if commits == MAX_COMMITS {
            return Err(Error::Request(format!(
                "{}: shares of it read another commit of the model, which the hub does not give",
                output.display()
            )));
        }
        commits += 1;
    };
    let seconds = started.elapsed().as_secs_f64();
    let state = match outcome.state {
        ShareState::Done | ShareState::OtherCommit => "done",
        ShareState::WasDone => "was_done",
        ShareState::WasJoined => "was_joined",
    };
    if matches.get_flag("json") {
        return console::print_json(&json!({
            "output": output.display().to_string(),
            "share": share,
            "state": state,
            "bytes_in": outcome.bytes_in,
            "bytes_out": outcome.bytes_out,
            "redone": outcome.redone,
            "seconds": seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }));
    }
    let mut page = Page::default();
    let shown = output.display();
    match outcome.state {
        ShareState::WasJoined => page.line(format_args!("{shown}: its shares were joined already")),
        ShareState::WasDone => page.line(format_args!("{shown}: share {share} was done already")),
        ShareState::Done | ShareState::OtherCommit => {
            page.line(format_args!(
                "{shown}: share {share} is done, {} -> {}",
                human(outcome.bytes_in),
                human(outcome.bytes_out)
            ));
            let peak = peak_rss_bytes().map_or_else(|| "unknown".to_owned(), human);
            page.line(format_args!("{seconds:.1} s, peak memory {peak}"));
            page.line(format_args!("when all are done: requant join {shown}"));
        }
    }
    page.print()
}
