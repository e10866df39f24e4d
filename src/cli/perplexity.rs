//! `requant perplexity`: how well a model predicts a text, and how far it is from its original.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::console::{self, Page};
use super::measured::{Measured, Which};
use super::{Subcommand, applies, destination, headings, html, model, named, size, texts};
use crate::error::{Error, Result};
use crate::evaluate::{self, Report};
use crate::html_report::Subject;
use crate::model::{Choice, Observer, has_second_next};
use crate::opened::Opened;
use crate::pipeline::output::{Kept, is_one_of};
use crate::pipeline::{self, Need, check_space};

use text::Text;
pub(super) use text::first_cut_otherwise;

pub(super) mod table;
mod text;

/// The subcommand.
pub(super) struct Perplexity;

impl Subcommand for Perplexity {
    fn command(&self) -> Command {
        Command::new("perplexity")
            .about("Measure perplexity on a text, as llama-perplexity defines it")
            .arg(super::path_argument("MODEL", MODEL_HELP))
            .arg(
                texts::text_argument("The text, UTF-8, or - for standard input; may be given several times")
                    .required_unless_present("tokens"),
            )
            .arg(
                path("tokens")
                    .help("Token ids: read instead of a text, or written when --text is given too")
                    .long_help(
                        "Token ids, a JSON list or {\"bos\": ID or null, \"ids\": [...]}: read from FILE instead \
                         of a text; with --text, written to FILE",
                    ),
            )
            .arg(path("against").value_name("ORIGINAL").help(
                "Model that MODEL was made from: adds KL divergence, top-1 agreement, and errors by layer",
            ))
            .arg(texts::context_argument("Tokens of a window; the second half of each is scored"))
            .arg(texts::chunks_argument().conflicts_with("stride"))
            .arg(
                Arg::new("stride")
                    .long("stride")
                    .value_name("N")
                    .value_parser(clap::value_parser!(u32).range(1..=1 << 20))
                    .help("Slide the window by N tokens and score what is new, as Hugging Face does"),
            )
            .arg(texts::bos_argument())
            .arg(html::argument())
            .args(room_arguments())
            .args(model::arguments())
            .args(model::spool_arguments())
            .arg(model::xet_argument())
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        check(matches)?;
        let (measured, against) = open(matches)?;
        let (model, original) = (&measured.model, against.as_ref().map(|against| &against.model));
        let context = texts::context(matches);
        let stride = matches.get_one::<u32>("stride").map(|&stride| stride as usize);
        let text = Text::from_matches(matches, model, original, stride)?;
        let Text { windows, bos, cut_otherwise, begins_otherwise } = text;
        let request = evaluate::Request {
            model: model.store()?,
            original: original.map(Opened::store).transpose()?,
            windows: &windows,
            memory_bytes: matches.get_one::<u64>("memory").copied(),
            scratch: matches.get_one::<PathBuf>("scratch").map(PathBuf::as_path),
        };
        let quiet = matches.get_flag("quiet");
        let room =
            Room { threads: super::threads(matches), ignore_space: matches.get_flag("ignore-space"), quiet };
        let report = measure_fed(&request, &measured, against.as_ref(), &room)?;
        let seconds = started.elapsed().as_secs_f64();
        if !quiet && stride.is_none() {
            print_running(&report, windows.len());
        }
        if matches.get_flag("json") || matches.contains_id("report") {
            let mut value = json!({
                "perplexity": report.perplexity.perplexity,
                "perplexity_error": report.perplexity.error,
                "tokens": windows.text_tokens,
                "windows": windows.len(),
                "context": context,
                "bos": bos,
                "seconds": seconds,
                "peak_rss_bytes": peak_rss_bytes(),
                "scored": report.perplexity.losses.len(),
                "stride": stride,
                "scratch_bytes": report.scratch_bytes,
            });
            if let Some(prediction) = &report.prediction {
                value["mtp"] = table::prediction_json(prediction);
            }
            if let Some(against) = &report.against {
                value["against"] = table::against_json(against, cut_otherwise);
                value["against"]["begins_otherwise"] = begins_otherwise.into();
            }
            report_on(matches, &value)?;
            if matches.get_flag("json") {
                return console::print_json(&value);
            }
        }
        let mut page = Page::default();
        page.line(format_args!(
            "perplexity {:.4} +/- {:.4} ({} windows of {context}, {} tokens scored, {seconds:.1} s)",
            report.perplexity.perplexity,
            report.perplexity.error,
            windows.len(),
            report.perplexity.losses.len()
        ));
        if let Some(prediction) = &report.prediction {
            table::print_prediction(prediction, &mut page);
        }
        if let Some(against) = &report.against {
            if begins_otherwise {
                page.line(text::on_other_beginnings(bos));
            }
            table::print_against(against, cut_otherwise, &mut page);
        }
        page.print()
    }
}

/// Writes the page of `--report` about what was `measured`, and about how MODEL was made, if its manifest says so.
fn report_on(matches: &ArgMatches, measured: &serde_json::Value) -> Result<()> {
    let path = super::path(matches, "MODEL");
    let manifest = pipeline::manifest_of(path).ok();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let mut facts = vec![("measured", path.display().to_string())];
    let against = matches.get_one::<PathBuf>("against");
    facts.extend(against.map(|against| ("against", against.display().to_string())));
    let texts = texts::given(matches);
    let texts: Vec<String> = texts.iter().map(|text| text.display().to_string()).collect();
    facts.push(("text", if texts.is_empty() { "token ids".to_owned() } else { texts.join(", ") }));
    html::write(
        matches,
        &Subject { title: &name, facts, manifest: manifest.as_ref(), measured: Some(measured) },
    )
}

/// `--memory`, `--scratch`, `--ignore-space`.
pub(super) fn room_arguments() -> impl Iterator<Item = Arg> {
    let arguments =
        [
            Arg::new("memory").long("memory").value_name("SIZE").value_parser(size::parse).help(
                "Most memory to use [default: what is available]: what needs more goes to scratch files",
            ),
            path("scratch")
                .value_name("DIR")
                .help("Where scratch files lie, if there are any [default: TMPDIR, or /var/tmp]"),
            super::ignore_space_argument(),
        ];
    headings::under(headings::RESOURCES, arguments)
}

/// What MODEL may be.
pub(super) const MODEL_HELP: &str =
    "Checkpoint directory, GGUF file (the first of a split set), MLX directory, hub id org/name[@revision]";

/// Opens MODEL and `--against`.
fn open(matches: &ArgMatches) -> Result<(Measured, Option<Measured>)> {
    let path = super::path(matches, "MODEL");
    let against = matches.get_one::<PathBuf>("against");
    let paths = [Some(path), against.map(PathBuf::as_path)];
    let on_hub = paths.into_iter().flatten().filter(|path| named::hub_id(path).is_some()).count() as u64;
    // Without shards to clean up, the system's own way to stop is the best.
    let stop = if on_hub > 0 { super::stop_on_signal() } else { Arc::default() };
    let measured = Measured::open(matches, path, Which::Model, on_hub, &stop)?;
    let against =
        against.map(|path| Measured::open(matches, path, Which::Original, on_hub, &stop)).transpose()?;
    Ok((measured, against))
}

/// As [`measure`], while the shards of models on the hub come and go.
fn measure_fed(
    request: &evaluate::Request,
    model: &Measured,
    original: Option<&Measured>,
    room: &Room,
) -> Result<Report> {
    let &Room { threads, quiet, .. } = room;
    let predicts = has_second_next(request.model);
    let compares = predicts && request.original.is_some_and(has_second_next);
    let mut needs = model.follow(0, predicts, quiet)?;
    if let Some(original) = original {
        needs.extend(original.follow(0, compares, quiet)?);
    }
    check_room(request, needs, room)?;
    let measure = || measure(request, threads, quiet);
    model.run(quiet, || match original {
        None => measure(),
        Some(original) => original.run(quiet, measure),
    })
}

/// What a measurement may use.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) threads: usize,
    /// Whether it goes on though the disk seems too full.
    pub(super) ignore_space: bool,
    pub(super) quiet: bool,
}

/// Refuses, before a weight is read, what cannot be measured on so many threads, and what there is no room for
/// on the disk: `needs`, and scratch files. Says on stderr that there will be some.
pub(super) fn check_room(
    request: &evaluate::Request,
    mut needs: Vec<Need>,
    &Room { threads, ignore_space, quiet }: &Room,
) -> Result<()> {
    let scratch = pool(threads)?.install(|| {
        evaluate::check(request)?;
        evaluate::scratch_need(request)
    })?;
    if let Some(Need { directory, bytes, .. }) = scratch.as_ref().filter(|_| !quiet) {
        let (bytes, directory) = (size::human(*bytes), directory.display());
        console::note(format_args!(
            "hidden states need more than the memory allowed: up to {bytes} of scratch files in {directory}"
        ));
    }
    if ignore_space {
        return Ok(());
    }
    needs.extend(scratch);
    let way_out = "make room, name another place with --spool, --scratch or TMPDIR, allow more --memory, or go ahead all \
                   the same with --ignore-space";
    check_space(&needs, way_out)
}

/// Measures on `threads` threads, with a line per layer on stderr.
pub(super) fn measure(request: &evaluate::Request, threads: usize, quiet: bool) -> Result<Report> {
    let mut progress = Layers::new(quiet);
    pool(threads)?.install(|| evaluate::measure(request, &mut progress))
}

/// So many threads.
pub(super) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::Request(format!("cannot start threads: {error}")))
}

fn path(name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("FILE").value_parser(clap::value_parser!(PathBuf))
}

/// Refuses, before any work, models that are nowhere, options that mean nothing for them, and a file for token ids that
/// is something else.
fn check(matches: &ArgMatches) -> Result<()> {
    let model = super::path(matches, "MODEL");
    let original = matches.get_one::<PathBuf>("against").map(PathBuf::as_path);
    named::check(model)?;
    original.map_or(Ok(()), named::check)?;
    applies::check_measured(matches, model, original)?;
    super::note_threads(matches);
    texts::check(matches)?;
    let given = texts::given(matches);
    if given.len() > 1 {
        applies::refuse(matches, &["tokens"], "is for the ids of one text, and there are several")?;
        applies::refuse(matches, &["stride"], "slides over one text, and there are several")?;
    }
    let mut kept = texts::kept(matches, "the text");
    kept.extend([model].into_iter().chain(original).flat_map(destination::of_model));
    html::check(matches, &kept)?;
    let Some(file) = matches.get_one::<PathBuf>("tokens").filter(|_| !given.is_empty()) else {
        return Ok(());
    };
    match is_one_of(file, &kept) {
        None => Ok(()),
        Some(Kept { what, path }) => Err(Error::Request(format!(
            "--tokens {}: is {what} ({}), and with --text the ids are written there; name another file",
            file.display(),
            path.display()
        ))),
    }
}

/// The estimate after each window, as llama-perplexity prints it.
fn print_running(report: &Report, windows: usize) {
    let running = report.perplexity.running(windows);
    let line: Vec<String> =
        running.iter().enumerate().map(|(window, value)| format!("[{}]{value:.4}", window + 1)).collect();
    console::note_whole(line.join(","));
}

/// A line per layer, with the time left.
pub(super) struct Layers {
    quiet: bool,
    started: Instant,
    /// Layers since.
    done: usize,
}

impl Layers {
    /// The clock starts now.
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, started: Instant::now(), done: 0 }
    }
}

impl Observer for Layers {
    fn layer(&mut self, layer: usize, layers: usize, _: Option<&[Vec<Choice>]>) {
        self.done += 1;
        if !self.quiet {
            let seconds = self.started.elapsed().as_secs_f64();
            let left = seconds / self.done as f64 * (layers - layer - 1) as f64;
            console::note(format_args!("layer {} of {layers}: {seconds:.1} s, ETA {left:.0} s", layer + 1));
        }
    }
}

/// Largest resident set so far; `None` where the system does not say.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
