//! `requant calibrate`: an importance matrix of a model, as llama-imatrix makes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::console::{self, Page};
use super::measured::{Measured, Which};
use super::perplexity::{self, Room};
use super::{Subcommand, applies, destination, model, named, texts};
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::evaluate::{self, Tokens, Way, Windows};
use crate::imatrix::{Collected, Format, Imatrix};
use crate::model::Saved;
use crate::pipeline::output::{self, Kept};
use crate::pipeline::{self, Need};

/// Names of experts that are listed.
const LISTED: usize = 20;

/// The subcommand.
pub(super) struct Calibrate;

impl Subcommand for Calibrate {
    fn command(&self) -> Command {
        Command::new("calibrate")
            .about("Make an importance matrix, as llama-imatrix does")
            .long_about("Make an importance matrix of a model and a text, as llama-imatrix does")
            .arg(super::path_argument("MODEL", perplexity::MODEL_HELP))
            .arg(
                texts::text_argument("A text, UTF-8, or - for standard input; may be given several times")
                    .required_unless_present("in-file"),
            )
            .arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("File to write: an importance matrix for --imatrix"),
            )
            .arg(
                Arg::new("output-format")
                    .long("output-format")
                    .value_name("FORMAT")
                    .default_value("gguf")
                    .value_parser(["gguf", "dat"])
                    .help("gguf, or dat: llama.cpp's older format"),
            )
            .arg(
                paths("in-file")
                    .help("Add what this importance matrix has collected; may be given several times"),
            )
            .arg(texts::context_argument("Tokens of a window"))
            .arg(texts::chunks_argument().conflicts_with("max-tokens"))
            .arg(
                Arg::new("max-tokens")
                    .long("max-tokens")
                    .alias("tokens")
                    .value_name("N")
                    .value_parser(clap::value_parser!(u64).range(1..))
                    .help("Use so many tokens of the texts at most, from their beginnings, in equal parts"),
            )
            .arg(
                Arg::new("process-output")
                    .long("process-output")
                    .action(ArgAction::SetTrue)
                    .help("Collect for the output head too"),
            )
            .arg(texts::bos_argument())
            .arg(
                Arg::new("force").long("force").action(ArgAction::SetTrue).help("Replace an existing output"),
            )
            .arg(
                Arg::new("restart")
                    .long("restart")
                    .action(ArgAction::SetTrue)
                    .help("Throw away what an unfinished run has collected"),
            )
            .args(perplexity::room_arguments())
            .args(model::arguments())
            .args(model::spool_arguments())
            .arg(model::xet_argument())
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        let output = super::path(matches, "output");
        check(matches, output)?;
        let context = texts::context(matches);
        let earlier = of(matches, "in-file").map(|path| Imatrix::open(path)).collect::<Result<Vec<_>>>()?;
        let collected = matches.contains_id("text").then(|| collect(matches, context)).transpose()?;
        let tokens = collected.as_ref().map_or(0, |(_, tokens)| *tokens);
        let merged = merge(&earlier, collected.map(|(collected, _)| collected), context as u32)?;
        let format = match matches.get_one::<String>("output-format").map(String::as_str) {
            Some("dat") => Format::Dat,
            _ => Format::Gguf,
        };
        merged.write(output, format, &Disk::default())?;
        // Last: as long as it is there, the next run goes on with it.
        saved(output, Value::Null).remove()?;
        let seconds = started.elapsed().as_secs_f64();
        let unseen = merged.unseen();
        let missing: usize = unseen.iter().map(|(_, numbers)| numbers.len()).sum();
        if matches.get_flag("json") {
            return console::print_json(&json!({
                "output": output.display().to_string(),
                "entries": merged.entries.len(),
                "tokens": tokens,
                "context": context,
                "chunks": merged.chunks(),
                "datasets": merged.datasets,
                "unseen": unseen.iter().map(|(name, numbers)| json!({"name": name, "matrices": numbers})).collect::<Vec<_>>(),
                "seconds": seconds,
            }));
        }
        let mut page = Page::default();
        page.line(format_args!(
            "{}: {} entries, {} windows of {context} tokens, {seconds:.1} s",
            output.display(),
            merged.entries.len(),
            merged.chunks()
        ));
        if missing > 0 {
            page.line(format_args!(
                "{missing} matrices of experts that no token reached; each of their columns counts once:"
            ));
            for (name, numbers) in unseen.iter().take(LISTED) {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                page.line(format_args!("  {name}: {}", numbers.join(", ")));
            }
            if unseen.len() > LISTED {
                page.line(format_args!("  and in {} more tensors (--json lists all)", unseen.len() - LISTED));
            }
        }
        page.print()
    }
}

fn paths(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("FILE")
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(PathBuf))
}

fn of<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = &'a PathBuf> {
    matches.get_many(name).into_iter().flatten()
}

/// Refuses, before any work, what cannot be read or written.
fn check(matches: &ArgMatches, output: &Path) -> Result<()> {
    let model = super::path(matches, "MODEL");
    named::check(model)?;
    applies::check_local(matches, &[model], &applies::OF_THE_HUB)?;
    if !matches.contains_id("text") {
        let why = "is for texts, and there is none";
        applies::refuse(
            matches,
            &["max-tokens", "chunks", "process-output", "bos", "memory", "scratch", "restart"],
            why,
        )?;
    }
    texts::check(matches)?;
    super::note_threads(matches);
    output::check_path(output, false, "importance matrix")?;
    let mut kept = destination::of_model(model);
    kept.extend(texts::kept(matches, "a text"));
    kept.extend(of(matches, "in-file").map(|path| Kept { what: "an importance matrix", path: path.clone() }));
    output::check_apart(output, &[], &kept)?;
    output::check_replace(output, &[output.to_owned()], false, matches.get_flag("force"))
}

/// Runs the model over the texts; gives what was seen, of how many tokens.
fn collect(matches: &ArgMatches, context: usize) -> Result<(Collected, usize)> {
    let path = super::path(matches, "MODEL");
    let on_hub = u64::from(named::hub_id(path).is_some());
    let stop = if on_hub > 0 { super::stop_on_signal() } else { Arc::default() };
    let measured = Measured::open(matches, path, Which::Model, on_hub, &stop)?;
    let family = measured.model.family()?;
    let windows = windows(matches, &measured, context)?;
    let request = evaluate::Request {
        model: measured.model.store()?,
        original: None,
        windows: &windows,
        memory_bytes: matches.get_one::<u64>("memory").copied(),
        scratch: matches.get_one::<PathBuf>("scratch").map(PathBuf::as_path),
    };
    let quiet = matches.get_flag("quiet");
    let room =
        Room { threads: super::threads(matches), ignore_space: matches.get_flag("ignore-space"), quiet };
    let with_output = matches.get_flag("process-output");
    let output = super::path(matches, "output");
    let asked = json!({
        "requant": env!("CARGO_PKG_VERSION"),
        "model": measured.model.catalogue().source().location(),
        "its files": pipeline::source_digest(measured.model.catalogue()),
        "tokens of the text": windows.tokens.len(),
        "digest of the tokens": digest(&windows.tokens),
        "--context": context,
        "--process-output": with_output,
    });
    let saved = saved(output, asked);
    if matches.get_flag("restart") {
        saved.remove()?;
    }
    let pool = perplexity::pool(room.threads)?;
    let way = pool.install(|| Way::find(&request, saved))?;
    if way.layers() > 0 && !quiet {
        console::note(format_args!(
            "going on with an unfinished run: {} of {} layers are done",
            way.layers(),
            request.model.spec().layers
        ));
    }
    let mut needs = measured.follow(way.layers(), false, quiet)?;
    let states = windows.tokens.len() * request.model.spec().hidden * size_of::<f32>();
    let directory = disk::parent_of(output).to_owned();
    // That behind a layer, and the one before it until it is on the disk.
    needs.push(Need { what: "how far the run has come", directory, bytes: 2 * states as u64 });
    perplexity::check_room(&request, needs, &room)?;
    let mut collected = measured.feed(quiet, || {
        let mut progress = perplexity::Layers::new(quiet);
        pool.install(|| evaluate::importance(&request, family, with_output, way, &mut progress))
    })?;
    collected.datasets = texts::given(matches).into_iter().map(|path| path.display().to_string()).collect();
    Ok((collected, windows.tokens.len()))
}

/// Where it is kept how far a run has come that is to write `output`.
fn saved(output: &Path, asked: Value) -> Saved {
    Saved::new(Disk::default(), pipeline::walk(output), asked)
}

/// SHA-256 of the ids of tokens.
fn digest(tokens: &[u32]) -> String {
    let mut sha256 = Sha256::new();
    tokens.iter().for_each(|token| sha256.update(token.to_le_bytes()));
    sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The windows of all texts.
fn windows(matches: &ArgMatches, measured: &Measured, context: usize) -> Result<Windows> {
    let tokenizer = measured.model.tokenizer()?;
    let (bos, given) = (texts::bos(matches), texts::given(matches));
    let of_tokens = matches.get_one::<u64>("max-tokens").map(|&tokens| {
        let windows = usize::try_from(tokens).unwrap_or(usize::MAX) / context / given.len().max(1);
        windows.max(1)
    });
    let most = of_tokens.or(texts::most_windows(matches, given.len()));
    let all = texts::windows(&given, |path| {
        let tokens = Tokens::encode(&tokenizer, &texts::read(path)?, bos)?;
        let mut windows = Windows::cut(&tokens, context, None)
            .map_err(|error| Error::Request(format!("{}: {error}", path.display())))?;
        most.into_iter().for_each(|most| windows.truncate(most));
        Ok(windows)
    })?;
    all.ok_or_else(|| Error::Request("nothing to calibrate on: give --text".into()))
}

/// What earlier files and this run have collected, added up.
fn merge(earlier: &[Imatrix], collected: Option<Collected>, chunk_size: u32) -> Result<Collected> {
    let mut merged = Collected { chunk_size, ..Collected::default() };
    for imatrix in earlier {
        for name in imatrix.names() {
            merged.add(name, imatrix.sums(name, chunk_size)?).map_err(|message| {
                Error::checkpoint(imatrix.path().display().to_string(), format!("{name}: {message}"))
            })?;
        }
        merged.datasets.extend(imatrix.datasets.iter().cloned());
    }
    let Some(collected) = collected else { return Ok(merged) };
    for (name, sums) in collected.entries {
        merged.add(&name, sums).map_err(|message| {
            Error::Request(format!("--in-file: {name}: {message}; it was made of another model"))
        })?;
    }
    merged.datasets.extend(collected.datasets);
    Ok(merged)
}
