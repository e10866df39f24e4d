//! How well it predicts a text, and how far its predictions, hidden states and choices of experts are from the original's.

use serde_json::Value;

use super::escape::escape;
use super::plot::{Line, Plot};
use super::{folded, percent, table};
use crate::error::Result;

/// Percentiles: keys, and what they are called.
const PERCENTILES: [(&str, &str); 6] = [
    ("median_kld", "median"),
    ("p90_kld", "90 %"),
    ("p95_kld", "95 %"),
    ("p99_kld", "99 %"),
    ("p999_kld", "99.9 %"),
    ("max_kld", "max"),
];
/// Experts that are listed.
const WORST_EXPERTS: usize = 20;
/// Fewest tokens for an expert to be listed: of a few tokens an agreement says little.
const MIN_TOKENS: u64 = 20;

/// The section.
pub(super) fn section(measured: &Value) -> Result<String> {
    let against = &measured["against"];
    let mut page = format!("<h2>Predictions</h2>\n{}", scores(measured, against));
    if against.is_object() {
        page += &divergence(against)?;
        page += &layers(against)?;
        page += &experts(against);
    }
    Ok(page)
}

/// A value with its standard error, `scale` times, where they are there.
fn estimate(values: &Value, key: &str, scale: f64, places: usize, unit: &str) -> Option<String> {
    let value = values[key].as_f64()?;
    let error = values[format!("{key}_error")].as_f64();
    let error = error.map_or(String::new(), |error| format!(" &plusmn; {:.places$}", scale * error));
    Some(format!("{:.places$}{error}{unit}", scale * value))
}

fn scores(measured: &Value, against: &Value) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![escape(name), value]));
    };
    row("perplexity", estimate(measured, "perplexity", 1.0, 4, ""));
    row("perplexity of the original", estimate(against, "perplexity", 1.0, 4, ""));
    row("ratio of the two", estimate(against, "perplexity_ratio", 1.0, 5, ""));
    row("KL divergence, mean", estimate(against, "mean_kld", 1.0, 6, ""));
    row("same likeliest token", estimate(against, "top1_agreement", 100.0, 2, " %"));
    row(
        "probability of the right token: root mean square of the change",
        estimate(against, "rms_delta_p", 100.0, 3, " %"),
    );
    let of_prediction = &measured["mtp"];
    row(
        "prediction layer: perplexity of the second-next token",
        estimate(of_prediction, "perplexity", 1.0, 4, ""),
    );
    row("prediction layers compared: KL divergence, mean", estimate(&against["mtp"], "mean_kld", 1.0, 6, ""));
    let whole = |key: &str| measured[key].as_u64().map(|count| count.to_string());
    row("windows", whole("windows"));
    row("tokens of a window", whole("context"));
    row("tokens scored", whole("scored"));
    table(&[("measure", false), ("value", true)], rows)
}

fn divergence(against: &Value) -> Result<String> {
    let names = PERCENTILES.map(|(_, name)| name);
    let values: Vec<(f64, f64)> = PERCENTILES
        .iter()
        .enumerate()
        .filter_map(|(at, (key, _))| Some((at as f64, against[*key].as_f64()?)))
        .collect();
    let rows = values.iter().map(|&(at, value)| vec![escape(names[at as usize]), format!("{value:.6}")]);
    let table = table(&[("positions", false), ("KL divergence at most", true)], rows);
    let plot = Plot {
        about: "Percentiles of the KL divergence from the original",
        across: "positions with at most this KL divergence",
        places: &names,
        unit: "",
        from_zero: true,
        lines: vec![Line { name: "KL divergence".into(), points: values }],
    };
    Ok(format!(
        "<h3>KL divergence from the original</h3>\n{}{}",
        plot.figure()?,
        folded("The same as a table", &table)
    ))
}

/// Errors of hidden states and agreement of routers, layer by layer.
fn layers(against: &Value) -> Result<String> {
    let layers = against["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |key: &str, scale: f64| -> Vec<(f64, f64)> {
        layers
            .iter()
            .filter_map(|layer| Some((layer["layer"].as_f64()?, scale * layer[key].as_f64()?)))
            .collect()
    };
    let plot = |about, key, name: &str| {
        let lines = vec![Line { name: name.to_owned(), points: of(key, 100.0) }];
        Plot { about, across: "layer", places: &[], unit: " %", from_zero: key == "relative_error", lines }
            .figure()
    };
    let hidden = plot("Relative error of the hidden state after each layer", "relative_error", "error")?;
    let routing =
        plot("Choices of experts that are the original's, by layer", "routing_agreement", "agreement")?;
    let mut page = String::new();
    if !hidden.is_empty() {
        page += &format!("<h3>Error of the hidden state after each layer</h3>\n{hidden}");
    }
    if !routing.is_empty() {
        page += &format!("<h3>Choices of experts that are the original's</h3>\n{routing}");
    }
    if page.is_empty() {
        return Ok(page);
    }
    let rows = layers.iter().map(|layer| {
        vec![
            escape(&layer["layer"].to_string()),
            percent(layer["relative_error"].as_f64(), 3),
            layer["cosine"].as_f64().map_or("-".to_owned(), |cosine| format!("{cosine:.7}")),
            percent(layer["routing_agreement"].as_f64(), 2),
        ]
    });
    let columns = [("layer", true), ("relative error", true), ("cosine", true), ("same experts", true)];
    Ok(page + &folded("Layers as a table", &table(&columns, rows)))
}

/// Experts whose tokens changed most.
fn experts(against: &Value) -> String {
    let layers = against["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let mut seen: Vec<(f64, u64, u64, u64)> = Vec::new();
    for layer in layers {
        for expert in layer["experts"].as_array().map_or(&[][..], Vec::as_slice) {
            let numbers =
                (layer["layer"].as_u64(), expert["expert"].as_u64(), expert["original_tokens"].as_u64());
            if let ((Some(layer), Some(number), Some(tokens)), Some(agreement)) =
                (numbers, expert["agreement"].as_f64())
                && tokens >= MIN_TOKENS
            {
                seen.push((agreement, layer, number, tokens));
            }
        }
    }
    if seen.is_empty() {
        return String::new();
    }
    seen.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let rows = seen.iter().take(WORST_EXPERTS).map(|(agreement, layer, expert, tokens)| {
        vec![layer.to_string(), expert.to_string(), tokens.to_string(), percent(Some(*agreement), 2)]
    });
    let columns = [
        ("layer", true),
        ("expert", true),
        ("tokens of the original", true),
        ("that are still sent to it", true),
    ];
    format!(
        "<h3>Experts whose tokens changed most</h3>\n<p class=\"soft\">Of those that the original sends at least {MIN_TOKENS} tokens to.</p>\n{}",
        table(&columns, rows)
    )
}
