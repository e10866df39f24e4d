//! Sizes: by what tensors are for, by type, by layer.

use std::collections::BTreeMap;

use super::escape::code;
use super::plot::{Line, Plot};
use super::table;
use crate::contents::{self, Kind, Tensor, Totals};
use crate::error::Result;
use crate::human::human;
use crate::pipeline::Manifest;

/// Kinds whose bits are drawn layer by layer: those with most weights.
pub(super) const DRAWN: [(Kind, &str); 4] = [
    (Kind::Attention, "attention"),
    (Kind::FeedForward, "feed-forward"),
    (Kind::RoutedExperts, "routed experts"),
    (Kind::SharedExperts, "shared experts"),
];

/// The section.
pub(super) fn section(manifest: &Manifest) -> Result<String> {
    let tensors = contents::tensors(manifest);
    let all = Totals::of(&tensors);
    let rows = contents::by_kind(&tensors).into_iter().flat_map(|(kind, types)| {
        let mut is_first = true;
        types.into_iter().map(move |(type_name, totals)| {
            let name = if std::mem::take(&mut is_first) { kind.name() } else { "" };
            let share = 100.0 * totals.bytes as f64 / all.bytes.max(1) as f64;
            let bits = if totals.parameters == 0 {
                "-".to_owned()
            } else {
                format!("{:.3}", totals.bits_per_weight())
            };
            vec![
                name.to_owned(),
                code(type_name),
                totals.tensors.to_string(),
                totals.parameters.to_string(),
                bits,
                human(totals.bytes),
                format!("<span class=\"bar\" style=\"width:{share:.2}%\" title=\"{share:.2} %\"></span>"),
            ]
        })
    });
    let columns = [
        ("tensors", false),
        ("type", false),
        ("number", true),
        ("weights", true),
        ("bits per weight", true),
        ("bytes", true),
        ("share of all bytes", false),
    ];
    let table =
        table(&columns, rows).replace("<td><span class=\"bar\"", "<td class=\"w\"><span class=\"bar\"");
    Ok(format!("<h2>Sizes</h2>\n{table}{}", by_layer(&tensors)?))
}

/// Bits per weight by layer, where layers differ.
fn by_layer(tensors: &[Tensor<'_>]) -> Result<String> {
    let mut lines = Vec::new();
    let mut is_flat = true;
    for (kind, name) in DRAWN {
        let mut layers: BTreeMap<usize, Totals> = BTreeMap::new();
        for tensor in tensors.iter().filter(|tensor| tensor.kind == kind && tensor.parameters > 0) {
            if let Some(layer) = tensor.layer {
                layers.entry(layer).or_default().add(tensor);
            }
        }
        let points: Vec<(f64, f64)> =
            layers.iter().map(|(&layer, totals)| (layer as f64, totals.bits_per_weight())).collect();
        is_flat &= points.windows(2).all(|pair| (pair[0].1 - pair[1].1).abs() < 1e-3);
        lines.push(Line { name: name.to_owned(), points });
    }
    if is_flat {
        return Ok(String::new());
    }
    let plot = Plot {
        about: "Bits per weight by layer",
        across: "layer",
        places: &[],
        unit: "",
        from_zero: false,
        lines,
    };
    Ok(format!("<h3>Bits per weight by layer</h3>\n{}", plot.figure()?))
}
