//! The model card of a result: README.md as the Hugging Face hub reads it, from the manifest alone.
//!
//! The front matter says what the model was made from and under which license. The text says how to run it, which types it
//! has, what was measured, how it was made, and what every file must be. The same manifest gives the same card.
//!
//! Source: Hugging Face hub documentation, "Model Cards" (`base_model`, `base_model_relation`, `library_name`).

use crate::contents::{self, Tensor, Totals};
use crate::human::human;
use crate::pipeline::{CARD, FileRecord, Manifest, ModelRecord};
use crate::plan::{self, Target};

mod command;
mod front_matter;
mod markdown;
mod usage;

#[cfg(test)]
pub(crate) use command::{WHERE, WHETHER};
use markdown::{cell, code, code_block, plain};

/// Types of one kind that are listed by name; the others are counted.
const LISTED_TYPES: usize = 4;

/// Lines of a recipe that is shown.
const LISTED_LINES: usize = 40;

/// The card of the result that `manifest` describes.
pub(crate) fn markdown(manifest: &Manifest) -> String {
    let unknown = ModelRecord::default();
    let model = manifest.model.as_ref().unwrap_or(&unknown);
    let target = plan::find_format(&manifest.format).ok().map(|(target, _)| target);
    let tensors = contents::tensors(manifest);
    let mut page = front_matter::front_matter(manifest, model, target);
    page += &heading(manifest, model, &tensors, target);
    page += &usage::section(manifest, target);
    page += &types(&tensors);
    page += &quality(manifest);
    page += &origin(manifest);
    page += &files(manifest);
    page
}

/// Title, and what it is in a sentence.
fn heading(
    manifest: &Manifest,
    model: &ModelRecord,
    tensors: &[Tensor<'_>],
    target: Option<&dyn Target>,
) -> String {
    let name = if model.name.is_empty() { "A model" } else { model.name.as_str() };
    let totals = Totals::of(tensors);
    let of = match &model.base_model {
        Some(id) => format!("[{}](https://huggingface.co/{id})", plain(id)),
        None => plain(name),
    };
    let bytes = manifest.files.iter().filter(|file| file.name != CARD).map(|file| file.bytes).sum();
    let family = target.map_or(String::new(), |target| format!(" ({})", target.family()));
    let license = match (&model.license_name, &model.license) {
        (Some(name), _) | (None, Some(name)) => {
            format!("The license of the original applies: {}.\n\n", plain(name))
        }
        (None, None) => "The license of the original applies.\n\n".to_owned(),
    };
    format!(
        "\n# {} in {}\n\n{of}, converted to {}{family} by requant {}: {} parameters, {}, {:.3} bits per weight. {license}",
        plain(name),
        plain(&manifest.format.to_lowercase()),
        code(&manifest.format.to_lowercase()),
        plain(&manifest.requant_version),
        short(totals.parameters),
        human(bytes),
        totals.bits_per_weight(),
    )
}

/// A number of weights in billions or millions.
fn short(parameters: u64) -> String {
    let (value, unit) = if parameters >= 1_000_000_000 {
        (parameters as f64 / 1e9, "G")
    } else {
        (parameters as f64 / 1e6, "M")
    };
    format!("{value:.2} {unit}")
}

/// Types and bits per weight of each kind of tensor.
fn types(tensors: &[Tensor<'_>]) -> String {
    let mut page =
        "## Types\n\n| tensors | types | weights | bits per weight |\n|---|---|---:|---:|\n".to_owned();
    for (kind, types) in contents::by_kind(tensors) {
        let mut by_weights: Vec<(&str, Totals)> = types.into_iter().collect();
        by_weights.sort_by_key(|(name, totals)| (std::cmp::Reverse(totals.bytes), *name));
        let mut all = Totals::default();
        for (_, totals) in &by_weights {
            all.tensors += totals.tensors;
            all.parameters += totals.parameters;
            all.bytes += totals.bytes;
        }
        let mut names: Vec<String> =
            by_weights.iter().take(LISTED_TYPES).map(|(name, _)| cell(&code(name))).collect();
        if by_weights.len() > LISTED_TYPES {
            names.push(format!("{} more", by_weights.len() - LISTED_TYPES));
        }
        let bits = if all.parameters == 0 { "-".to_owned() } else { format!("{:.3}", all.bits_per_weight()) };
        page += &format!("| {} | {} | {} | {bits} |\n", kind.name(), names.join(", "), all.parameters);
    }
    page
}

/// What was measured.
fn quality(manifest: &Manifest) -> String {
    let mut page = "\n## Distance from the original\n\n".to_owned();
    let number = |value: &serde_json::Value| value.as_f64();
    match &manifest.validation {
        Some(found) => {
            let against = &found["against"];
            let text = found["text"].as_str().map_or("a text", |path| command::base_name(path));
            page += &format!(
                "Measured while it was made, on {} ({} windows of {} tokens), against the weights that it was made from.\n\n",
                code(text),
                found["windows"],
                found["context"]
            );
            page += "| measure | value |\n|---|---:|\n";
            let rows = [
                ("perplexity", number(&found["perplexity"]), 4),
                ("perplexity of the original", number(&against["perplexity"]), 4),
                ("KL divergence, mean", number(&against["mean_kld"]), 6),
                ("KL divergence, 99 % of positions below", number(&against["p99_kld"]), 6),
                ("same likeliest token, %", number(&against["top1_agreement"]).map(|share| 100.0 * share), 2),
            ];
            for (name, value, places) in rows {
                if let Some(value) = value {
                    page += &format!("| {name} | {value:.places$} |\n");
                }
            }
        }
        None => {
            page += "Predictions were not compared with those of the original. `requant perplexity` with `--against` does it.\n";
        }
    }
    if let Some(error) = manifest.error_report.as_ref().and_then(|report| report.relative_error) {
        page += &format!("\nRelative error of all weights together: {:.3} %.\n", 100.0 * error);
    }
    page
}

/// The command, and what else the bytes depend on.
fn origin(manifest: &Manifest) -> String {
    let mut page = "\n## How it was made\n\n".to_owned();
    page += &code_block("sh", &command::shown(&manifest.command));
    page += &format!(
        "\nSource: {}. requant {} makes the same bytes of it again, on any machine.\n",
        code(command::base_name_if_local(&manifest.source)),
        plain(&manifest.requant_version)
    );
    if let Some(imatrix) = &manifest.imatrix {
        page += &format!(
            "Errors were weighed with the importance matrix {} ({} chunks; SHA-256 {}).\n",
            code(command::base_name(&imatrix.file)),
            imatrix.chunks,
            code(&imatrix.sha256)
        );
    }
    if let Some(calibration) = &manifest.calibration {
        let texts: Vec<String> =
            calibration.texts.iter().map(|text| code(command::base_name(&text.file))).collect();
        page += &format!(
            "Rounded with error feedback ({}) on {} tokens of {}.\n",
            plain(&calibration.mode),
            calibration.tokens,
            texts.join(", ")
        );
    }
    if let Some(recipe) = &manifest.recipe {
        if recipe.lines().count() <= LISTED_LINES {
            page += "\nTypes of tensors follow this recipe:\n\n";
            page += &code_block("toml", recipe);
        } else {
            page += "Types of tensors follow a recipe, which is in the manifest.\n";
        }
    }
    page
}

/// Digests of all files but this one.
fn files(manifest: &Manifest) -> String {
    let mut page =
        "\n## Files\n\n`requant verify` holds every byte against the manifest.\n\n| file | bytes | SHA-256 |\n|---|---:|---|\n"
            .to_owned();
    for FileRecord { name, bytes, sha256 } in manifest.files.iter().filter(|file| file.name != CARD) {
        page += &format!("| {} | {bytes} | `{sha256}` |\n", cell(&code(name)));
    }
    page
}
