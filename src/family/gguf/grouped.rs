//! Hyper-parameters of a GGUF with grouped-query attention, straight from its metadata.
//!
//! Every key of the architecture must be one that is read here, or be known to change nothing.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_hparams`), `src/models/*.cpp`, `src/llama-graph.cpp` (`build_moe_ffn`).

use requant_formats::container::gguf::{Metadata, Value};

use super::keys::{Contents, Keys};
use super::rotary::{rotary, sliding};
use super::{Architecture, Experts};
use crate::error::Result;
use crate::family::{
    Attention, ByLayer, ExpertChoice, Grouped, Heads, Moe, Presence, Router, Scoring, Shared, Spec,
};

/// Most layers, prediction layers included; what llama.cpp reads.
const MAX_LAYERS: usize = 512;
/// Most experts; what llama.cpp reads.
const MAX_EXPERTS: usize = 1024;
const EPSILON: &str = "attention.layer_norm_rms_epsilon";
const GATING_SOFTMAX: u64 = 1;
const GATING_SIGMOID: u64 = 2;
const GATING_SOFTMAX_OF_CHOSEN: u64 = 3;

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
    let hidden = keys.required_count("embedding_length")?;
    let heads = heads(&keys, blocks)?;
    let mtp = predictors(architecture, &keys)?;
    let layers = blocks.checked_sub(mtp).filter(|&layers| layers > 0 && blocks <= MAX_LAYERS);
    let layers = layers.ok_or_else(|| {
        let expected = format!("more than the {mtp} prediction layers, and {MAX_LAYERS} at most");
        keys.invalid("block_count", &Value::from(blocks as u32), &expected)
    })?;
    // Of the first layer's heads, as in llama.cpp, where widths of heads and their scale follow from it.
    let head_dim = hidden / heads.of(0).query;
    let key_dim = width(&keys, "attention.key_length", head_dim)?;
    let (rope, sliding_rope) = rotary(architecture, &keys, key_dim, contents.names)?;
    let scaled_by = if architecture.gemma == Some(layers) { head_dim } else { key_dim };
    let score_cap = match architecture.caps {
        Some((default, _)) => Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default)),
        None => None,
    };
    let attention = Grouped {
        key_dim,
        value_dim: width(&keys, "attention.value_length", head_dim)?,
        score_scale: 1.0 / (scaled_by as f64).sqrt(),
        score_cap,
        sliding: sliding(architecture, &keys, layers, sliding_rope)?,
        heads,
        head_norms: architecture.head_norms,
        whole_norms: architecture.whole_norms,
        sinks: architecture.sinks,
        // A converter writes them for models that have some.
        biases: Presence::Perhaps,
        output_bias: Presence::Perhaps,
    };
    let mut spec = Spec::plain(architecture.name, layers, Attention::Grouped(attention), rope);
    spec.hidden = hidden;
    // A file may have been made without the layers that its metadata counts.
    let has_predictor = contents.names.iter().any(|name| name.ends_with(".nextn.eh_proj.weight"));
    spec.mtp_layers = if has_predictor { mtp } else { 0 };
    spec.mtp_presence = Presence::Always;
    spec.ffn.activation = architecture.activation;
    spec.ffn.dense.width = keys.counts("feed_forward_length", blocks)?.unwrap_or(ByLayer::all(0));
    spec.ffn.dense.biases = architecture.dense_biases;
    spec.norms.eps = keys.positive(EPSILON)?.ok_or_else(|| keys.missing(EPSILON))?;
    spec.norms.post = architecture.gemma.is_some();
    let embedding = &mut spec.embedding;
    embedding.vocab = contents.vocab;
    embedding.tied = !contents.names.contains("output.weight");
    if architecture.has_output_bias && contents.names.contains("output.bias") {
        embedding.output_bias = Presence::Always;
    }
    if architecture.gemma.is_some() {
        embedding.scale = (hidden as f64).sqrt();
        embedding.logit_cap =
            keys.positive("final_logit_softcapping")?.or(architecture.caps.map(|caps| caps.1));
    }
    experts(architecture, &keys, &mut spec)?;
    let dense = &mut spec.ffn.dense;
    if dense.layers == 0 {
        dense.width = ByLayer::all(0);
    } else if (0..dense.layers).any(|layer| *dense.width.of(layer) == 0) {
        return Err(keys.missing("feed_forward_length"));
    }
    keys.check_all_known(&[])?;
    Ok(spec)
}

/// Prediction layers, which `block_count` includes.
fn predictors(architecture: &Architecture, keys: &Keys) -> Result<usize> {
    match architecture.experts {
        Experts::Biased => Ok(keys.count("nextn_predict_layers")?.unwrap_or(0) as usize),
        _ => Ok(0),
    }
}

/// Heads of every layer.
fn heads(keys: &Keys, blocks: usize) -> Result<ByLayer<Heads>> {
    let (key, key_of_kv) = ("attention.head_count", "attention.head_count_kv");
    let query = keys.counts(key, blocks)?.ok_or_else(|| keys.missing(key))?;
    let key_value = keys.counts(key_of_kv, blocks)?.unwrap_or_else(|| query.clone());
    let of_layer = |layer| {
        let heads = Heads { query: *query.of(layer), key_value: *key_value.of(layer) };
        if heads.query == 0 {
            return Err(keys.invalid(key, &Value::from(0u32), "more than 0"));
        }
        if heads.key_value == 0 || !heads.query.is_multiple_of(heads.key_value) {
            let found = Value::from(heads.key_value as u32);
            let expected = format!("a divisor of {} heads in layer {layer}", heads.query);
            return Err(keys.invalid(key_of_kv, &found, &expected));
        }
        Ok(heads)
    };
    let layers = query.iter().count().max(key_value.iter().count()).min(blocks);
    let heads = (0..layers).map(of_layer).collect::<Result<Vec<_>>>()?;
    ByLayer::each(heads).ok_or_else(|| keys.missing(key))
}

/// Width of a head.
fn width(keys: &Keys, key: &str, default: usize) -> Result<usize> {
    match keys.count(key)?.map_or(default, |dim| dim as usize) {
        0 => Err(keys.invalid(key, &Value::from(0u32), "more than 0")),
        dim => Ok(dim),
    }
}

/// Experts.
fn experts(architecture: &Architecture, keys: &Keys, spec: &mut Spec) -> Result<()> {
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0) as usize) };
    let experts = match architecture.experts {
        Experts::Never => {
            return match (count("expert_count")?, count("expert_used_count")?) {
                (0, _) => Ok(()),
                (found, _) => {
                    Err(keys.unsupported("expert_count", &found.to_string(), "this family without experts"))
                }
            };
        }
        Experts::Perhaps => count("expert_count")?,
        _ => keys.required_count("expert_count")?,
    };
    let layers = spec.layers;
    let per_token = keys.counts("expert_used_count", layers)?.unwrap_or(ByLayer::all(0));
    if experts == 0 {
        return Ok(());
    }
    if per_token.least() == 0 || per_token.most() > experts || experts > MAX_EXPERTS {
        let found = Value::from(per_token.most() as u32);
        let expected = format!("1 to {experts} experts, of {MAX_EXPERTS} at most");
        return Err(keys.invalid("expert_used_count", &found, &expected));
    }
    let dense = &spec.ffn.dense.width;
    let own = match architecture.experts {
        Experts::Perhaps | Experts::Plain => Some(dense.clone()),
        _ => keys.counts("expert_feed_forward_length", layers)?.filter(|widths| widths.most() > 0),
    };
    // As wide together as a dense block.
    let shares = || ByLayer::each((0..layers).map(|layer| dense.of(layer) / per_token.of(layer)));
    let width = own.or_else(shares).filter(|widths| widths.least() > 0);
    let width = width.ok_or_else(|| keys.missing("expert_feed_forward_length"))?;
    let mut router = Router::softmax();
    router.normalize =
        matches!(architecture.experts, Experts::Perhaps | Experts::Normalized | Experts::Sigmoid);
    let (mut shared, mut dense_layers) = (None, 0);
    match architecture.experts {
        Experts::GatedShared => {
            let width = match count("expert_shared_feed_forward_length")? {
                0 => dense.clone(),
                width => ByLayer::all(width),
            };
            shared = Some(Shared { experts: 1, width, gate: true });
        }
        Experts::Biased => {
            dense_layers = count("leading_dense_block_count")?;
            let number = count("expert_shared_count")?;
            let all = || Shared { experts: number, width: width.map(|width| number * width), gate: false };
            shared = (number > 0).then(all);
            let scale = keys.number("expert_weights_scale")?;
            router.scale = scale.filter(|&scale| scale != 0.0).unwrap_or(1.0);
            router.normalize = keys.flag("expert_weights_norm")?;
            router.choice = ExpertChoice::GroupsByTwoBest;
            router.bias = Presence::Always;
        }
        Experts::Sigmoid => router.bias = Presence::Always,
        Experts::Chosen | Experts::Never | Experts::Perhaps | Experts::Normalized | Experts::Plain => {}
    }
    let is_biased = matches!(architecture.experts, Experts::Biased | Experts::Sigmoid);
    let is_of_chosen = architecture.experts == Experts::Chosen;
    let own = match (is_biased, is_of_chosen) {
        (true, _) => GATING_SIGMOID,
        (_, true) => GATING_SOFTMAX_OF_CHOSEN,
        _ => GATING_SOFTMAX,
    };
    router.scoring = match keys.count("expert_gating_func")?.filter(|&gating| gating != 0).unwrap_or(own) {
        GATING_SOFTMAX if !is_of_chosen => Scoring::Softmax,
        GATING_SOFTMAX_OF_CHOSEN if is_of_chosen => Scoring::SoftmaxOfChosen,
        GATING_SIGMOID if is_biased => Scoring::Sigmoid,
        other => {
            let hint =
                format!("a router that is {own} ({GATING_SOFTMAX}: softmax, {GATING_SIGMOID}: sigmoid)");
            return Err(keys.unsupported("expert_gating_func", &other.to_string(), &hint));
        }
    };
    let biases = Presence::certain(is_of_chosen);
    let mut moe = Moe { experts, per_token, width, router, shared, biases };
    groups(keys, &mut moe)?;
    spec.ffn.dense.layers = dense_layers;
    spec.ffn.moe = Some(moe);
    Ok(())
}

/// Groups of experts. In these families no model is known to have several; llama.cpp judges them as DeepSeek-V3 does.
fn groups(keys: &Keys, moe: &mut Moe) -> Result<()> {
    let (key, key_of_used) = ("expert_group_count", "expert_group_used_count");
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0).max(1) as usize) };
    let (groups, top_groups) = (count(key)?, count(key_of_used)?);
    if groups == 1 {
        return Ok(());
    }
    let len = moe.experts / groups;
    if !moe.experts.is_multiple_of(groups) || len < 2 {
        let expected = format!("a divisor of {} experts that leaves two to a group at least", moe.experts);
        return Err(keys.invalid(key, &Value::from(groups as u32), &expected));
    }
    let fewest = moe.per_token.most().div_ceil(len);
    if !(fewest..=groups).contains(&top_groups) {
        let expected = format!("{fewest} to {groups} groups of {len} experts");
        return Err(keys.invalid(key_of_used, &Value::from(top_groups as u32), &expected));
    }
    (moe.router.groups, moe.router.top_groups) = (groups, top_groups);
    moe.router.choice = ExpertChoice::GroupsByTwoBest;
    Ok(())
}

#[cfg(test)]
mod tests;
