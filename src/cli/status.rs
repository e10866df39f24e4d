//! `requant status`: how far an unfinished result is, on this machine or on several.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::Subcommand;
use super::console::{self, Page};
use crate::error::Result;
use crate::pipeline::{self, Standing, StandingOfShare};

/// The subcommand.
pub(super) struct Status;

impl Subcommand for Status {
    fn command(&self) -> Command {
        Command::new("status")
            .about("Show how far a run is, or which shares of a result are done")
            .long_about("Show which shares of a result are done, running or missing, or how far a run is")
            .arg(super::path_argument("OUTPUT", "The path that was given to `convert` with -o"))
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        super::named::not_in_store(super::path(matches, "OUTPUT"))?;
        let output: PathBuf = super::path(matches, "OUTPUT").components().collect();
        let standing = pipeline::standing(&output)?;
        if matches.get_flag("json") {
            let mut value = json!({"output": output.display().to_string()});
            match &standing {
                Standing::Complete => value["state"] = "complete".into(),
                Standing::Run { is_running, done, of } => {
                    value["state"] = state(*is_running).into();
                    value["pieces_done"] = (*done).into();
                    value["pieces"] = (*of).into();
                }
                Standing::Shares(shares) => {
                    value["state"] = "shares".into();
                    value["shares"] = shares.iter().map(share).collect();
                }
            }
            return console::print_json(&value);
        }
        let mut page = Page::default();
        match &standing {
            Standing::Complete => page.line(format_args!("{}: complete", output.display())),
            Standing::Run { is_running, done, of } => page.line(format_args!(
                "{}: {}, {done} of {of} pieces are done",
                output.display(),
                if *is_running { "running" } else { "not running" },
            )),
            Standing::Shares(shares) => {
                let done = shares.iter().filter(|share| share.is_done).count();
                let then = if done == shares.len() { "; requant join makes one result of them" } else { "" };
                page.line(format_args!(
                    "{}: {done} of {} shares are done{then}",
                    output.display(),
                    shares.len()
                ));
                for found in shares {
                    let idle = found.idle.filter(|_| !found.is_done && found.is_begun);
                    let idle = idle
                        .map_or(String::new(), |idle| format!(", last recorded {} s ago", idle.as_secs()));
                    page.line(format_args!("share {}: {found}{idle}", found.share));
                }
            }
        }
        page.print()
    }
}

fn state(is_running: bool) -> &'static str {
    if is_running { "running" } else { "stopped" }
}

fn share(found: &StandingOfShare) -> Value {
    let state = match (found.is_done, found.is_begun || found.is_running) {
        (true, _) => "done",
        (_, true) => state(found.is_running),
        _ => "missing",
    };
    json!({
        "job": found.share.job,
        "state": state,
        "done": found.done,
        "idle_seconds": found.idle.map(|idle| idle.as_secs()),
    })
}
