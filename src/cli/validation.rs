//! `requant convert --validate TEXT`: the result, once it is complete and before it gets its name, held against
//! its source.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};
use serde_json::{Value, json};

use super::measured::Measured;
use super::perplexity::{self, Room, table};
use crate::error::{Error, Result};
use crate::evaluate::{self, Bos, Tokens, Windows};
use crate::model::has_second_next;
use crate::opened::Opened;
use crate::pipeline::{Judge, Manifest};
use crate::small;

/// `--validate`, `--validate-context` and `--max-kld`.
pub(super) fn arguments() -> [Arg; 3] {
    [
        Arg::new("validate")
            .long("validate")
            .value_name("TEXT")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Measure the result against the source on this text; the manifest keeps what was found")
            .long_help(
                "Measure the result against the source on this text; the manifest keeps what was found. A source \
                 on the hub is streamed a second time for it",
            ),
        Arg::new("validate-context")
            .long("validate-context")
            .value_name("N")
            .requires("validate")
            .default_value("512")
            .value_parser(clap::value_parser!(u32).range(4..=1 << 20))
            .help("Tokens of a window of that text"),
        Arg::new("max-kld")
            .long("max-kld")
            .value_name("X")
            .requires("validate")
            .value_parser(clap::value_parser!(f64))
            .help("Fail when the mean KL divergence is larger (the result stays, the manifest says so)"),
    ]
}

/// What will be measured, made ready before anything is converted.
pub(super) struct Validation {
    text: PathBuf,
    tokens: Tokens,
    /// As the source's tokenizer does; the result's may not by itself.
    parses_special: bool,
    windows: Windows,
    max_kld: Option<f64>,
    memory_bytes: Option<u64>,
    ignore_space: bool,
}

impl Validation {
    /// From the arguments; `None` when none is asked for.
    ///
    /// # Errors
    /// When the text cannot be read or tokenized, is shorter than a window, or memory will not do.
    pub(super) fn prepare(matches: &ArgMatches, source: &Opened) -> Result<Option<Self>> {
        let Some(path) = matches.get_one::<PathBuf>("validate") else { return Ok(None) };
        let max_kld = matches.get_one::<f64>("max-kld").copied();
        if max_kld.is_some_and(|limit| limit.is_nan() || limit < 0.0) {
            return Err(Error::Request("--max-kld: expected a number from 0 on".into()));
        }
        let text = small::read_text(path, small::TEXT)?;
        let tokenizer = source.tokenizer()?;
        let tokens = Tokens::encode(&tokenizer, &text, Bos::Auto)?;
        let context = matches.get_one::<u32>("validate-context").map_or(512, |&context| context as usize);
        let windows = Windows::cut(&tokens, context, None)?;
        let memory_bytes = matches.get_one::<u64>("memory").copied();
        let store = source.store()?;
        let request = evaluate::Request {
            model: store,
            original: Some(store),
            windows: &windows,
            memory_bytes,
            scratch: None,
        };
        let ignore_space = matches.get_flag("ignore-space");
        let room = Room { threads: super::threads(matches), ignore_space, quiet: true };
        perplexity::check_room(&request, Vec::new(), &room)?;
        let parses_special = tokenizer.parses_special();
        Ok(Some(Self {
            text: path.clone(),
            tokens,
            parses_special,
            windows,
            max_kld,
            memory_bytes,
            ignore_space,
        }))
    }

    /// What measures the result before it gets its name. `original` opens what it is held against.
    pub(super) fn judge<'a>(
        &'a self,
        original: &'a dyn Fn() -> Result<Original<'a>>,
        threads: usize,
        quiet: bool,
    ) -> Measurement<'a> {
        Measurement { validation: self, original, threads, quiet }
    }

    /// What the manifest of the result at `output` says about it.
    ///
    /// # Errors
    /// When the result was complete before it could be measured.
    pub(super) fn found(&self, manifest: &Manifest, output: &Path) -> Result<Found> {
        match &manifest.validation {
            Some(value) if self.is_answered_by(value) => Ok(Found::new(value.clone(), output)),
            _ => Err(Error::Request(format!(
                "{} was complete already, by a command with another --validate or without one, and only got its name \
                 now; it was not measured. Measure it with requant perplexity --against",
                output.display()
            ))),
        }
    }

    /// Whether `found` is what this would find: of the same text, windows and limit.
    fn is_answered_by(&self, found: &Value) -> bool {
        let asked = self.asked();
        asked.as_object().is_some_and(|asked| asked.iter().all(|(key, value)| found.get(key) == Some(value)))
    }

    fn asked(&self) -> Value {
        json!({
            "text": self.text.to_string_lossy(),
            "context": self.windows.context,
            "windows": self.windows.len(),
            "max_kld": self.max_kld,
        })
    }
}

/// Measures a complete result that still has no name.
pub(super) struct Measurement<'a> {
    validation: &'a Validation,
    original: &'a dyn Fn() -> Result<Original<'a>>,
    threads: usize,
    quiet: bool,
}

impl Judge for Measurement<'_> {
    fn judge(&self, complete: &Path) -> Result<Value> {
        let Self { validation, threads, quiet, .. } = *self;
        let source = (self.original)()?;
        let result = Opened::open(complete)?;
        let bos = if validation.tokens.bos.is_some() { Bos::Always } else { Bos::Never };
        let text = small::read_text(&validation.text, small::TEXT)?;
        let mut tokenizer = result.tokenizer()?;
        tokenizer.set_parses_special(validation.parses_special);
        let of_result = Tokens::encode(&tokenizer, &text, bos)?;
        let original = (&source.opened().tokenizer()?, &validation.tokens);
        let cut_otherwise = perplexity::first_cut_otherwise((&tokenizer, &of_result), original)?;
        let request = evaluate::Request {
            model: result.store()?,
            original: Some(source.opened().store()?),
            windows: &validation.windows,
            memory_bytes: validation.memory_bytes,
            scratch: None,
        };
        let measure = || perplexity::measure(&request, threads, quiet);
        let report = match &source {
            Original::Here(_) => measure()?,
            Original::Streamed(streamed) => {
                let predicts =
                    has_second_next(request.model) && request.original.is_some_and(has_second_next);
                let needs = streamed.follow(0, predicts, quiet)?;
                let room = Room { threads, ignore_space: validation.ignore_space, quiet };
                perplexity::check_room(&request, needs, &room)?;
                streamed.run(quiet, measure)?
            }
        };
        let Some(against) = report.against else {
            return Err(Error::Request("--validate: nothing was compared".into()));
        };
        let mut value = validation.asked();
        value["bos"] = json!(validation.tokens.bos);
        value["perplexity"] = json!(report.perplexity.perplexity);
        value["perplexity_error"] = json!(report.perplexity.error);
        value["against"] = table::against_json(&against, cut_otherwise);
        value["passed"] =
            json!(validation.max_kld.is_none_or(|limit| against.divergence.mean.value <= limit));
        Ok(value)
    }
}

/// What the result is held against.
pub(super) enum Original<'a> {
    /// The conversion's source.
    Here(&'a Opened),
    /// The same, streamed once more.
    Streamed(Box<Measured>),
}

impl Original<'_> {
    fn opened(&self) -> &Opened {
        match self {
            Self::Here(opened) => opened,
            Self::Streamed(measured) => &measured.model,
        }
    }
}

/// What a validation found.
pub(super) struct Found {
    /// As the manifest has it.
    pub(super) value: Value,
    /// In a line.
    pub(super) human: String,
    /// When it is too far from the source.
    pub(super) failure: Option<Error>,
}

impl Found {
    fn new(value: Value, output: &Path) -> Self {
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let against = &value["against"];
        let mean_kld = number(&against["mean_kld"]);
        let failure = (value["passed"] != json!(true)).then(|| {
            Error::Request(format!(
                "validation: the mean KL divergence is {mean_kld:.6}, above --max-kld {}; {} is complete but \
                 not what was asked for, and its manifest says so",
                number(&value["max_kld"]),
                output.display()
            ))
        });
        let mut human = format!(
            "validation: perplexity {:.4}, of the source {:.4}, mean KL divergence {mean_kld:.6}, same likeliest \
             token {:.2} %",
            number(&value["perplexity"]),
            number(&against["perplexity"]),
            100.0 * number(&against["top1_agreement"])
        );
        if let Some(token) = against["cut_otherwise"].as_u64() {
            human += &format!("\n{}", table::on_other_cuts(token as usize));
        }
        Self { value, human, failure }
    }
}
