//! `requant plan`: what a conversion would write, exactly, from headers alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::console::{self, Page};
use super::model::{self, Streaming};
use super::size::{self, human};
use super::{
    MODEL_HELP, Subcommand, applies, card, feedback, formats, headings, imatrix, job, named, report, rules,
    sensitivity,
};
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};
use crate::opened::{self, Opened};
use crate::pipeline::{self, Share};
use crate::plan::budget::{self, Fitted, Measuring, Watch};
use crate::plan::{self, Blueprint, Budget, Options, Rules, Summary, summary};
use crate::sensitivity::{Sensitivities, TensorSensitivity};

mod cost;
mod shares;

/// The subcommand.
pub(super) struct Plan;

/// A source, a format and the blueprint that follows.
pub(super) struct Request {
    pub(super) source: Opened,
    pub(super) format: String,
    pub(super) blueprint: Blueprint,
    /// Rules in force.
    pub(super) rules: Rules,
    /// Mean relative squared error, as measured for a budget.
    mean_error: Option<f64>,
    /// What tensors are worth, as measured with a text.
    sensitivities: Option<Vec<TensorSensitivity>>,
    pub(super) threads: usize,
    /// Set when weights are streamed.
    pub(super) streaming: Option<Streaming>,
    /// Files that are not on this machine.
    remote_files: Vec<(usize, u64)>,
    /// The part of it that is to be done.
    share: Option<Share>,
}

impl Request {
    /// Reads headers and works out the blueprint.
    pub(super) fn from_matches(
        matches: &ArgMatches,
        output: Option<&Path>,
        share: Option<Share>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let format = matches.get_one::<String>("to").cloned().unwrap_or_default();
        let file_name = output.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let options = Options {
            output_name: file_name.unwrap_or_else(|| format!("model-{}.gguf", format.to_uppercase())),
            tokenizer_pre: matches.get_one::<String>("tokenizer-pre").cloned(),
            split_max_bytes: matches.get_one::<u64>("split-max-size").copied(),
            rules: rules::from_matches(matches)?,
            allow_requantize: matches.get_flag("allow-requantize"),
            imatrix: imatrix::from_matches(matches)?,
            choose_head: false,
            leaves_card: card::leaves_to_us(matches),
        };
        // A revision that an unfinished run has pinned stays pinned.
        let unfinished = output.filter(|_| !restart(matches)).and_then(pipeline::unfinished);
        let agreed = output.filter(|_| share.is_some()).and_then(pipeline::agreed);
        let pinned =
            agreed.and_then(|agreed| agreed.pinned).or(unfinished.and_then(|request| request.pinned));
        let path = super::path(matches, "MODEL");
        let (source, streaming, remote_files) = if opened::is_gguf(path) {
            (Opened::open(path)?, None, Vec::new())
        } else {
            let output = output.map(|output| (output, pinned.as_ref()));
            let model = model::open(matches, output, share, restart(matches), stop)?;
            (Opened::from_source(model.source)?, model.streaming, model.remote_files)
        };
        let (rules, blueprint, mean_error, sensitivities) = match rules::budget(matches) {
            Some(budget) => {
                let measured = sensitivity::prepare(matches, &source, streaming.is_some())?;
                let (fitted, sensitivities) =
                    fitted(matches, &source, &format, &options, budget, measured, stop)?;
                (fitted.rules, fitted.blueprint, Some(fitted.mean_error), sensitivities)
            }
            None => (options.rules.clone(), plan::blueprint(&source, &format, &options)?, None, None),
        };
        let memory = matches.get_one::<u64>("memory").copied();
        let threads = fit(&source, &blueprint, super::threads(matches), memory)?;
        let request = Self {
            source,
            format,
            blueprint,
            rules,
            mean_error,
            sensitivities,
            threads,
            streaming,
            remote_files,
            share,
        };
        rules::save(matches, request.recipe().as_deref())?;
        model::spool_limit(matches, request.largest_shard_bytes())?;
        Ok(request)
    }

    /// The recipe that gives this plan, if there are rules.
    pub(super) fn recipe(&self) -> Option<String> {
        (!self.rules.is_empty()).then(|| self.rules.to_toml(&self.format.to_lowercase()))
    }

    /// Shards that a conversion would download: their number and bytes.
    pub(super) fn download(&self) -> (u64, u64) {
        self.download_of(&self.files())
    }

    /// The same, of `files`.
    fn download_of(&self, files: &BTreeSet<usize>) -> (u64, u64) {
        let absent = self.remote_files.iter().filter(|(file, _)| files.contains(file));
        absent.fold((0, 0), |(files, total), (_, bytes)| (files + 1, total + bytes))
    }

    /// Files that are read.
    pub(super) fn files(&self) -> BTreeSet<usize> {
        let (source, blueprint) = (self.source.catalogue(), &self.blueprint);
        match self.share {
            Some(share) => pipeline::files_of_share(source, blueprint, share),
            None => plan::files_read(source, blueprint),
        }
    }

    /// Most bytes of shards on the disk at once, if `limit_bytes` are allowed.
    pub(super) fn spool_bytes(&self, limit_bytes: u64) -> u64 {
        limit_bytes.min(self.download().1)
    }

    /// Most bytes that `--keep-source` may leave in a cache.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.share.map_or(u64::MAX, |_| self.download().1)
    }

    /// Bytes of the largest shard to be downloaded.
    fn largest_shard_bytes(&self) -> u64 {
        let shards = self.files();
        let absent = self.remote_files.iter().filter(|(file, _)| shards.contains(file));
        absent.map(|&(_, bytes)| bytes).max().unwrap_or(0)
    }
}

/// Refuses, before any work, a MODEL that is nowhere and options that mean nothing for the request; says on stderr when
/// fewer threads will run than asked for.
///
/// # Errors
/// Names what is wrong.
pub(super) fn check(matches: &ArgMatches) -> Result<()> {
    let model = super::path(matches, "MODEL");
    if named::store(model)?.is_none() {
        named::check(model)?;
    }
    let format = matches.get_one::<String>("to").map_or("", String::as_str);
    applies::check_request(matches, model, format)?;
    card::check(matches, format)?;
    super::note_threads(matches);
    Ok(())
}

/// The plan that `budget` allows, and what `measured` says of the tensors.
fn fitted(
    matches: &ArgMatches,
    source: &Opened,
    format: &str,
    options: &Options,
    budget: Budget,
    mut measured: Option<sensitivity::Prepared>,
    stop: &AtomicBool,
) -> Result<(Fitted, Option<Vec<TensorSensitivity>>)> {
    let progress = report::progress(matches.get_flag("quiet"));
    let watch =
        Watch { begin: &|bytes| progress.stage("measure", bytes), advance: &|bytes| progress.advance(bytes) };
    let threads = super::threads(matches);
    let sensitivities = measured.as_mut().map(|measured| measured.sensitivities(threads));
    let by = sensitivities.as_ref().map(|sensitivities| sensitivities as &dyn budget::Sensitivity);
    let measuring = Measuring { threads, watch: &watch, stop, sensitivity: by };
    let fitted = budget::fit_with(source, format, options, budget, &measuring)?;
    Ok((fitted, sensitivities.map(Sensitivities::found)))
}

/// `--restart`, where the subcommand has it.
fn restart(matches: &ArgMatches) -> bool {
    matches.try_get_one::<bool>("restart").ok().flatten().copied().unwrap_or(false)
}

/// As many of `threads` as `memory` allows.
fn fit(source: &Catalogue, blueprint: &Blueprint, threads: usize, memory: Option<u64>) -> Result<usize> {
    let Some(memory) = memory else { return Ok(threads) };
    let fitting = (1..=threads).rev().find(|&n| pipeline::peak_ram_bytes(source, blueprint, n) <= memory);
    fitting.ok_or_else(|| {
        let least = pipeline::peak_ram_bytes(source, blueprint, 1);
        Error::Request(format!("--memory {}: this conversion needs {}", human(memory), human(least)))
    })
}

/// Arguments shared with `convert`.
pub(super) fn request_arguments() -> Vec<Arg> {
    let mut arguments = vec![
        Arg::new("to")
            .long("to")
            .value_name("FORMAT")
            .required(true)
            .value_parser(formats::AnyFormat)
            .hide_possible_values(true)
            .help("Format of the result (see --help, and requant formats)")
            .long_help(format!(
                "Format of the result, any case; `requant formats` lists all:\n{}",
                formats::by_group()
            )),
    ];
    let of_result = [
        Arg::new("allow-requantize")
            .long("allow-requantize")
            .action(ArgAction::SetTrue)
            .help("GGUF source: quantize tensors that are quantized already to another type"),
        Arg::new("tokenizer-pre")
            .long("tokenizer-pre")
            .value_name("NAME")
            .value_parser(PossibleValuesParser::new(opened::pre_tokenizers()))
            .hide_possible_values(true)
            .help("GGUF: value of tokenizer.ggml.pre for a tokenizer that is not recognized"),
        Arg::new("split-max-size")
            .long("split-max-size")
            .value_name("SIZE")
            .value_parser(size::parse)
            .help("GGUF: write splits of at most this much tensor data, e.g. 48G"),
    ];
    arguments.extend(of_result);
    arguments
        .extend(headings::under(headings::TYPES, imatrix::arguments().into_iter().chain(rules::arguments())));
    let memory = Arg::new("memory")
        .long("memory")
        .value_name("SIZE")
        .value_parser(size::parse)
        .help("Most memory to use: fewer threads when they would need more");
    arguments.extend(headings::under(headings::RESOURCES, [memory]));
    arguments.extend(model::arguments());
    arguments.extend(model::spool_arguments());
    arguments.push(model::sums_argument());
    arguments.extend(card::arguments());
    arguments
}

impl Subcommand for Plan {
    fn command(&self) -> Command {
        Command::new("plan")
            .about("Show what a conversion would write, without converting")
            .arg(super::path_argument("MODEL", MODEL_HELP))
            .args(request_arguments())
            .args(headings::under(headings::CALIBRATION, sensitivity::arguments()))
            .arg(job::jobs_argument("Show also what each of N shares would do (see convert --job)"))
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        check(matches)?;
        feedback::check(matches)?;
        let request = Request::from_matches(matches, None, None, &super::stop_on_signal())?;
        let source = request.source.catalogue();
        let ram = pipeline::peak_ram_bytes(source, &request.blueprint, request.threads);
        let calibration = cost::estimate(matches, &request)?;
        let mut summary = summary(source, &request.blueprint, ram);
        (summary.download_files, summary.download_bytes) = request.download();
        let limit = model::spool_limit(matches, request.largest_shard_bytes())?;
        summary.peak_disk_bytes +=
            if matches.get_flag("keep-source") { summary.download_bytes } else { request.spool_bytes(limit) };
        let shares = matches.get_one::<u32>("jobs").map(|&count| {
            let limit = if matches.get_flag("keep-source") { u64::MAX } else { limit };
            shares::of(&request, count, limit, ram)
        });
        if matches.get_flag("json") {
            let mut value = serde_json::to_value(&summary)
                .map_err(|error| Error::Request(format!("cannot write JSON: {error}")))?;
            value["rules"] = rules::to_json(&request.rules, &request.blueprint);
            value["recipe"] = request.recipe().into();
            value["measured_error"] = request.mean_error.map(f64::sqrt).into();
            value["calibration"] = calibration.as_ref().map(cost::Estimate::to_json).into();
            value["sensitivities"] = sensitivity::to_json(request.sensitivities.as_deref());
            if let Some(shares) = &shares {
                value["shares"] = shares.iter().map(shares::OfShare::to_json).collect();
            }
            return console::print_json(&value);
        }
        let mut page = Page::default();
        print_human(&request, &summary, &mut page);
        calibration.iter().for_each(|calibration| calibration.print(&mut page));
        if let Some(shares) = &shares {
            shares::print(shares, &mut page);
        }
        page.print()
    }
}

fn print_human(request: &Request, summary: &Summary, page: &mut Page) {
    let location = request.source.catalogue().source().location();
    page.line(format_args!("{location}: {} tensors, {}", summary.tensors_in, human(summary.bytes_in)));
    page.line(format_args!(
        "  -> {}: {} tensors, {} ({} bytes), {:.3} bits per weight, {:.3} G parameters",
        request.format,
        summary.tensors_out,
        human(summary.bytes_out),
        summary.bytes_out,
        summary.bits_per_weight,
        summary.parameters as f64 / 1e9,
    ));
    let width = summary.types.keys().map(String::len).max().unwrap_or(0).max(14);
    page.line(format_args!("{:<width$} {:>8} {:>16} {:>18}", "type", "tensors", "parameters", "bytes"));
    for (name, totals) in &summary.types {
        page.line(format_args!(
            "{name:<width$} {:>8} {:>16} {:>18}",
            totals.tensors, totals.parameters, totals.bytes
        ));
    }
    imatrix::print(&request.blueprint, page);
    if request.mean_error.is_none() {
        rules::print(&request.rules, &request.blueprint, page);
    }
    for file in &request.blueprint.files {
        let name = if file.name.is_empty() { "(output)" } else { &file.name };
        page.line(format_args!("file {name}: {} bytes", file.len_bytes));
    }
    if !summary.kept.is_empty() {
        page.line(format_args!("linear layers that are not quantized:"));
        summary.kept.iter().for_each(|pattern| page.line(format_args!("  {pattern}")));
    }
    if summary.dropped.tensors > 0 {
        page.line(format_args!(
            "dropped: {} tensors, {}",
            summary.dropped.tensors,
            human(summary.dropped.bytes)
        ));
        summary.dropped.reasons.iter().for_each(|reason| page.line(format_args!("  {reason}")));
    }
    if summary.download_files > 0 {
        page.line(format_args!(
            "download: {} shards, {}",
            summary.download_files,
            human(summary.download_bytes)
        ));
    }
    page.line(format_args!(
        "peak disk {}, peak memory {} with {} threads",
        human(summary.peak_disk_bytes),
        human(summary.peak_ram_bytes),
        request.threads
    ));
    if let Some(error) = request.mean_error {
        page.line(format_args!(
            "relative error of the chosen types, root mean square on sampled rows: {:.4} %",
            100.0 * error.sqrt()
        ));
        sensitivity::print(request.sensitivities.as_deref().unwrap_or_default(), page);
        page.line("recipe:");
        page.whole(request.recipe().unwrap_or_default());
    }
}
