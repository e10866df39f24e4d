//! `requant diff`: two models tensor by tensor.

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::console::{self, Page};
use super::size::human;
use super::{Subcommand, named, perplexity, report};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::evaluate::{self, Pair, Pairs, Side, StoredModel};
use crate::opened::Opened;

/// Rows that are printed without `--all`.
const SHOWN: usize = 40;

/// The subcommand.
pub(super) struct Diff;

impl Subcommand for Diff {
    fn command(&self) -> Command {
        Command::new("diff")
            .about("Compare two models tensor by tensor: types, bytes, error")
            .arg(super::path_argument("A", "Checkpoint directory, GGUF file (the first of a split set), MLX directory"))
            .arg(super::path_argument("B", "The same: what A was made from, or another result"))
            .arg(flag("headers", "Compare types and bytes only, without reading the weights"))
            .arg(flag("all", "List all tensors, in the order of A; else those that differ most"))
            .arg(super::threads_argument())
            .args(super::output_arguments())
            .after_help(
                "The relative error is the root mean square of A - B over that of B. Tensors that hold the same weights are compared, \
                 whatever they are called: a stack of experts with the experts.",
            )
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let paths = ["A", "B"].map(|name| super::path(matches, name));
        paths.into_iter().try_for_each(check)?;
        super::note_threads(matches);
        let opened = [Opened::open(paths[0])?, Opened::open(paths[1])?];
        let artifacts = [Artifact::open(paths[0])?, Artifact::open(paths[1])?];
        let (model, original) = (
            StoredModel { model: &opened[0], artifact: &artifacts[0] },
            StoredModel { model: &opened[1], artifact: &artifacts[1] },
        );
        let errors = !matches.get_flag("headers");
        let progress = report::progress(matches.get_flag("quiet") || !errors);
        // As decoded: four bytes each.
        progress.stage("compare", 4 * artifacts[0].parameters());
        let advance = |weights: u64| progress.advance(4 * weights);
        let pool = perplexity::pool(super::threads(matches))?;
        let found = pool.install(|| evaluate::pairs(model, original, errors, &advance))?;
        drop(progress);
        if matches.get_flag("json") {
            return console::print_json(&json!({
                "a": of_model(paths[0], &artifacts[0]),
                "b": of_model(paths[1], &artifacts[1]),
                "relative_error": found.relative_error,
                "cosine": found.cosine,
                "tensors": found.pairs.iter().map(to_json).collect::<Vec<_>>(),
                "only_a": found.only_model.iter().map(side).collect::<Vec<_>>(),
                "only_b": found.only_original.iter().map(side).collect::<Vec<_>>(),
            }));
        }
        let mut page = Page::default();
        print(&found, matches.get_flag("all"), errors, &mut page);
        for (name, path, artifact) in [("A", paths[0], &artifacts[0]), ("B", paths[1], &artifacts[1])] {
            page.line(format_args!(
                "{name}: {}, {} tensors, {}",
                path.display(),
                artifact.tensors.len(),
                human(artifact.tensor_bytes())
            ));
        }
        page.print()
    }
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Refuses what is not on this machine.
fn check(path: &Path) -> Result<()> {
    named::check(path)?;
    match named::hub_id(path) {
        None => Ok(()),
        Some(id) => Err(Error::Request(format!(
            "{id}: models on this machine are compared; fetch it first (requant fetch {id} -o DIR), or name a directory or file that \
             is there"
        ))),
    }
}

fn of_model(path: &Path, artifact: &Artifact) -> Value {
    json!({
        "path": path.display().to_string(),
        "container": artifact.container,
        "tensors": artifact.tensors.len(),
        "bytes": artifact.tensor_bytes(),
    })
}

fn to_json(pair: &Pair) -> Value {
    json!({
        "parameters": pair.parameters,
        "relative_error": pair.relative_error,
        "cosine": pair.cosine,
        "a": side(&pair.model),
        "b": side(&pair.original),
    })
}

fn side(side: &Side) -> Value {
    json!({ "names": side.names, "types": side.types, "bytes": side.bytes })
}

fn print(found: &Pairs, all: bool, errors: bool, page: &mut Page) {
    let badness = |pair: &Pair| pair.relative_error.unwrap_or(f64::INFINITY);
    let differs =
        |pair: &&Pair| pair.model.types != pair.original.types || errors && pair.relative_error != Some(0.0);
    let differing = found.pairs.iter().filter(differs).count();
    let mut rows: Vec<&Pair> =
        if all { found.pairs.iter().collect() } else { found.pairs.iter().filter(differs).collect() };
    if !all {
        rows.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        rows.truncate(SHOWN);
    }
    let types = |side: &Side| side.types.join(",");
    let width =
        |of: &dyn Fn(&Pair) -> &Side| rows.iter().map(|pair| types(of(pair)).len()).max().unwrap_or(0).max(4);
    let (a_width, b_width) = (width(&|pair| &pair.model), width(&|pair| &pair.original));
    if !rows.is_empty() {
        page.line(format_args!(
            "{:>14} {:>12}  {:<a_width$} {:>15}  {:<b_width$} {:>15}  tensor",
            "relative error", "cosine", "A", "bytes", "B", "bytes"
        ));
    }
    for pair in &rows {
        page.line(format_args!(
            "{:>14} {:>12}  {:<a_width$} {:>15}  {:<b_width$} {:>15}  {}",
            percent(pair.relative_error, errors),
            cosine(pair.cosine, errors),
            types(&pair.model),
            pair.model.bytes,
            types(&pair.original),
            pair.original.bytes,
            names(&pair.model)
        ));
    }
    if !all && differing > rows.len() {
        page.line(format_args!("and {} more (--all lists them)", differing - rows.len()));
    }
    for (name, alone) in [("A", &found.only_model), ("B", &found.only_original)] {
        if !alone.is_empty() {
            let bytes: u64 = alone.iter().map(|side| side.bytes).sum();
            page.line(format_args!("only in {name}: {} tensors, {}", alone.len(), human(bytes)));
            for side in alone.iter().take(if all { usize::MAX } else { SHOWN }) {
                page.line(format_args!("  {:<14} {:>15}  {}", types(side), side.bytes, names(side)));
            }
            if !all && alone.len() > SHOWN {
                page.line(format_args!("  and {} more", alone.len() - SHOWN));
            }
        }
    }
    let same = found.pairs.len() - differing;
    let alike = if errors { "the same weights in the same type" } else { "the same type" };
    page.line(format_args!("{same} of {} tensors have {alike}", found.pairs.len()));
    if errors {
        page.line(format_args!(
            "all together: relative error {}, cosine {}",
            percent(found.relative_error, errors),
            cosine(found.cosine, errors)
        ));
    }
}

fn names(side: &Side) -> String {
    match side.names.as_slice() {
        [] => String::new(),
        [name] => name.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn percent(error: Option<f64>, errors: bool) -> String {
    match error {
        Some(error) => format!("{:.4} %", 100.0 * error),
        None if errors => "not a number".into(),
        None => "-".into(),
    }
}

fn cosine(cosine: Option<f64>, errors: bool) -> String {
    match cosine {
        Some(cosine) => format!("{cosine:.8}"),
        None if errors => "not a number".into(),
        None => "-".into(),
    }
}
