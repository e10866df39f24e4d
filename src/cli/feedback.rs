//! `--calibrate` and what goes with it.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches};
use sha2::{Digest, Sha256};

use super::perplexity::Layers;
use super::plan::Request;
use super::size::human;
use super::{applies, console, sensitivity, texts};
use crate::calibration::{self, Calibration, Cost, LOOKUP_WINDOWS, Mode};
use crate::disk;
use crate::error::{Error, Result};
use crate::evaluate::{Bos, Tokens, Windows};
use crate::model::{Observer, Storage};
use crate::opened::Opened;
use crate::pipeline::{self, CalibrationRecord, CalibrationText, Damped, Need, OR_IGNORE_SPACE};
use crate::sensitivity::{Settings, lookups};
use crate::small;

/// Options that mean nothing without a text.
const OF_TEXTS: [&str; 3] = ["calibrate-tokens", "calibrate-mode", "calibrate-context"];

/// Names the text that ships with the program; a file of this name is given as `./default`.
const DEFAULT: &str = "default";

/// The arguments.
pub(super) fn arguments() -> [Arg; 4] {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(clap::value_parser!(u32).range(4..=1 << 24))
            .help(help)
    };
    [
        Arg::new("calibrate")
            .long("calibrate")
            .value_name("TEXT")
            .action(ArgAction::Append)
            .value_parser(clap::value_parser!(PathBuf))
            .conflicts_with("imatrix")
            .help(
                "Round with error feedback, for what the model computes on this text; may be given several times. default is a \
                 mixed text that ships with the program",
            ),
        number("calibrate-tokens", "131072", "Tokens of the texts to use at most, in equal parts"),
        number("calibrate-context", "512", "Tokens of a window"),
        Arg::new("calibrate-mode")
            .long("calibrate-mode")
            .value_name("MODE")
            .default_value("sequential")
            .value_parser(PossibleValuesParser::new(["sequential", "parallel"]))
            .help(
                "sequential: matrices make good what those before them lost; parallel: each is rounded for the inputs of \
                 the original",
            ),
    ]
}

/// What was asked for, ready to be used.
pub(super) struct Prepared {
    windows: Windows,
    mode: Mode,
    storage: Storage,
    /// Of the gradients of the embedding.
    lookup_storage: Storage,
    /// For journal and manifest.
    pub(super) record: CalibrationRecord,
    layers: Layers,
}

/// Refuses what cannot be, before anything is opened.
///
/// # Errors
/// Names the option.
pub(super) fn check(matches: &ArgMatches) -> Result<()> {
    if matches.contains_id("calibrate") {
        return Ok(());
    }
    applies::refuse(matches, &OF_TEXTS, "is for --calibrate TEXT, and there is none")
}

/// Texts to calibrate with.
pub(super) struct Texts {
    /// All that is used of them.
    pub(super) windows: Windows,
    /// Which they are.
    read: Vec<CalibrationText>,
}

/// The windows of `--calibrate`, if there is one.
///
/// # Errors
/// When a text cannot be read or is shorter than a window, or the weights are not at hand.
pub(super) fn windows(matches: &ArgMatches, source: &Opened, is_streamed: bool) -> Result<Option<Texts>> {
    let paths: Vec<&Path> =
        matches.get_many::<PathBuf>("calibrate").into_iter().flatten().map(PathBuf::as_path).collect();
    if paths.is_empty() {
        return Ok(None);
    }
    if is_streamed {
        let message = "--calibrate reads the weights in the order of the layers, twice: fetch the model first (requant fetch)";
        return Err(Error::Request(message.into()));
    }
    let number = |name: &str| matches.get_one::<u32>(name).map_or(0, |&number| number as usize);
    let (context, most) = (number("calibrate-context"), number("calibrate-tokens"));
    let tokenizer = source.tokenizer()?;
    let mut read = Vec::with_capacity(paths.len());
    let windows = texts::windows(&paths, |path| {
        let given;
        let parts: &[&str] = if path == Path::new(DEFAULT) {
            &calibration::DEFAULT_TEXT
        } else {
            given = small::text(path, small::read_given(path, small::TEXT)?)?;
            &[&given]
        };
        let sha256 = Sha256::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
        read.push(CalibrationText { file: path.display().to_string(), sha256 });
        let share = (most / context / paths.len() / parts.len()).max(1);
        let mut all: Option<Windows> = None;
        for part in parts {
            let tokens = Tokens::encode(&tokenizer, part, Bos::default())?;
            let mut windows = Windows::cut(&tokens, context, None)
                .map_err(|error| Error::Request(format!("{}: {error}", path.display())))?;
            windows.truncate(share);
            match &mut all {
                None => all = Some(windows),
                Some(all) => all.append(windows),
            }
        }
        Ok(all.unwrap_or_else(|| Windows::from_tokens(Vec::new(), context)))
    })?;
    Ok(windows.map(|windows| Texts { windows, read }))
}

/// `--calibrate-mode`.
fn mode(matches: &ArgMatches) -> Mode {
    match matches.get_one::<String>("calibrate-mode").map(String::as_str) {
        Some("parallel") => Mode::Parallel,
        _ => Mode::Sequential,
    }
}

/// What the calibration of `request` on `windows` costs.
///
/// # Errors
/// When the model cannot be evaluated, nothing of the result can be calibrated, or `--memory` will not do.
pub(super) fn cost(matches: &ArgMatches, request: &Request, windows: &Windows) -> Result<Cost> {
    let memory = matches.get_one::<u64>("memory").copied();
    let (tokens, context) = (windows.tokens.len(), windows.context);
    let cost =
        calibration::cost(&request.source, &request.blueprint, tokens, context, mode(matches), memory)?;
    match memory.filter(|&memory| memory < cost.ram_bytes) {
        None => Ok(cost),
        Some(memory) => Err(Error::Request(format!(
            "--memory {}: calibrating on {tokens} tokens needs about {} even with hidden states on the disk; allow more, or \
             use fewer tokens (--calibrate-tokens)",
            human(memory),
            human(cost.ram_bytes)
        ))),
    }
}

/// The calibration that was asked for, if one was.
///
/// # Errors
/// When a text cannot be read or is shorter than a window, the model cannot be evaluated, or there is no room for scratch
/// files.
pub(super) fn prepare(matches: &ArgMatches, request: &Request, output: &Path) -> Result<Option<Prepared>> {
    let Some(Texts { windows, read }) = windows(matches, &request.source, request.streaming.is_some())?
    else {
        return Ok(None);
    };
    let context = windows.context;
    let mode = mode(matches);
    let store = request.source.store()?;
    let cost = cost(matches, request, &windows)?;
    let mut needs = Vec::new();
    if let Storage::Scratch(directory) = &cost.storage {
        needs.push(Need { what: "scratch files", directory: directory.clone(), bytes: cost.scratch_bytes });
    }
    let tokens = windows.drawn(LOOKUP_WINDOWS).len();
    let (lookup_storage, need) = sensitivity::storage(store.spec(), tokens, context);
    needs.extend(need);
    let directory = disk::parent_of(output).to_owned();
    needs.push(Need { what: "how far the calibration has come", directory, bytes: cost.kept_bytes });
    if !matches.get_flag("ignore-space") {
        pipeline::check_space(&needs, OR_IGNORE_SPACE)?;
    }
    let record =
        CalibrationRecord { mode: mode.name().into(), texts: read, tokens: windows.tokens.len(), context };
    let layers = Layers::new(matches.get_flag("quiet"));
    let storage = cost.storage;
    Ok(Some(Prepared { windows, mode, storage, lookup_storage, record, layers }))
}

impl Prepared {
    /// The calibration of `request`.
    ///
    /// # Errors
    /// When nothing of the result can be calibrated.
    pub(super) fn calibration<'a>(&'a mut self, request: &'a Request) -> Result<Calibration<'a>> {
        let (windows, storage) = (&self.windows, &self.lookup_storage);
        let of_embedding: calibration::Lookups<'a> = Box::new(move |observer: &mut dyn Observer| {
            let tokens = windows.drawn(LOOKUP_WINDOWS);
            let (context, storage) = (windows.context, storage.clone());
            let settings = Settings { tokens: &tokens, context, storage, threads: request.threads, observer };
            lookups(request.source.store()?, settings)
        });
        let settings = calibration::Settings {
            tokens: &self.windows.tokens,
            context: self.windows.context,
            mode: self.mode,
            storage: self.storage.clone(),
            threads: request.threads,
            observer: &mut self.layers,
            lookups: of_embedding,
        };
        Calibration::new(&request.source, &request.blueprint, settings)
    }
}

/// Says where more damping than usual was needed.
pub(super) fn note(damped: &[Damped]) {
    for Damped { name, damping } in damped {
        console::note(format_args!(
            "{name}: the text says too little about its inputs; {damping} times their mean square was added to each column"
        ));
    }
}
