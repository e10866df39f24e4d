//! How far weights are from those of the source: by layer and kind, and the worst tensors.

use std::collections::BTreeMap;

use super::escape::code;
use super::plot::{Line, Plot};
use super::sizes::DRAWN;
use super::{folded, percent, table};
use crate::contents::{Kind, layer_of};
use crate::error::Result;
use crate::pipeline::{ErrorReport, Manifest, TensorError};

/// Tensors that are listed.
const WORST: usize = 25;

/// The section; nothing without an error report.
pub(super) fn section(manifest: &Manifest) -> Result<String> {
    let Some(report) = &manifest.error_report else { return Ok(String::new()) };
    Ok(format!("<h2>Error of the weights</h2>\n{}{}{}", all(report), by_layer(report)?, worst(report)))
}

fn all(report: &ErrorReport) -> String {
    let exact = report.tensors.iter().filter(|tensor| tensor.relative_error == Some(0.0)).count();
    format!(
        "<p>|y - x| / |x| of what was written (y) and the source (x). All weights together: {}, cosine {}. {exact} of {} \
         tensors are as they were.</p>\n",
        percent(report.relative_error, 3),
        report.cosine.map_or("-".to_owned(), |cosine| format!("{cosine:.8}")),
        report.tensors.len()
    )
}

/// Mean squares of one layer.
#[derive(Default)]
struct Squares {
    weighted: f64,
    weights: f64,
}

impl Squares {
    fn add(&mut self, tensor: &TensorError) {
        if let Some(error) = tensor.relative_error {
            self.weighted += error * error * tensor.parameters as f64;
            self.weights += tensor.parameters as f64;
        }
    }

    fn root(&self) -> f64 {
        (self.weighted / self.weights).sqrt()
    }
}

fn by_layer(report: &ErrorReport) -> Result<String> {
    let mut by_kind: BTreeMap<Kind, BTreeMap<usize, Squares>> = BTreeMap::new();
    for tensor in &report.tensors {
        if let Some(layer) = layer_of(&tensor.name) {
            by_kind.entry(Kind::of(&tensor.name)).or_default().entry(layer).or_default().add(tensor);
        }
    }
    let lines: Vec<Line> = DRAWN
        .iter()
        .map(|(kind, name)| Line {
            name: (*name).to_owned(),
            points: by_kind.get(kind).map_or(Vec::new(), |layers| {
                layers.iter().map(|(&layer, squares)| (layer as f64, 100.0 * squares.root())).collect()
            }),
        })
        .collect();
    let mut layers: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        for (layer, value) in &line.points {
            let row = layers.entry(*layer as usize).or_insert_with(|| vec!["-".to_owned(); DRAWN.len()]);
            row[number] = format!("{value:.3} %");
        }
    }
    let columns: Vec<(&str, bool)> =
        [("layer", true)].into_iter().chain(DRAWN.iter().map(|(_, name)| (*name, true))).collect();
    let rows = layers.into_iter().map(|(layer, row)| [vec![layer.to_string()], row].concat());
    let plot = Plot {
        about: "Relative error of weights by layer and kind",
        across: "layer",
        places: &[],
        unit: " %",
        from_zero: true,
        lines,
    };
    let figure = plot.figure()?;
    if figure.is_empty() {
        return Ok(figure);
    }
    Ok(format!(
        "<h3>By layer and kind</h3>\n<p class=\"soft\">Root of the mean square over tensors, weighted by their number of weights.</p>\n{figure}{}",
        folded("The same as a table", &table(&columns, rows))
    ))
}

fn worst(report: &ErrorReport) -> String {
    let off = report.tensors.iter().filter(|tensor| tensor.relative_error != Some(0.0));
    let rows = off.take(WORST).map(|tensor| {
        vec![
            code(&tensor.name),
            code(&tensor.type_name),
            tensor.parameters.to_string(),
            percent(tensor.relative_error, 3),
            tensor.cosine.map_or("-".to_owned(), |cosine| format!("{cosine:.7}")),
        ]
    });
    let columns =
        [("tensor", false), ("type", false), ("weights", true), ("relative error", true), ("cosine", true)];
    format!("<h3>Worst tensors</h3>\n{}", table(&columns, rows))
}
