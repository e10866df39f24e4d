//! `requant convert`: the main job.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::measured::Measured;
use super::size::human;
use super::validation::{self, Original, Validation};
use super::{MODEL_HELP, Subcommand, errors, plan, report};
use crate::error::{Error, Result};
use crate::pipeline::{self, Need, Settings};
use crate::plan::{Summary, summary};

/// The subcommand.
pub(super) struct Convert;

impl Subcommand for Convert {
    fn command(&self) -> Command {
        Command::new("convert")
            .about("Convert a checkpoint in one pass")
            .arg(super::path_argument("MODEL", MODEL_HELP))
            .args(plan::request_arguments())
            .arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .value_name("PATH")
                    .required(true)
                    .value_parser(clap::value_parser!(std::path::PathBuf))
                    .help("File (GGUF) or directory (MLX) to write"),
            )
            .arg(
                Arg::new("force").long("force").action(ArgAction::SetTrue).help(
                    "Replace an existing output, once the new one is complete; go ahead on a full disk",
                ),
            )
            .arg(
                Arg::new("restart")
                    .long("restart")
                    .action(ArgAction::SetTrue)
                    .help("Throw away what an unfinished run has left instead of going on with it"),
            )
            .arg(
                Arg::new("error-report").long("error-report").action(ArgAction::SetTrue).help(
                    "Decode what is written and list how far each tensor is from its source, worst first",
                ),
            )
            .args(validation::arguments())
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        let output = super::path(matches, "output");
        if output.file_name().is_none() {
            return Err(Error::Request(format!("-o {}: not a file name", output.display())));
        }
        let stop = super::stop_on_signal();
        let request = plan::Request::from_matches(matches, Some(output), &stop)?;
        let force = matches.get_flag("force");
        if !force {
            pipeline::check_space(&needs(&request, output), pipeline::OR_FORCE)?;
        }
        let validation = Validation::prepare(matches, &request.source)?;
        let settings = Settings {
            threads: request.threads,
            force,
            restart: matches.get_flag("restart"),
            pinned: request.streaming.as_ref().map(|streaming| streaming.pinned.clone()),
            command: std::env::args().collect(),
            format: request.format.clone(),
            recipe: request.recipe(),
            error_report: matches.get_flag("error-report"),
        };
        let progress = report::progress(matches.get_flag("quiet"));
        let (source, blueprint) = (request.source.catalogue(), &request.blueprint);
        let mut outcome = pipeline::convert(source, blueprint, output, &settings, &*progress, &stop)?;
        drop(progress);
        let quiet = matches.get_flag("quiet");
        let found = match &validation {
            None => None,
            Some(validation) => {
                let original = original(matches, &request, &stop)?;
                Some(validation.run(&original, output, &mut outcome, request.threads, quiet)?)
            }
        };

        let totals = summary(source, blueprint, 0);
        let seconds = started.elapsed().as_secs_f64();
        if matches.get_flag("json") {
            let mut value = json!({
                "output": output,
                "tensors": totals.tensors_out,
                "bytes_in": outcome.bytes_in,
                "bytes_out": totals.bytes_out,
                "bits_per_weight": totals.bits_per_weight,
                "seconds": seconds,
                "peak_rss_bytes": peak_rss_bytes(),
                "parameters": totals.parameters,
                "files": outcome.manifest.files,
                "manifest": outcome.manifest_path,
            });
            if let Some(report) = &outcome.manifest.error_report {
                value["error_report"] = json!(report);
            }
            if let Some(found) = &found {
                value["validation"] = found.value.clone();
            }
            super::print_json(&value);
        } else {
            print_human(output, &outcome, &totals, seconds);
            outcome.manifest.error_report.iter().for_each(errors::print);
            found.iter().for_each(|found| println!("{}", found.human));
        }
        found.and_then(|found| found.failure).map_or(Ok(()), Err)
    }
}

/// What the result is validated against: a streamed source is gone by now, and comes again.
fn original<'a>(
    matches: &ArgMatches,
    request: &'a plan::Request,
    stop: &Arc<AtomicBool>,
) -> Result<Original<'a>> {
    let Some(streaming) = &request.streaming else { return Ok(Original::Here(&request.source)) };
    let limit = streaming.spool_limit_bytes;
    let again = Measured::again(matches, &streaming.pinned, &streaming.spool_directory, limit, stop)?;
    Ok(Original::Streamed(Box::new(again)))
}

fn print_human(output: &Path, outcome: &pipeline::Outcome, totals: &Summary, seconds: f64) {
    println!(
        "{}: {} tensors, {} -> {}, {:.2} bits per weight",
        output.display(),
        totals.tensors_out,
        human(outcome.bytes_in),
        human(totals.bytes_out),
        totals.bits_per_weight
    );
    println!("manifest: {}", outcome.manifest_path.display());
    let peak = peak_rss_bytes().map_or_else(|| "unknown".to_owned(), human);
    println!(
        "{seconds:.1} s, {:.2} GB/s of source, peak memory {peak}",
        outcome.bytes_in as f64 / seconds.max(1e-9) / 1e9
    );
}

/// What the run is going to write, less what an earlier run has written.
fn needs(request: &plan::Request, output: &Path) -> Vec<Need> {
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let begun = pipeline::begun_bytes(&request.blueprint, output);
    let bytes = request.blueprint.len_bytes().saturating_sub(begun);
    let mut needs = vec![Need { what: "the result", directory: parent.to_owned(), bytes }];
    if let Some(streaming) = &request.streaming {
        let there = pipeline::allocated_bytes(&streaming.spool_directory);
        let bytes = request.spool_bytes(streaming.spool_limit_bytes).saturating_sub(there);
        let directory = streaming.spool_directory.clone();
        needs.push(Need { what: "the spool", directory, bytes });
        let (directory, bytes) = (streaming.cache_directory.clone(), streaming.kept_bytes);
        needs.push(Need { what: "--keep-source", directory, bytes });
    }
    needs
}

/// Most resident memory this process ever had, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
