//! A report about a result as one page of HTML: how it was made, its sizes, its errors, how far its predictions are from the
//! original's. The page needs nothing else: no network, no script. Everything in it that comes from elsewhere is escaped.
//!
//! What was measured comes in the form of `--json` (docs/json.md), as the manifest keeps it.

use serde_json::Value;

use crate::error::Result;
use crate::pipeline::Manifest;

mod escape;
mod facts;
mod measured;
mod plot;
mod sizes;
mod weights;

use escape::escape;

/// Look of the page, light and dark.
const STYLE: &str = include_str!("html_report/style.css");

/// What a page is about.
pub(crate) struct Subject<'a> {
    /// The result's path.
    pub(crate) title: &'a str,
    /// What is known beside the manifest: a name and a value.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// How it was made, and the errors of its tensors.
    pub(crate) manifest: Option<&'a Manifest>,
    /// Perplexity, and `against`: the distance from the original.
    pub(crate) measured: Option<&'a Value>,
}

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn page(subject: &Subject<'_>) -> Result<String> {
    let Subject { title, facts, manifest, measured } = subject;
    let measured = measured.or_else(|| manifest.and_then(|manifest| manifest.validation.as_ref()));
    let mut body = facts::head(title, *manifest, measured);
    body += &facts::table(facts, *manifest, measured);
    if let Some(manifest) = manifest {
        body += &sizes::section(manifest)?;
        body += &weights::section(manifest)?;
    }
    if let Some(measured) = measured {
        body += &measured::section(measured)?;
    }
    if let Some(manifest) = manifest {
        body += &facts::files(manifest);
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}<footer>requant {}</footer>\n</main>\n</body>\n</html>\n",
        escape(title),
        env!("CARGO_PKG_VERSION")
    ))
}

/// A table: names of columns, those of numbers to the right; rows of cells that are HTML already.
fn table(columns: &[(&str, bool)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let class = |is_number: bool| if is_number { " class=\"n\"" } else { "" };
    let mut html = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
    for (name, is_number) in columns {
        html += &format!("<th{}>{}</th>", class(*is_number), escape(name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in rows {
        html += "<tr>";
        for (cell, (_, is_number)) in row.iter().zip(columns) {
            html += &format!("<td{}>{cell}</td>", class(*is_number));
        }
        html += "</tr>\n";
    }
    html + "</tbody>\n</table></div>\n"
}

/// What is worth a look but not everybody's.
fn folded(summary: &str, html: &str) -> String {
    format!("<details><summary>{}</summary>\n{html}</details>\n", escape(summary))
}

/// A fraction as per cent.
fn percent(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.places$} %", 100.0 * value))
}

#[cfg(test)]
mod tests;
