//! `requant inspect`: what is in a checkpoint, a GGUF file or an MLX directory.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::console::{self, Page};
use super::model::{self, Connected};
use super::size::human;
use super::{Subcommand, applies, named};
use crate::artifact::Artifact;
use crate::error::Result;
use crate::plan::TypeTotals;

mod tensor;

/// Longest metadata value printed whole.
const MAX_VALUE_CHARS: usize = 100;

/// The subcommand.
pub(super) struct Inspect;

impl Subcommand for Inspect {
    fn command(&self) -> Command {
        Command::new("inspect")
            .about("List tensors, types, shapes, bits per weight and metadata")
            .arg(super::path_argument(
                "PATH",
                "Checkpoint directory, GGUF file, MLX directory, .safetensors file, hub id org/name[@revision]",
            ))
            .arg(Arg::new("TENSOR").help("Name of a tensor: show what its weights are like, and a histogram"))
            .args(model::arguments())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let path = super::path(matches, "PATH");
        let tensor = matches.get_one::<String>("TENSOR");
        tensor.map_or(Ok(()), |_| tensor::check(path))?;
        let artifact = open(path, matches)?;
        if let Some(name) = tensor {
            return tensor::show(path, &artifact, name, matches.get_flag("json"));
        }
        let mut types: BTreeMap<&str, TypeTotals> = BTreeMap::new();
        for tensor in &artifact.tensors {
            let totals = types.entry(&tensor.type_name).or_default();
            totals.tensors += 1;
            totals.parameters += tensor.parameters();
            totals.bytes += tensor.bytes;
        }
        let (parameters, bytes) = (artifact.parameters(), artifact.tensor_bytes());
        let bits_per_weight = 8.0 * bytes as f64 / parameters.max(1) as f64;
        if matches.get_flag("json") {
            let files: Vec<_> =
                artifact.files.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
            return console::print_json(&json!({
                "container": artifact.container,
                "parameters": parameters,
                "bytes": bytes,
                "bits_per_weight": bits_per_weight,
                "types": types,
                "files": files,
                "metadata": artifact.metadata.iter().cloned().collect::<serde_json::Map<_, _>>(),
                "tensors": artifact.tensors,
            }));
        }
        let mut page = Page::default();
        for (key, value) in &artifact.metadata {
            page.line(format_args!("{key} = {}", shortened(&value.to_string())));
        }
        let width = types.keys().map(|name| name.len()).max().unwrap_or(0).max(14);
        for tensor in &artifact.tensors {
            page.line(format_args!(
                "{:<width$} {:<20} {}",
                tensor.type_name,
                format!("{:?}", tensor.shape),
                tensor.name
            ));
        }
        for (name, totals) in &types {
            page.line(format_args!(
                "{name:<width$} {:>8} tensors {:>16} weights {:>18} bytes",
                totals.tensors, totals.parameters, totals.bytes
            ));
        }
        for (name, bytes) in &artifact.files {
            page.line(format_args!("file {name}: {bytes} bytes"));
        }
        page.line(format_args!(
            "{}: {} tensors, {:.3} G parameters, {}, {bits_per_weight:.3} bits per weight",
            artifact.container,
            artifact.tensors.len(),
            parameters as f64 / 1e9,
            human(bytes)
        ));
        page.print()
    }
}

/// What is at `path`, or in the repository it names.
fn open(path: &Path, matches: &ArgMatches) -> Result<Artifact> {
    named::check(path)?;
    applies::check_local(matches, &[path], &["revision", "cache-dir", "connections"])?;
    let Some(id) = named::hub_id(path) else { return Artifact::open(path) };
    let (id, environment) = model::on_hub(id, matches)?;
    let stop = super::stop_on_signal();
    if environment.offline {
        return Artifact::from_source(&model::offline(&id, &environment, &stop)?);
    }
    let connected = Connected::open(&id, &environment, None, matches, &stop)?;
    Artifact::from_source(&connected.source)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
