//! A budget with `--calibrate`: types are chosen by what they cost the model on the text.

use clap::{Arg, ArgMatches};
use serde_json::{Value, json};

use super::console::{self, Page};
use super::feedback;
use super::perplexity::Layers;
use crate::error::Result;
use crate::evaluate;
use crate::family::Spec;
use crate::model::{Storage, Workload, peak_ram_bytes};
use crate::opened::Opened;
use crate::pipeline::{self, Need, OR_IGNORE_SPACE};
use crate::sensitivity::{Sensitivities, Settings, TensorSensitivity, states_bytes};

/// Windows that go through the model forwards and backwards.
const WINDOWS: usize = 32;
/// Rows of the table for people.
const MOST_ROWS: usize = 40;

/// The arguments of `plan`: those of `convert`, where the text does more.
pub(super) fn arguments() -> impl Iterator<Item = Arg> {
    feedback::arguments().into_iter().map(|argument| {
        if argument.get_id() == "calibrate" {
            argument.help(
                "Say what calibrating on this text takes; with --target-size or --target-bpw, choose types by what they cost \
                 the model on it. May be given several times",
            )
        } else {
            argument
        }
    })
}

/// What was asked for, ready to be measured.
pub(super) struct Prepared {
    tokens: Vec<u32>,
    context: usize,
    storage: Storage,
    layers: Layers,
}

/// Where the states of a backward pass are kept, and what that takes of a disk.
pub(super) fn storage(spec: &Spec, tokens: usize, context: usize) -> (Storage, Option<Need>) {
    let load = Workload { tokens, context, scored: tokens, models: 1, predictions: 0 };
    let bytes = states_bytes(spec, tokens);
    let storage = evaluate::storage_for(bytes + peak_ram_bytes(spec, &load, &Storage::Memory), None);
    let need = match &storage {
        Storage::Memory => None,
        Storage::Scratch(directory) => {
            Some(Need { what: "scratch files", directory: directory.clone(), bytes })
        }
    };
    (storage, need)
}

/// Windows of the text, evenly drawn, if there is one.
///
/// # Errors
/// When a text cannot be read or is shorter than a window, the model cannot be evaluated, or there is no room for scratch
/// files.
pub(super) fn prepare(matches: &ArgMatches, source: &Opened, is_streamed: bool) -> Result<Option<Prepared>> {
    let Some(texts) = feedback::windows(matches, source, is_streamed)? else { return Ok(None) };
    let context = texts.windows.context;
    let tokens = texts.windows.drawn(WINDOWS);
    let drawn = tokens.len() / context;
    let (storage, need) = self::storage(source.store()?.spec(), tokens.len(), context);
    let ignores_space = matches.try_get_one::<bool>("ignore-space").ok().flatten().copied();
    if let Some(need) = need.filter(|_| !ignores_space.unwrap_or(false)) {
        pipeline::check_space(&[need], OR_IGNORE_SPACE)?;
    }
    let quiet = matches.get_flag("quiet");
    if !quiet {
        console::note(format_args!(
            "types are chosen by sensitivity: {drawn} windows of {context} tokens go through the model, forwards and backwards"
        ));
    }
    Ok(Some(Prepared { tokens, context, storage, layers: Layers::new(quiet) }))
}

impl Prepared {
    /// The measurement.
    pub(super) fn sensitivities(&mut self, threads: usize) -> Sensitivities<'_> {
        Sensitivities::new(Settings {
            tokens: &self.tokens,
            context: self.context,
            storage: self.storage.clone(),
            threads,
            observer: &mut self.layers,
        })
    }
}

/// `[{name, tensors, parameters, kappa, by_weights, divergences: {TYPE: KL}}]`, null without a text.
pub(super) fn to_json(found: Option<&[TensorSensitivity]>) -> Value {
    let of_tensor = |tensor: &TensorSensitivity| {
        json!({
            "name": tensor.name,
            "tensors": tensor.tensors,
            "parameters": tensor.parameters,
            "kappa": tensor.kappa,
            "by_weights": tensor.by_weights,
            "divergences": tensor.divergences,
        })
    };
    found.map_or(Value::Null, |found| found.iter().map(of_tensor).collect())
}

/// A table, the most sensitive tensors first.
pub(super) fn print(found: &[TensorSensitivity], page: &mut Page) {
    if found.is_empty() {
        return;
    }
    let mut rows: Vec<&TensorSensitivity> = found.iter().collect();
    let rate = |tensor: &TensorSensitivity| tensor.by_weights / tensor.parameters.max(1) as f64;
    rows.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then(a.name.cmp(&b.name)));
    page.line(
        "sensitivity: KL divergence for a relative squared error of 1, of all and of a million weights",
    );
    let width = rows.iter().take(MOST_ROWS).map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows.iter().take(MOST_ROWS) {
        let more = if row.tensors > 1 { format!(" and {} more", row.tensors - 1) } else { String::new() };
        let guess = if row.kappa.is_none() { " (no gradient: mean of the others)" } else { "" };
        page.line(format_args!(
            "  {:<width$} {:>12.4e} {:>12.4e}{more}{guess}",
            row.name,
            row.by_weights,
            1e6 * rate(row)
        ));
    }
    if rows.len() > MOST_ROWS {
        page.line(format_args!("  and {} more; --json has all", rows.len() - MOST_ROWS));
    }
}
