//! The table of `--error-report`.

use super::console::Page;
use crate::pipeline::{ErrorReport, TensorError};

/// Rows that are printed; the manifest has all.
const SHOWN: usize = 40;

/// Adds the worst tensors to `page`, and how it is on the whole.
pub(super) fn print(report: &ErrorReport, page: &mut Page) {
    let is_off = |tensor: &&TensorError| tensor.relative_error != Some(0.0);
    let off = report.tensors.iter().filter(is_off).count();
    let shown = || report.tensors.iter().filter(is_off).take(SHOWN);
    let width = shown().map(|tensor| tensor.type_name.len()).max().unwrap_or(0).max(14);
    page.line(format_args!(
        "{:>14} {:>12} {:>14}  {:<width$} tensor",
        "relative error", "cosine", "parameters", "type"
    ));
    for tensor in shown() {
        page.line(format_args!(
            "{:>14} {:>12} {:>14}  {:<width$} {}",
            percent(tensor.relative_error),
            cosine(tensor.cosine),
            tensor.parameters,
            tensor.type_name,
            tensor.name
        ));
    }
    if off > SHOWN {
        page.line(format_args!("and {} more in the manifest", off - SHOWN));
    }
    page.line(format_args!(
        "{} of {} tensors as they were; all together: relative error {}, cosine {}",
        report.tensors.len() - off,
        report.tensors.len(),
        percent(report.relative_error),
        cosine(report.cosine)
    ));
}

fn percent(error: Option<f64>) -> String {
    error.map_or("not a number".into(), |error| format!("{:.4} %", 100.0 * error))
}

fn cosine(cosine: Option<f64>) -> String {
    cosine.map_or("not a number".into(), |cosine| format!("{cosine:.8}"))
}
