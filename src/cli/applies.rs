//! Options that mean nothing for what was asked for: given all the same, they are an error.

use std::fmt::Display;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::named;
use crate::error::{Error, Result};
use crate::opened;
use crate::plan;

/// Options about the hub and what comes from it.
pub(super) const OF_THE_HUB: [&str; 7] =
    ["revision", "cache-dir", "connections", "spool", "spool-limit", "keep-source", "xet"];
/// Those of them that object stores do not have.
const NOT_OF_STORES: [&str; 4] = ["revision", "cache-dir", "keep-source", "xet"];
/// Options about GGUF results.
const OF_GGUF: [&str; 5] =
    ["tokenizer-pre", "split-max-size", "imatrix", "include-weights", "exclude-weights"];

/// Refuses those of `options` that are on the command line: `why` they mean nothing.
///
/// # Errors
/// Names the first.
pub(super) fn refuse(matches: &ArgMatches, options: &[&str], why: impl Display) -> Result<()> {
    // Not every subcommand has all of them.
    let is_there = |option: &str| matches.try_contains_id(option).is_ok_and(|there| there);
    let is_given =
        |option: &&&str| is_there(option) && matches.value_source(option) == Some(ValueSource::CommandLine);
    match options.iter().find(is_given) {
        None => Ok(()),
        Some(option) => Err(Error::Usage(format!("--{option}: {why}"))),
    }
}

/// Refuses options of `convert` and `plan` that mean nothing for this MODEL and `--to`.
///
/// # Errors
/// Names the option; also when the format is not known.
pub(super) fn check_request(matches: &ArgMatches, model: &Path, format: &str) -> Result<()> {
    if named::store(model)?.is_some() {
        let why = format!("is for models on the hub, and {} is in an object store", model.display());
        refuse(matches, &NOT_OF_STORES, why)?;
        let why = "reads the model a second time, which is not done from object stores: measure the finished result with requant \
                   perplexity OUTPUT --text TEXT --against a copy of MODEL on this machine";
        refuse(matches, &["validate", "validate-context", "max-kld"], why)?;
    } else {
        let why = "is for models in object stores (s3://, gs://, az://); requant verify checks directories against a list";
        refuse(matches, &["sums"], why)?;
        check_local(matches, &[model], &OF_THE_HUB)?;
    }
    if plan::is_directory(format)? {
        refuse(matches, &OF_GGUF, format_args!("is for GGUF results, and {format} is none"))?;
    }
    if opened::is_gguf(model) {
        return Ok(());
    }
    let why = "is for GGUF files that are converted to other types, and MODEL is a checkpoint";
    refuse(matches, &["allow-requantize"], why)
}

/// Refuses `options` when none of `models` is on the hub.
///
/// # Errors
/// Names the option.
pub(super) fn check_local(matches: &ArgMatches, models: &[&Path], options: &[&str]) -> Result<()> {
    if models.iter().any(|model| named::hub_id(model).is_some()) {
        return Ok(());
    }
    let here: Vec<String> = models.iter().map(|model| model.display().to_string()).collect();
    let verb = if here.len() == 1 { "is" } else { "are" };
    let why = format!("is for models on the hub, and {} {verb} on this machine", here.join(" and "));
    refuse(matches, options, why)
}

/// Refuses options of `perplexity` that mean nothing for these models.
///
/// # Errors
/// Names the option.
pub(super) fn check_measured(matches: &ArgMatches, model: &Path, original: Option<&Path>) -> Result<()> {
    let models: Vec<&Path> = [model].into_iter().chain(original).collect();
    // --revision is about MODEL; the original's follows its @.
    check_local(matches, &[model], &["revision"])?;
    check_local(matches, &models, &OF_THE_HUB)?;
    if !matches.contains_id("text") {
        refuse(matches, &["bos"], "is for texts; the file of --tokens says what windows begin with")?;
    }
    Ok(())
}
