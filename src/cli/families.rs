//! `requant families`: what is read, and what can be made of it.
//!
//! | source | what is made of it |
//! |---|---|
//! | checkpoint | a result of every target |
//! | GGUF file | results of targets that take GGUF files |
//! | MLX directory | nothing; it is evaluated |

use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::Subcommand;
use super::console::{self, Page};
use crate::checkpoint;
use crate::error::Result;
use crate::family::{FAMILIES, Family};
use crate::plan::{TARGETS, Target};

/// The subcommand.
pub(super) struct Families;

/// What a model can be stored as.
struct Source {
    name: &'static str,
    /// Whether this version reads a family so.
    reads: fn(&Family) -> bool,
    /// Whether a target takes a family so.
    taken_by: fn(&dyn Target, &Family) -> bool,
}

/// Every kind of source.
const SOURCES: &[Source] = &[
    Source {
        name: "checkpoint",
        reads: |family| family.checkpoint.is_some(),
        taken_by: |target, family| !target.is_packing() || family.is_packable(),
    },
    Source { name: "GGUF", reads: |_| true, taken_by: |target, _| target.takes_gguf() },
    Source { name: "MLX", reads: |family| family.checkpoint.is_some(), taken_by: |_, _| false },
];

impl Source {
    /// What can be made of it; `None` when it is not read.
    fn targets(&self, family: &Family) -> Option<Vec<&'static str>> {
        let taken = TARGETS.iter().filter(|target| (self.taken_by)(**target, family));
        let taken = taken.map(|target| target.family());
        (self.reads)(family).then(|| taken.collect())
    }
}

impl Subcommand for Families {
    fn command(&self) -> Command {
        Command::new("families")
            .about("List what can be read, and what can be made of it")
            .arg(super::json_argument())
            .after_help(
                "A single model can have something that a target has no place for; requant plan says so.",
            )
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        if matches.get_flag("json") {
            return console::print_json(&json!({
                "families": FAMILIES.iter().map(|family| to_json(family)).collect::<Vec<_>>(),
                "quantization_methods": checkpoint::quantization_methods().collect::<Vec<_>>(),
            }));
        }
        let rows = table();
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut page = Page::default();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            page.line(cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        page.line("");
        page.line("Each of them can be evaluated (requant perplexity).");
        page.line(format_args!("Checkpoints may be unquantized, or quantized as {}.", methods()));
        page.print()
    }
}

fn to_json(family: &Family) -> Value {
    let sources: serde_json::Map<String, Value> = SOURCES
        .iter()
        .filter_map(|source| {
            let targets = source.targets(family)?;
            Some((source.name.to_owned(), json!({ "targets": targets, "evaluated": true })))
        })
        .collect();
    json!({ "model_type": family.model_type, "architecture": family.gguf.name, "sources": sources })
}

/// A head and a row for each family: its names, and what can be made of each source.
fn table() -> Vec<Vec<String>> {
    let mut head = vec!["model_type".to_owned(), "GGUF name".to_owned()];
    head.extend(SOURCES.iter().map(|source| format!("from {}", source.name)));
    let cell = |source: &Source, family: &Family| match source.targets(family) {
        None => "not read".to_owned(),
        Some(targets) if targets.is_empty() => "evaluated".to_owned(),
        Some(targets) => targets.join(", "),
    };
    let of_family = |family: &&Family| {
        let names = [family.model_type.to_owned(), family.gguf.name.to_owned()];
        names.into_iter().chain(SOURCES.iter().map(|source| cell(source, family))).collect()
    };
    [head].into_iter().chain(FAMILIES.iter().map(of_family)).collect()
}

fn methods() -> String {
    checkpoint::quantization_methods().collect::<Vec<_>>().join(", ")
}

/// The page of the documentation.
pub(super) fn markdown() -> String {
    let mut rows = table().into_iter().enumerate().map(|(number, mut row)| {
        // Names as they are written in files.
        row.iter_mut().take(2).filter(|_| number > 0).for_each(|name| *name = format!("`{name}`"));
        format!("| {} |", row.join(" | "))
    });
    let head = rows.next().unwrap_or_default();
    let line = "|---".repeat(2 + SOURCES.len()) + "|";
    let body: Vec<String> = rows.collect();
    format!(
        "# What is read, and what can be made of it\n\
         \n\
         This page is made by `requant reference families > docs/families.md`; `requant families` prints the same.\n\
         \n\
         `model_type` is that of config.json, the GGUF name is `general.architecture`. Every source that is read can be evaluated \
         (`requant perplexity`).\n\
         Targets are described by `requant formats`. A single model can have something that a target has no place for; `requant plan` says so.\n\
         \n\
         {head}\n{line}\n{}\n\
         \n\
         Checkpoints may be unquantized (BF16, F16, F32), or quantized as {}. Details are in [compatibility.md](compatibility.md).\n",
        body.join("\n"),
        methods()
    )
}
