//! A measured model as JSON and as a table.

use serde_json::{Value, json};

use crate::cli::console::Page;

use crate::evaluate::{Against, Estimate, LayerReport, Prediction};

/// Experts listed for a layer: those whose tokens changed most.
const WORST_EXPERTS: usize = 3;
/// Fewest tokens for an expert to be listed.
const MIN_TOKENS: u64 = 20;

/// Keys of `against`; agreement is a fraction, and `cut_otherwise` the first token that the original's tokenizer would not
/// have cut so.
pub(in crate::cli) fn against_json(against: &Against, cut_otherwise: Option<usize>) -> Value {
    let divergence = &against.divergence;
    let mut value = json!({
        "perplexity": against.perplexity.perplexity,
        "perplexity_error": against.perplexity.error,
        "mean_kld": divergence.mean.value,
        "mean_kld_error": divergence.mean.error,
        "median_kld": divergence.percentile(0.5),
        "p90_kld": divergence.percentile(0.9),
        "p95_kld": divergence.percentile(0.95),
        "p99_kld": divergence.percentile(0.99),
        "p999_kld": divergence.percentile(0.999),
        "max_kld": divergence.max(),
        "top1_agreement": divergence.top1_agreement.value,
        "top1_agreement_error": divergence.top1_agreement.error,
        "rms_delta_p": divergence.rms_delta_p.value,
        "rms_delta_p_error": divergence.rms_delta_p.error,
        "mean_delta_p": divergence.mean_delta_p.value,
        "perplexity_ratio": divergence.ratio.value,
        "perplexity_ratio_error": divergence.ratio.error,
        "perplexity_difference": divergence.difference.value,
        "perplexity_difference_error": divergence.difference.error,
        "layers": against.layers,
        "cut_otherwise": cut_otherwise,
    });
    if let Some(prediction) = &against.prediction {
        let mut mtp = prediction_json(&prediction.original);
        mtp["mean_kld"] = prediction.divergence.mean.value.into();
        mtp["mean_kld_error"] = prediction.divergence.mean.error.into();
        mtp["same_top1"] = prediction.divergence.top1_agreement.value.into();
        value["mtp"] = mtp;
    }
    value
}

/// What a measurement is worth whose text the two tokenizers cut otherwise from this token on.
pub(in crate::cli) fn on_other_cuts(token: usize) -> String {
    format!(
        "the original's tokenizer cuts the text otherwise from token {token} on; both models were given the same tokens"
    )
}

/// Keys of `mtp`.
pub(super) fn prediction_json(prediction: &Prediction) -> Value {
    json!({
        "loss": prediction.perplexity.perplexity.ln(),
        "perplexity": prediction.perplexity.perplexity,
        "perplexity_error": prediction.perplexity.error,
        "top1_agreement": prediction.top1_agreement,
        "scored": prediction.perplexity.losses.len(),
    })
}

pub(super) fn print_prediction(prediction: &Prediction, page: &mut Page) {
    page.line(format_args!(
        "second-next token (prediction layer): perplexity {:.4} +/- {:.4}, likeliest as the main head's {:.2} %",
        prediction.perplexity.perplexity,
        prediction.perplexity.error,
        100.0 * prediction.top1_agreement
    ));
}

pub(in crate::cli) fn print_against(against: &Against, cut_otherwise: Option<usize>, page: &mut Page) {
    let divergence = &against.divergence;
    if let Some(token) = cut_otherwise {
        page.line(format_args!("{}", on_other_cuts(token)));
    }
    let original = Estimate { value: against.perplexity.perplexity, error: against.perplexity.error };
    line(page, "perplexity of the original", original, 1.0, "");
    line(page, "perplexity ratio", divergence.ratio, 1.0, "");
    line(page, "perplexity difference", divergence.difference, 1.0, "");
    page.line(format_args!("{:<28} {:>12.2} %", "correlation of ln(PPL)", 100.0 * divergence.correlation));
    line(page, "KL divergence: mean", divergence.mean, 1.0, "");
    for (name, fraction) in
        [("median", 0.5), ("90 %", 0.9), ("95 %", 0.95), ("99 %", 0.99), ("99.9 %", 0.999), ("max", 1.0)]
    {
        page.line(format_args!("{:>28} {:>12.6}", name, divergence.percentile(fraction)));
    }
    line(page, "same likeliest token", divergence.top1_agreement, 100.0, " %");
    line(page, "delta p of the token: mean", divergence.mean_delta_p, 100.0, " %");
    line(page, "root mean square", divergence.rms_delta_p, 100.0, " %");
    if let Some(prediction) = &against.prediction {
        let Prediction { perplexity, top1_agreement, .. } = &prediction.original;
        page.line(format_args!(
            "prediction layer of the original: perplexity {:.4} +/- {:.4}, likeliest as its main head's {:.2} %",
            perplexity.perplexity,
            perplexity.error,
            100.0 * top1_agreement
        ));
        line(page, "prediction: KL divergence", prediction.divergence.mean, 1.0, "");
        line(page, "same likeliest token", prediction.divergence.top1_agreement, 100.0, " %");
    }
    page.line(format_args!("layer  relative error      cosine  routing  experts with the least agreement"));
    for layer in &against.layers {
        let routing =
            layer.routing_agreement.map_or_else(String::new, |share| format!("{:.2} %", 100.0 * share));
        page.line(format_args!(
            "{:>5}  {:>14.6}  {:>10.7}  {routing:>7}  {}",
            layer.layer,
            layer.relative_error,
            layer.cosine,
            worst_experts(layer)
        ));
    }
}

/// An estimate, in units of `1 / scale`.
fn line(page: &mut Page, name: &str, Estimate { value, error }: Estimate, scale: f64, unit: &str) {
    page.line(format_args!("{name:<28} {:>12.6} +/- {:.6}{unit}", scale * value, scale * error));
}

/// `expert (agreement, tokens)` of those that changed most.
fn worst_experts(layer: &LayerReport) -> String {
    let mut seen: Vec<_> = layer
        .experts
        .iter()
        .filter(|expert| expert.original_tokens >= MIN_TOKENS)
        .filter_map(|expert| Some((expert.agreement?, expert)))
        .collect();
    seen.sort_by(|a, b| a.0.total_cmp(&b.0));
    let worst = seen.iter().take(WORST_EXPERTS).map(|(agreement, expert)| {
        format!("{} ({:.1} % of {})", expert.expert, 100.0 * agreement, expert.original_tokens)
    });
    worst.collect::<Vec<_>>().join(", ")
}
