//! `requant convert`: the main job.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::size::human;
use super::validation::{self, Validation};
use super::{Subcommand, plan, report};
use crate::error::{Error, Result};
use crate::pipeline::{self, Settings};
use crate::plan::{Summary, summary};

/// The subcommand.
pub(super) struct Convert;

impl Subcommand for Convert {
    fn command(&self) -> Command {
        Command::new("convert")
            .about("Convert a checkpoint in one pass")
            .arg(super::path_argument("MODEL", "Checkpoint directory"))
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
                Arg::new("force")
                    .long("force")
                    .action(ArgAction::SetTrue)
                    .help("Replace an existing output, once the new one is complete"),
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
        let request = plan::Request::from_matches(matches, Some(output))?;
        let validation = Validation::prepare(matches, &request.source)?;
        let settings = Settings {
            threads: request.threads,
            force: matches.get_flag("force"),
            command: std::env::args().collect(),
            format: request.format.clone(),
        };
        let stop = stop_on_signal();
        let progress = report::progress(matches.get_flag("quiet"));
        let (source, blueprint) = (&request.source, &request.blueprint);
        let mut outcome = pipeline::convert(source, blueprint, output, &settings, &*progress, &stop)?;
        drop(progress);
        let quiet = matches.get_flag("quiet");
        let found = validation
            .map(|validation| validation.run(source, output, &mut outcome, request.threads, quiet))
            .transpose()?;

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
            if let Some(found) = &found {
                value["validation"] = found.value.clone();
            }
            super::print_json(&value);
        } else {
            print_human(output, &outcome, &totals, seconds);
            found.iter().for_each(|found| println!("{}", found.human));
        }
        found.and_then(|found| found.failure).map_or(Ok(()), Err)
    }
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

/// A flag that SIGINT and SIGTERM set; the second signal ends the process at once.
fn stop_on_signal() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Fails only when a handler is installed twice in one process: then the first one serves.
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping; once more to stop at once");
    });
    stop
}

/// Most resident memory this process ever had, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
