//! Hyper-parameters of a `deepseek2` GGUF, straight from its metadata: latent attention, with routed experts or without.
//!
//! Every key of the architecture must be one that is read here, or be known to change nothing.
//!
//! Beside DeepSeek-V2 and V3 files are of Kimi-K2, Moonlight, GLM-4.7-Flash, Kanana-2, GigaChat 3, Youtu-LLM (no experts)
//! and Mistral Large 3 (queries with a temperature). Not as llama.cpp does it, but as the models do:
//!
//! - A softmax router with groups and no bias judges a group by its best expert, as DeepSeek-V2 does; llama.cpp judges
//!   groups of every model by the sum of their two best. V2 files without group counts, which is most of them, choose
//!   from all experts, here and there.
//! - YaRN: `beta_fast`, `beta_slow` and `yarn_attn_factor` of the file count; llama.cpp has 32 and 1 for this
//!   architecture, and leaves the third out.
//! - YaRN without `yarn_log_multiplier`, and linear scaling, leave the scores of attention alone; llama.cpp
//!   multiplies them with `(0.1 ln(factor) + 1)^2`. No published model has either.
//!
//! llama.cpp keeps a tenth of `mscale_all_dim` as `yarn_log_multiplier` and does not keep `mscale`: every published
//! model has the two equal, which makes the factor on sine and cosine 1.
//!
//! Layers beyond the model proper predict further tokens (`nextn_predict_layers`); a file may count them and lack them.
//!
//! Source: llama.cpp `src/models/deepseek2.cpp`, `src/llama-model.cpp` (`load_hparams`), `src/llama-graph.cpp`
//! (`build_moe_ffn`, `llm_graph_input_attn_temp`), `src/llama-context.cpp` (YaRN), `conversion/*.py` (who writes which key).

use requant_formats::container::gguf::{Metadata, Value};

use super::Architecture;
use super::keys::{Contents, Keys};
use super::rotary::{scaling, stated_amplitude};
use crate::error::Result;
use crate::family::{
    Attention, ByLayer, Divisors, ExpertChoice, Latent, Moe, Presence, Rotary, Router, Scaling, Scoring,
    Shared, Spec, Temperature,
};

/// Most layers, prediction layers included; what llama.cpp reads.
const MAX_LAYERS: usize = 512;
/// Most experts; what llama.cpp reads.
const MAX_EXPERTS: usize = 1024;
const EPSILON: &str = "attention.layer_norm_rms_epsilon";
/// Keys about the cache of keys and values, which says nothing about what a model computes.
const NEUTRAL: &[&str] = &["attention.head_count_kv", "attention.key_length", "attention.value_length"];

/// Reads and checks the hyper-parameters of a file.
///
/// # Errors
/// A key that is missing, out of range, of the wrong type or unknown; what this version cannot evaluate.
pub(super) fn spec(
    architecture: &Architecture,
    metadata: &Metadata,
    file: &str,
    contents: &Contents,
) -> Result<Spec> {
    let keys = Keys::new(metadata, file, architecture.name);
    if keys.value("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention.causal", "false", "models that predict the next token"));
    }
    let blocks = keys.required_count("block_count")?;
    let predictors = count(&keys, "nextn_predict_layers")?;
    let layers = blocks.checked_sub(predictors).filter(|&layers| layers > 0 && blocks <= MAX_LAYERS);
    let layers = layers.ok_or_else(|| {
        let expected = format!("more than the {predictors} that predict, and {MAX_LAYERS} at most");
        keys.invalid("block_count", &Value::from(blocks as u32), &expected)
    })?;
    let has_predictor = contents.names.contains(format!("blk.{layers}.nextn.eh_proj.weight").as_str());
    let (rope, nope_dim) = rotary(architecture, &keys)?;
    let attention = Attention::Latent(Latent {
        heads: keys.required_count("attention.head_count")?,
        q_lora: Some(count(&keys, "attention.q_lora_rank")?).filter(|&rank| rank > 0),
        kv_lora: keys.required_count("attention.kv_lora_rank")?,
        nope_dim,
        v_dim: head_length(&keys, "value_length")?,
        temperature: temperature(&keys)?,
    });
    let mut spec = Spec::plain(architecture.name, layers, attention, rope);
    spec.hidden = keys.required_count("embedding_length")?;
    spec.mtp_layers = if has_predictor { predictors } else { 0 };
    spec.ffn.activation = architecture.activation;
    spec.ffn.dense.width = keys.counts("feed_forward_length", blocks)?.unwrap_or(ByLayer::all(0));
    spec.embedding.vocab = contents.vocab;
    spec.norms.eps = keys.positive(EPSILON)?.ok_or_else(|| keys.missing(EPSILON))?;
    spec.embedding.tied = !contents.names.contains("output.weight");
    experts(&keys, contents, &mut spec)?;
    let dense = &mut spec.ffn.dense;
    if dense.layers == 0 {
        dense.width = ByLayer::all(0);
    } else if (0..dense.layers).any(|layer| *dense.width.of(layer) == 0) {
        return Err(keys.missing("feed_forward_length"));
    }
    keys.check_all_known(NEUTRAL)?;
    Ok(spec)
}

/// A count, 0 when it is absent.
fn count(keys: &Keys, key: &str) -> Result<usize> {
    Ok(keys.count(key)?.unwrap_or(0) as usize)
}

/// Width of a head; files from before May 2025 do not tell it from the width of what is cached.
fn head_length(keys: &Keys, key: &str) -> Result<usize> {
    let own = format!("attention.{key}_mla");
    let length = match keys.count(&own)? {
        None => keys.count(&format!("attention.{key}"))?,
        length => length,
    };
    length.map(|length| length as usize).filter(|&length| length > 0).ok_or_else(|| keys.missing(&own))
}

/// Rotary positions, and the width of a key without them.
fn rotary(architecture: &Architecture, keys: &Keys) -> Result<(Rotary, usize)> {
    let key_length = head_length(keys, "key_length")?;
    let key = "rope.dimension_count";
    let dim = keys.required_count(key)?;
    let nope_dim = key_length.checked_sub(dim).filter(|&nope_dim| nope_dim > 0 && dim.is_multiple_of(2));
    let nope_dim = nope_dim.ok_or_else(|| {
        let expected = format!("an even number below the width of a key, {key_length}");
        keys.invalid(key, &Value::from(dim as u32), &expected)
    })?;
    let key = "rope.scaling.attn_factor";
    if let Some(found) = keys.number(key)?.filter(|&factor| factor != 1.0) {
        return Err(keys.unsupported(key, &found.to_string(), "1 only, no model of this family has another"));
    }
    // The division in f32 undoes the converter's multiplication.
    let log_key = "rope.scaling.yarn_log_multiplier";
    let all_dim = keys.number(log_key)?.map_or(0.0, |log| log as f32 / 0.1f32);
    let mut scaling = scaling(keys)?;
    if matches!(scaling, Some(Scaling::Linear(_))) && all_dim != 0.0 {
        return Err(keys.unsupported(log_key, "with linear scaling", "it with YaRN"));
    }
    if let Some(Scaling::Yarn(yarn)) = &mut scaling {
        (yarn.mscale, yarn.mscale_all_dim) = (all_dim.into(), all_dim.into());
    }
    let amplitude = stated_amplitude(keys, &scaling)?;
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10000.0);
    let pairing = architecture.pairing;
    Ok((
        Rotary { dim, pairing, theta, scaling, amplitude, divisors: Divisors::Absent, sections: None },
        nope_dim,
    ))
}

/// The temperature of queries; without a scale there is none.
fn temperature(keys: &Keys) -> Result<Option<Temperature>> {
    let key = "attention.temperature_length";
    let length = keys.count(key)?;
    let Some(scale) = keys.number("attention.temperature_scale")?.filter(|&scale| scale != 0.0) else {
        return Ok(None);
    };
    match length.ok_or_else(|| keys.missing(key))? {
        0 => Err(keys.invalid(key, &Value::from(0u32), "more than 0")),
        length => Ok(Some(Temperature { scale, length })),
    }
}

/// Experts, in the layers behind the leading dense ones.
fn experts(keys: &Keys, contents: &Contents, spec: &mut Spec) -> Result<()> {
    let [experts, shared, dense, groups, top_groups] = [
        "expert_count",
        "expert_shared_count",
        "leading_dense_block_count",
        "expert_group_count",
        "expert_group_used_count",
    ]
    .map(|key| count(keys, key));
    let (experts, shared, dense) = (experts?, shared?, dense?);
    let (groups, top_groups) = (groups?.max(1), top_groups?.max(1));
    let by_layer = |key| -> Result<_> { Ok(keys.counts(key, spec.layers)?.unwrap_or(ByLayer::all(0))) };
    let per_token = by_layer("expert_used_count")?;
    let widths = by_layer("expert_feed_forward_length")?;
    let scale = keys.number("expert_weights_scale")?;
    let normalize_top = keys.flag("expert_weights_norm")?;
    let scoring = scoring(keys, spec)?;
    if dense < spec.layers {
        keys.required_count("expert_count")?;
    } else if experts == 0 {
        // The file may say the rest nevertheless.
        return Ok(());
    }
    if per_token.least() == 0 || per_token.most() > experts || experts > MAX_EXPERTS {
        let expected = format!("1 to {experts} experts, of {MAX_EXPERTS} at most");
        return Err(keys.invalid("expert_used_count", &Value::from(per_token.most() as u32), &expected));
    }
    if widths.least() == 0 {
        return Err(keys.missing("expert_feed_forward_length"));
    }
    if !experts.is_multiple_of(groups) {
        let expected = format!("a divisor of {experts} experts");
        return Err(keys.invalid("expert_group_count", &Value::from(groups as u32), &expected));
    }
    if top_groups > groups {
        let expected = format!("{groups} groups at most");
        return Err(keys.invalid("expert_group_used_count", &Value::from(top_groups as u32), &expected));
    }
    // Layer by layer, there or not.
    let has_bias = contents.names.iter().any(|name| name.ends_with(".exp_probs_b.bias"));
    let choice = match (groups, scoring, has_bias) {
        (1, ..) => ExpertChoice::Ungrouped,
        (_, Scoring::Softmax, false) => ExpertChoice::GroupsByBest,
        _ => ExpertChoice::GroupsByTwoBest,
    };
    let router = Router {
        scoring,
        choice,
        groups,
        top_groups,
        bias: if has_bias { Presence::Perhaps } else { Presence::Never },
        normalize: normalize_top,
        // llama.cpp takes 0 for absent.
        scale: scale.filter(|&scale| scale != 0.0).unwrap_or(1.0),
    };
    let of_shared = || Shared { experts: shared, width: widths.map(|width| shared * width), gate: false };
    let shared = (shared > 0).then(of_shared);
    spec.ffn.dense.layers = dense;
    spec.ffn.moe = Some(Moe { experts, per_token, width: widths, router, shared, biases: Presence::Never });
    Ok(())
}

/// `expert_gating_func`. Files of DeepSeek-V2 lack it and mean a softmax, the first ones of GLM-4.7-Flash lack it and mean
/// sigmoids; llama.cpp knows these by their layers and vocabulary.
fn scoring(keys: &Keys, spec: &Spec) -> Result<Scoring> {
    let is_glm = matches!(spec.layers, 47 | 48) && spec.embedding.vocab == 154_880;
    match keys.count("expert_gating_func")?.unwrap_or(0) {
        0 if is_glm => Ok(Scoring::Sigmoid),
        0 | 1 => Ok(Scoring::Softmax),
        2 => Ok(Scoring::Sigmoid),
        3 => Ok(Scoring::SoftmaxOfChosen),
        4 => Ok(Scoring::SqrtSoftplus),
        other => {
            let hint = "1 (softmax), 2 (sigmoid), 3 (softmax of the chosen) or 4 (square root of softplus)";
            Err(keys.unsupported("expert_gating_func", &other.to_string(), hint))
        }
    }
}

#[cfg(test)]
mod tests;
