//! The top of the page, where it comes from, and its files.

use serde_json::Value;

use super::escape::{code, escape};
use super::{folded, percent};
use crate::contents::{self, Totals};
use crate::human::human;
use crate::pipeline::Manifest;
use crate::shell;

/// Lines of a recipe that are shown without being asked for.
const SHOWN_LINES: usize = 12;

/// Title, and the numbers that matter most.
pub(super) fn head(title: &str, manifest: Option<&Manifest>, measured: Option<&Value>) -> String {
    let mut tiles = String::new();
    let mut tile = |value: &str, name: &str| {
        tiles +=
            &format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape(value), escape(name));
    };
    if let Some(manifest) = manifest {
        let totals = Totals::of(&contents::tensors(manifest));
        tile(&human(manifest.files.iter().map(|file| file.bytes).sum()), "all files");
        tile(&format!("{:.3}", totals.bits_per_weight()), "bits per weight");
    }
    if let Some(measured) = measured {
        let against = &measured["against"];
        if let Some(value) = against["mean_kld"].as_f64() {
            tile(&format!("{value:.5}"), "mean KL divergence from the original");
        }
        if let Some(value) = against["top1_agreement"].as_f64() {
            tile(&percent(Some(value), 2), "same likeliest token");
        }
        if let Some(value) = measured["perplexity"].as_f64() {
            let of_original = against["perplexity"].as_f64();
            let name = of_original
                .map_or("perplexity".to_owned(), |of| format!("perplexity; {of:.3} of the original"));
            tile(&format!("{value:.3}"), &name);
        }
    }
    let from = manifest.map_or(String::new(), |manifest| {
        format!(
            "<p class=\"soft\">{} from {}</p>\n",
            escape(&manifest.format.to_lowercase()),
            code(&manifest.source)
        )
    });
    format!("<h1>{}</h1>\n{from}<div class=\"tiles\">\n{tiles}</div>\n", escape(title))
}

/// What it was made from, how, and what was checked.
pub(super) fn table(
    facts: &[(&'static str, String)],
    manifest: Option<&Manifest>,
    measured: Option<&Value>,
) -> String {
    let mut rows: Vec<(String, String)> =
        facts.iter().map(|(name, value)| ((*name).to_owned(), escape(value))).collect();
    let mut after = String::new();
    if let Some(manifest) = manifest {
        let mut row = |name: &str, html: String| rows.push((name.to_owned(), html));
        row("made by", format!("requant {}", escape(&manifest.requant_version)));
        row("command", code(&shell::line(manifest.command.iter().map(String::as_str))));
        if let Some(model) = &manifest.model {
            let license = model.license_name.as_ref().or(model.license.as_ref());
            license.iter().for_each(|license| row("license of the original", escape(license)));
        }
        if let Some(imatrix) = &manifest.imatrix {
            let html = format!(
                "{}, {} chunks, used for {} tensors; SHA-256 {}",
                code(&imatrix.file),
                imatrix.chunks,
                imatrix.tensors,
                code(&imatrix.sha256)
            );
            row("importance matrix", html);
        }
        if let Some(calibration) = &manifest.calibration {
            let texts: Vec<String> = calibration.texts.iter().map(|text| code(&text.file)).collect();
            let html = format!(
                "error feedback, {}, {} tokens of {}",
                escape(&calibration.mode),
                calibration.tokens,
                texts.join(", ")
            );
            row("calibration", html);
        }
        checks(manifest, measured, &mut row);
        if let Some(recipe) = &manifest.recipe {
            let html = format!("<pre>{}</pre>\n", code(recipe));
            after = if recipe.lines().count() > SHOWN_LINES {
                folded("Recipe of the types", &html)
            } else {
                format!("<h3>Recipe of the types</h3>\n{html}")
            };
        }
    }
    let rows: String = rows
        .iter()
        .map(|(name, html)| format!("<tr><th scope=\"row\">{}</th><td>{html}</td></tr>\n", escape(name)))
        .collect();
    format!("<h2>Origin and checks</h2>\n<table><tbody>\n{rows}</tbody></table>\n{after}")
}

/// What was held against what.
fn checks(manifest: &Manifest, measured: Option<&Value>, row: &mut dyn FnMut(&str, String)) {
    let proven = manifest.source_files.iter().filter(|file| file.sha256.is_some()).count();
    let files = manifest.source_files.len();
    let class = if proven == files { "good" } else { "bad" };
    row("source files", format!("<span class=\"{class}\">{proven} of {files} with a known SHA-256</span>"));
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (files, tensors) = (manifest.files.len(), manifest.tensors.len());
    let (files, tensors) = (counted(files, "file"), counted(tensors, "stored tensor"));
    row("result", format!("{files} and {tensors}, with a SHA-256 each"));
    row(
        "tensors decoded and compared",
        match &manifest.error_report {
            Some(report) => {
                format!(
                    "{}, relative error of all weights {}",
                    report.tensors.len(),
                    percent(report.relative_error, 3)
                )
            }
            None => "no (--error-report)".to_owned(),
        },
    );
    let validation = match measured.filter(|_| manifest.validation.is_some()) {
        None => "no (--validate)".to_owned(),
        Some(found) => {
            let limit = found["max_kld"]
                .as_f64()
                .map_or(String::new(), |limit| format!(", at most {limit} was asked for"));
            let is_good = found["passed"] == true;
            let (class, word) = if is_good { ("good", "done") } else { ("bad", "failed") };
            format!(
                "<span class=\"{class}\">{word}</span> on {}{limit}",
                code(found["text"].as_str().unwrap_or_default())
            )
        }
    };
    row("predictions compared with the source's", validation);
}

/// Digests of all files.
pub(super) fn files(manifest: &Manifest) -> String {
    let rows =
        manifest.files.iter().map(|file| vec![code(&file.name), file.bytes.to_string(), code(&file.sha256)]);
    let html = table_of_files(rows);
    let of_source = manifest.source_files.iter().map(|file| {
        let sha256 = file.sha256.as_deref().map_or("-".to_owned(), code);
        vec![code(&file.name), file.bytes.to_string(), sha256]
    });
    format!(
        "<h2>Files</h2>\n{html}{}",
        folded("Files of the source that were read", &table_of_files(of_source))
    )
}

fn table_of_files(rows: impl Iterator<Item = Vec<String>>) -> String {
    super::table(&[("file", false), ("bytes", true), ("SHA-256", false)], rows)
}
