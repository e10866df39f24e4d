//! `requant convert`: the main job.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::console::{self, Page};
use super::destination::{self, Destination};
use super::job::{self, Job};
use super::measured::Measured;
use super::size::human;
use super::validation::{self, Original, Validation};
use super::{MODEL_HELP, Subcommand, applies, card, errors, feedback, headings, html, model, plan, report};
use crate::disk::{Disk, with_suffix};
use crate::error::{Error, Result};
use crate::html_report::Subject;
use crate::pipeline::{self, Helpers, Judge, Need, Progress, Settings};
use crate::plan::{Summary, summary};

mod share;

/// How often a plan is made when headers are damaged on their way.
const MAX_PLANS: usize = 3;

const EXAMPLES: &str = "\
Examples:
  requant convert deepseek-ai/DeepSeek-V3-0324 --to q4_k_m
  requant convert ./V3-0324 --to mlx-4bit -o V3-0324-mlx-4bit --validate text.txt";

/// The subcommand.
pub(super) struct Convert;

impl Subcommand for Convert {
    fn command(&self) -> Command {
        let force = "Replace an existing file, or directory that is a result of requant, once the new one is complete";
        Command::new("convert")
            .about("Convert a checkpoint in one pass")
            .arg(super::path_argument("MODEL", MODEL_HELP))
            .arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .alias("outfile")
                    .value_name("PATH")
                    .value_parser(clap::value_parser!(std::path::PathBuf))
                    .help("File (GGUF) or directory (all others) to write [default: NAME-FORMAT here]")
                    .long_help(
                        "File (GGUF) or directory (all other formats) to write. Without it the result lies in the current directory and \
                         is called after MODEL and the format: V3-0324-Q4_K_M.gguf, V3-0324-mlx-4bit",
                    ),
            )
            .args(plan::request_arguments())
            .arg(model::xet_argument())
            .arg(flag("dry-run", "Show what would be written, as requant plan does, and write nothing").conflicts_with("job"))
            .arg(flag("force", force).long_help(
                "Replace an existing output once the new one is complete: a file, or a directory that a manifest shows to be a result and \
                 that holds nothing else; never a link, and never anything the command reads",
            ))
            .arg(flag("restart", "Throw away what an unfinished run has left instead of going on with it"))
            .arg(super::ignore_space_argument())
            .arg(
                flag(
                    "error-report",
                    "Decode what is written and list how far each tensor is from its source, worst first",
                )
                .help_heading(headings::CHECKS),
            )
            .args(headings::under(headings::CALIBRATION, feedback::arguments()))
            .args(headings::under(headings::CHECKS, validation::arguments()))
            .arg(html::argument().conflicts_with("dry-run"))
            .args(job::arguments())
            .arg(super::threads_argument())
            .args(super::output_arguments())
            .after_help(EXAMPLES)
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        if matches.get_flag("dry-run") {
            return plan::Plan.run(matches);
        }
        plan::check(matches)?;
        feedback::check(matches)?;
        let output = destination::path(matches)?;
        // A value that is no text is no number either, and no absent one.
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let job = job::resolve(matches, &output, &variable)?;
        if let Some(job) = &job {
            // Whoever did not ask for a share must hear of it.
            if let Some(note) =
                job.note(&output).filter(|_| !matches.get_flag("quiet") || !matches.contains_id("job"))
            {
                console::note(note);
            }
        }
        let job = job.filter(|job| job.share.jobs > 1);
        job.iter().try_for_each(|job| check_share(matches, job))?;
        let destination = Destination::new(matches, job.is_some())?;
        html::check(matches, &destination.kept())?;
        if !matches.contains_id("output") && !matches.get_flag("quiet") {
            console::note(format_args!("writing {}", output.display()));
        }
        let stop = super::stop_on_signal();
        let mut plans = 1;
        loop {
            let once = match &job {
                None => Self::once(matches, &destination, started, &stop),
                Some(job) => share::once(matches, &destination, job, started, &stop),
            };
            match once {
                // What was written after a wrong plan is gone; the next one is made from what the hub has.
                Err(Error::StaleHeader { .. }) if plans < MAX_PLANS => plans += 1,
                result => return result,
            }
        }
    }
}

impl Convert {
    /// Plans, converts, validates and reports.
    fn once(
        matches: &ArgMatches,
        destination: &Destination,
        started: Instant,
        stop: &Arc<AtomicBool>,
    ) -> Result<()> {
        let output = destination.path.as_path();
        let request = plan::Request::from_matches(matches, Some(output), None, stop)?;
        destination.check(&request.blueprint)?;
        if !matches.get_flag("ignore-space") {
            pipeline::check_space(&needs(&request, output), pipeline::OR_IGNORE_SPACE)?;
        }
        let validation = Validation::prepare(matches, &request.source)?;
        let mut prepared = feedback::prepare(matches, &request, output)?;
        let mut settings = settings(matches, &request)?;
        settings.calibration = prepared.as_ref().map(|prepared| prepared.record.clone());
        let calibration = prepared.as_mut().map(|prepared| prepared.calibration(&request)).transpose()?;
        let quiet = matches.get_flag("quiet");
        let original = || original(matches, &request, stop);
        let judge = validation.as_ref().map(|validation| validation.judge(&original, request.threads, quiet));
        let judge = judge.as_ref().map(|judge| judge as &dyn Judge);
        let progress = report::progress(matches.get_flag("quiet"));
        let (source, blueprint) = (request.source.catalogue(), &request.blueprint);
        verify_read(&request, &*progress, stop)?;
        let calibrated = calibration.as_ref().map(|calibration| calibration as &dyn pipeline::Calibration);
        let helpers = Helpers { judge, calibration: calibrated };
        let outcome =
            pipeline::convert_with(source, blueprint, output, &settings, helpers, &*progress, stop)?;
        drop(progress);
        feedback::note(&outcome.manifest.damped);
        let found =
            validation.as_ref().map(|validation| validation.found(&outcome.manifest, output)).transpose()?;

        let totals = summary(source, blueprint, 0);
        let seconds = started.elapsed().as_secs_f64();
        let title = output.file_name().unwrap_or_default().to_string_lossy();
        let facts = vec![("time", format!("{seconds:.1} s")), ("source read", human(outcome.bytes_in))];
        let manifest = Some(&outcome.manifest);
        html::write(matches, &Subject { title: &title, facts, manifest, measured: None })?;
        if matches.get_flag("json") {
            let mut value = json!({
                "output": output.display().to_string(),
                "tensors": totals.tensors_out,
                "bytes_in": outcome.bytes_in,
                "redone": outcome.redone,
                "bytes_out": totals.bytes_out,
                "bits_per_weight": totals.bits_per_weight,
                "seconds": seconds,
                "peak_rss_bytes": peak_rss_bytes(),
                "parameters": totals.parameters,
                "files": outcome.manifest.files,
                "manifest": outcome.manifest_path.display().to_string(),
            });
            if let Some(report) = &outcome.manifest.error_report {
                value["error_report"] = json!(report);
            }
            if let Some(found) = &found {
                value["validation"] = found.value.clone();
            }
            console::print_json(&value)?;
        } else {
            let mut page = Page::default();
            print_human(output, &outcome, &totals, seconds, &mut page);
            outcome.manifest.error_report.iter().for_each(|report| errors::print(report, &mut page));
            found.iter().for_each(|found| page.whole(&found.human));
            page.print()?;
        }
        found.and_then(|found| found.failure).map_or(Ok(()), Err)
    }
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// How `request` is to be converted.
///
/// # Errors
/// When the source's own model card cannot be read.
fn settings(matches: &ArgMatches, request: &plan::Request) -> Result<Settings> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    Ok(Settings {
        threads: request.threads,
        force: matches.get_flag("force"),
        restart: matches.get_flag("restart"),
        pinned: request.streaming.as_ref().and_then(|streaming| streaming.pinned.clone()),
        command: job::without_job(words),
        format: request.format.clone(),
        recipe: request.recipe(),
        model: Some(card::model(matches, &request.source)?),
        card: card::writer(matches),
        calibration: None,
        error_report: matches.get_flag("error-report"),
        sync_interval: Settings::SYNC_INTERVAL,
        disk: Disk::default(),
    })
}

/// Refuses options that a single share cannot have.
fn check_share(matches: &ArgMatches, job: &Job) -> Result<()> {
    let of = match &job.said_by {
        None => String::new(),
        Some(said_by) => {
            format!(" ({said_by} made this share {}; for all of it in one process, --job 1/1)", job.share)
        }
    };
    let why = format!(
        "measures a whole result, and this is a share of one{of}; once the shares are joined, requant perplexity OUTPUT --text \
         TEXT --against MODEL does it"
    );
    applies::refuse(matches, &["validate", "validate-context", "max-kld", "report"], why)?;
    let why = format!(
        "would throw away what other shares have done{of}; to begin all of them anew, remove {}",
        with_suffix(&destination::path(matches)?, ".shares").display()
    );
    applies::refuse(matches, &["restart"], why)?;
    let why = format!("needs all layers, one after the other, and this is a share of them{of}");
    applies::refuse(matches, &["calibrate"], why)?;
    let why = format!(
        "is written once, by requant plan with the same options{of}; give every share the file with --recipe"
    );
    applies::refuse(matches, &["save-recipe"], why)
}

/// Holds the files that will be read against what their place states, where nobody does so later.
fn verify_read(request: &plan::Request, progress: &dyn Progress, stop: &AtomicBool) -> Result<()> {
    let source = request.source.catalogue().source();
    let files: Vec<usize> = request.files().into_iter().collect();
    let bytes = source.unverified_bytes(&files);
    if bytes > 0 {
        progress.stage("check", bytes);
        source.verify(&files, &|bytes| progress.advance(bytes), stop)?;
    }
    Ok(())
}

/// What the result is validated against: a streamed source is gone by now, and comes again.
fn original<'a>(
    matches: &ArgMatches,
    request: &'a plan::Request,
    stop: &Arc<AtomicBool>,
) -> Result<Original<'a>> {
    let Some(streaming) = &request.streaming else { return Ok(Original::Here(&request.source)) };
    let limit = streaming.spool_limit_bytes;
    let Some(pinned) = &streaming.pinned else {
        // Refused before any work.
        return Err(Error::Request("--validate does not read object stores".to_owned()));
    };
    let again = Measured::again(matches, pinned, &streaming.spool_directory, limit, stop)?;
    Ok(Original::Streamed(Box::new(again)))
}

fn print_human(output: &Path, outcome: &pipeline::Outcome, totals: &Summary, seconds: f64, page: &mut Page) {
    page.line(format_args!(
        "{}: {} tensors, {} -> {}, {:.2} bits per weight",
        output.display(),
        totals.tensors_out,
        human(outcome.bytes_in),
        human(totals.bytes_out),
        totals.bits_per_weight
    ));
    page.line(format_args!("manifest: {}", outcome.manifest_path.display()));
    let peak = peak_rss_bytes().map_or_else(|| "unknown".to_owned(), human);
    page.line(format_args!(
        "{seconds:.1} s, {:.2} GB/s of source, peak memory {peak}",
        outcome.bytes_in as f64 / seconds.max(1e-9) / 1e9
    ));
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
        if let Some((directory, bytes)) = streaming.kept.clone() {
            // A share keeps what it has downloaded itself.
            let bytes = bytes.min(request.kept_bytes());
            needs.push(Need { what: "--keep-source", directory, bytes });
        }
    }
    needs
}

/// Most resident memory this process ever had, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
