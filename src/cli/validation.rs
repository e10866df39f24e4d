//! `requant convert --validate TEXT`: the result, once it is complete, held against its source.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};
use serde_json::{Value, json};

use super::measured::Measured;
use super::perplexity::{self, table};
use crate::error::{Error, Result};
use crate::evaluate::{self, Bos, Tokens, Windows};
use crate::model::has_second_next;
use crate::opened::Opened;
use crate::pipeline::{Manifest, Outcome};

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
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
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
        perplexity::check_room(&request, Vec::new(), super::threads(matches), true)?;
        let parses_special = tokenizer.parses_special();
        Ok(Some(Self { text: path.clone(), tokens, parses_special, windows, max_kld, memory_bytes }))
    }

    /// Measures the result at `output` and writes what was found into its manifest.
    ///
    /// # Errors
    /// When the result cannot be read back, or cuts the text otherwise than its source.
    pub(super) fn run(
        &self,
        source: &Original,
        output: &Path,
        outcome: &mut Outcome,
        threads: usize,
        quiet: bool,
    ) -> Result<Found> {
        let result = Opened::open(&first_file(output, &outcome.manifest))?;
        let bos = if self.tokens.bos.is_some() { Bos::Always } else { Bos::Never };
        let text = std::fs::read_to_string(&self.text).map_err(Error::io(&self.text, "read"))?;
        let mut tokenizer = result.tokenizer()?;
        tokenizer.set_parses_special(self.parses_special);
        let of_result = Tokens::encode(&tokenizer, &text, bos)?;
        let original = (&source.opened().tokenizer()?, &self.tokens);
        let cut_otherwise = perplexity::first_cut_otherwise((&tokenizer, &of_result), original)?;
        let request = evaluate::Request {
            model: result.store()?,
            original: Some(source.opened().store()?),
            windows: &self.windows,
            memory_bytes: self.memory_bytes,
            scratch: None,
        };
        let measure = || perplexity::measure(&request, threads, quiet);
        let report = match source {
            Original::Here(_) => measure()?,
            Original::Streamed(streamed) => {
                let predicts =
                    has_second_next(request.model) && request.original.is_some_and(has_second_next);
                let needs = streamed.follow(predicts, quiet)?;
                perplexity::check_room(&request, needs, threads, quiet)?;
                streamed.run(quiet, measure)?
            }
        };
        let Some(against) = report.against else {
            return Err(Error::Request("--validate: nothing was compared".into()));
        };
        let mean_kld = against.divergence.mean.value;
        let passed = self.max_kld.is_none_or(|limit| mean_kld <= limit);
        let value = json!({
            "text": self.text,
            "context": self.windows.context,
            "windows": self.windows.len(),
            "perplexity": report.perplexity.perplexity,
            "perplexity_error": report.perplexity.error,
            "against": table::against_json(&against, cut_otherwise),
            "max_kld": self.max_kld,
            "passed": passed,
        });
        outcome.manifest.record_validation(&outcome.manifest_path, value.clone())?;
        let failure = (!passed).then(|| {
            let limit = self.max_kld.unwrap_or(f64::INFINITY);
            Error::Request(format!(
                "validation: the mean KL divergence is {mean_kld:.6}, above --max-kld {limit}; {} is complete but \
                 not what was asked for, and its manifest says so",
                output.display()
            ))
        });
        let mut human = format!(
            "validation: perplexity {:.4}, of the source {:.4}, mean KL divergence {mean_kld:.6}, same likeliest \
             token {:.2} %",
            report.perplexity.perplexity,
            against.perplexity.perplexity,
            100.0 * against.divergence.top1_agreement.value
        );
        if let Some(token) = cut_otherwise {
            human += &format!("\n{}", table::on_other_cuts(token));
        }
        Ok(Found { value, human, failure })
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

/// What to open: the directory, the file, or the first of a split set.
fn first_file(output: &Path, manifest: &Manifest) -> PathBuf {
    match manifest.files.first() {
        Some(file) if !manifest.is_directory => output.with_file_name(&file.name),
        _ => output.to_owned(),
    }
}
