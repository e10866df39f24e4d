//! `requant join`: one result of what several shares have written.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::console::{self, Page};
use super::size::human;
use super::{Subcommand, errors, report};
use crate::disk::Disk;
use crate::error::Result;
use crate::pipeline::{self, Joining};

/// The subcommand.
pub(super) struct Join;

impl Subcommand for Join {
    fn command(&self) -> Command {
        Command::new("join")
            .about("Make one result of the shares that `convert --job` has written")
            .arg(super::path_argument("OUTPUT", "The path that was given to every share with -o"))
            .arg(
                Arg::new("force")
                    .long("force")
                    .action(ArgAction::SetTrue)
                    .help("Replace an existing file, or directory that is a result of requant"),
            )
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        super::note_threads(matches);
        super::named::not_in_store(super::path(matches, "OUTPUT"))?;
        let output: PathBuf = super::path(matches, "OUTPUT").components().collect();
        let joining = Joining {
            threads: super::threads(matches),
            force: matches.get_flag("force"),
            card: Some(crate::card::markdown),
            disk: Disk::default(),
        };
        let stop = super::stop_on_signal();
        let progress = report::progress(matches.get_flag("quiet"));
        let joined = pipeline::join(&output, &joining, &*progress, &stop)?;
        drop(progress);
        let bytes = joined.manifest.files.iter().map(|file| file.bytes).sum::<u64>();
        let seconds = started.elapsed().as_secs_f64();
        if matches.get_flag("json") {
            let mut value = json!({
                "output": output.display().to_string(),
                "joined": joined.is_new,
                "bytes_out": bytes,
                "seconds": seconds,
                "files": joined.manifest.files,
                "manifest": joined.manifest_path.display().to_string(),
            });
            if let Some(report) = &joined.manifest.error_report {
                value["error_report"] = json!(report);
            }
            return console::print_json(&value);
        }
        let mut page = Page::default();
        let what = if joined.is_new { "joined" } else { "was complete already" };
        page.line(format_args!("{}: {what}, {}", output.display(), human(bytes)));
        page.line(format_args!("manifest: {}", joined.manifest_path.display()));
        if joined.is_new {
            page.line(format_args!("{seconds:.1} s"));
            joined.manifest.error_report.iter().for_each(|report| errors::print(report, &mut page));
        }
        page.print()
    }
}
