//! `requant inspect PATH TENSOR`: what the weights of one tensor are like.

use std::path::Path;

use serde_json::json;

use crate::artifact::Artifact;
use crate::cli::console::{self, Page};
use crate::cli::named;
use crate::error::{Error, Result};
use crate::evaluate::{self, StoredModel};
use crate::opened::Opened;

/// Columns of the longest bar.
const BAR_COLUMNS: u64 = 50;

/// Refuses models that are not on this machine.
///
/// # Errors
/// Says what to do.
pub(super) fn check(path: &Path) -> Result<()> {
    match named::hub_id(path) {
        None => Ok(()),
        Some(id) => Err(Error::Request(format!(
            "{id}: the weights of a tensor are read from models on this machine; fetch it first, with requant fetch"
        ))),
    }
}

/// Reads the tensor and prints what was found.
pub(super) fn show(path: &Path, artifact: &Artifact, name: &str, is_json: bool) -> Result<()> {
    let model = Opened::open(path)?;
    let found = evaluate::statistics(StoredModel { model: &model, artifact }, name)?;
    let of_file = artifact.tensors.iter().filter(|tensor| found.names.contains(&tensor.name));
    if is_json {
        let histogram = found.histogram.iter().enumerate().map(|(number, count)| {
            let (from, to) = found.bin(number);
            json!({ "from": from, "to": to, "count": count })
        });
        return console::print_json(&json!({
            "tensors": of_file.collect::<Vec<_>>(),
            "elements": found.elements,
            "minimum": found.minimum,
            "maximum": found.maximum,
            "mean": found.mean,
            "standard_deviation": found.deviation,
            "zeros": found.zeros,
            "histogram": histogram.collect::<Vec<_>>(),
        }));
    }
    let mut page = Page::default();
    for tensor in of_file {
        page.line(format_args!(
            "{}: {} {:?}, {} bytes in {}",
            tensor.name, tensor.type_name, tensor.shape, tensor.bytes, tensor.file
        ));
    }
    page.line(format_args!("{} weights, {} of them 0", found.elements, found.zeros));
    page.line(format_args!("from {:.6} to {:.6}", found.minimum, found.maximum));
    page.line(format_args!("mean {:.6}, standard deviation {:.6}", found.mean, found.deviation));
    let most = found.histogram.iter().copied().max().unwrap_or(0).max(1);
    for (number, &count) in found.histogram.iter().enumerate() {
        let (from, to) = found.bin(number);
        let bar = "#".repeat((count * BAR_COLUMNS).div_ceil(most) as usize);
        page.line(format_args!("{from:>11.5} {to:>11.5} {count:>12} {bar}"));
    }
    page.print()
}
