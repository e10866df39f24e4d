//! Hyper-parameters of a GGUF with grouped-query attention, straight from its metadata.
//!
//! Every key of the architecture must be one that is read here, or be known to change nothing.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_hparams`), `src/models/*.cpp`, `src/llama-graph.cpp` (`build_moe_ffn`).

use requant_formats::container::gguf::{Metadata, Value};

use super::gguf_families::{Experts, Family};
use super::gguf_keys::{Contents, Keys};
use super::gguf_rotary::{rotary, sliding};
use crate::arch::{ArchSpec, Attention, ByLayer, ExpertChoice, Grouped, Heads, Scoring};
use crate::error::Result;

/// Most layers, prediction layers included; what llama.cpp reads.
const MAX_LAYERS: usize = 512;
/// Most experts; what llama.cpp reads.
const MAX_EXPERTS: usize = 1024;
const EPSILON: &str = "attention.layer_norm_rms_epsilon";
const GATING_SOFTMAX: u64 = 1;
const GATING_SIGMOID: u64 = 2;

/// Reads and checks the hyper-parameters of a file.
///
/// # Errors
/// A key that is missing, out of range, of the wrong type or unknown; what this version cannot evaluate.
pub(super) fn spec(
    family: &Family,
    metadata: &Metadata,
    file: &str,
    contents: &Contents,
) -> Result<ArchSpec> {
    let keys = Keys::new(metadata, file, family.architecture);
    if keys.value("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention.causal", "false", "models that predict the next token"));
    }
    let blocks = keys.required_count("block_count")?;
    let hidden = keys.required_count("embedding_length")?;
    let heads = heads(&keys, blocks)?;
    let mtp = predictors(family, &keys)?;
    let layers = blocks.checked_sub(mtp).filter(|&layers| layers > 0 && blocks <= MAX_LAYERS);
    let layers = layers.ok_or_else(|| {
        let expected = format!("more than the {mtp} prediction layers, and {MAX_LAYERS} at most");
        keys.invalid("block_count", &Value::from(blocks as u32), &expected)
    })?;
    // Of the first layer's heads, as in llama.cpp, where widths of heads and their scale follow from it.
    let head_dim = hidden / heads.of(0).query;
    let key_dim = width(&keys, "attention.key_length", head_dim)?;
    let (rope, sliding_rope) = rotary(family, &keys, key_dim, contents.names)?;
    let scaled_by = if family.gemma == Some(layers) { head_dim } else { key_dim };
    let score_cap = match family.caps {
        Some((default, _)) => Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default)),
        None => None,
    };
    let attention = Grouped {
        key_dim,
        value_dim: width(&keys, "attention.value_length", head_dim)?,
        score_scale: 1.0 / (scaled_by as f64).sqrt(),
        score_cap,
        sliding: sliding(family, &keys, layers, sliding_rope)?,
        heads,
    };
    let mut spec = ArchSpec {
        hidden,
        // A file may have been made without the layers that its metadata counts.
        mtp_layers: if contents.names.iter().any(|name| name.ends_with(".nextn.eh_proj.weight")) {
            mtp
        } else {
            0
        },
        dense_intermediate: keys.counts("feed_forward_length", blocks)?.unwrap_or(ByLayer::all(0)),
        vocab: contents.vocab,
        norm_eps: keys.positive(EPSILON)?.ok_or_else(|| keys.missing(EPSILON))?,
        tied_embeddings: !contents.names.contains("output.weight"),
        activation: family.activation,
        post_norms: family.gemma.is_some(),
        embedding_scale: if family.gemma.is_some() { (hidden as f64).sqrt() } else { 1.0 },
        logit_cap: match (family.gemma, family.caps) {
            (Some(_), caps) => keys.positive("final_logit_softcapping")?.or(caps.map(|caps| caps.1)),
            (None, _) => None,
        },
        ..ArchSpec::plain(family.architecture, layers, Attention::Grouped(attention), rope)
    };
    experts(family, &keys, &mut spec)?;
    if spec.dense_layers == 0 {
        spec.dense_intermediate = ByLayer::all(0);
    } else if (0..spec.dense_layers).any(|layer| *spec.dense_intermediate.of(layer) == 0) {
        return Err(keys.missing("feed_forward_length"));
    }
    keys.check_all_known(&[])?;
    Ok(spec)
}

/// Prediction layers, which `block_count` includes.
fn predictors(family: &Family, keys: &Keys) -> Result<usize> {
    match family.experts {
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
fn experts(family: &Family, keys: &Keys, spec: &mut ArchSpec) -> Result<()> {
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0) as usize) };
    spec.experts = match family.experts {
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
    if spec.experts == 0 {
        return Ok(());
    }
    if per_token.least() == 0 || per_token.most() > spec.experts || spec.experts > MAX_EXPERTS {
        let found = Value::from(per_token.most() as u32);
        let expected = format!("1 to {} experts, of {MAX_EXPERTS} at most", spec.experts);
        return Err(keys.invalid("expert_used_count", &found, &expected));
    }
    spec.dense_layers = 0;
    let dense = &spec.dense_intermediate;
    let own = match family.experts {
        Experts::Perhaps => Some(dense.clone()),
        _ => keys.counts("expert_feed_forward_length", layers)?.filter(|widths| widths.most() > 0),
    };
    // As wide together as a dense block.
    let shares = || ByLayer::each((0..layers).map(|layer| dense.of(layer) / per_token.of(layer)));
    let widths = own.or_else(shares).filter(|widths| widths.least() > 0);
    spec.expert_intermediate = widths.ok_or_else(|| keys.missing("expert_feed_forward_length"))?;
    spec.experts_per_token = per_token;
    spec.normalize_top = matches!(family.experts, Experts::Perhaps | Experts::Normalized);
    match family.experts {
        Experts::GatedShared => {
            spec.shared_experts = 1;
            spec.shared_gate = true;
            spec.shared_intermediate = match count("expert_shared_feed_forward_length")? {
                0 => spec.dense_intermediate.clone(),
                width => ByLayer::all(width),
            };
        }
        Experts::Biased => {
            spec.dense_layers = count("leading_dense_block_count")?;
            spec.shared_experts = count("expert_shared_count")?;
            spec.shared_intermediate = spec.expert_intermediate.map(|width| spec.shared_experts * width);
            let scale = keys.number("expert_weights_scale")?;
            spec.routed_scale = scale.filter(|&scale| scale != 0.0).unwrap_or(1.0);
            spec.normalize_top = keys.flag("expert_weights_norm")?;
            spec.choice = ExpertChoice::GroupsByTwoBest;
            spec.router_bias = true;
        }
        Experts::Never | Experts::Perhaps | Experts::Normalized => {}
    }
    let own = if family.experts == Experts::Biased { GATING_SIGMOID } else { GATING_SOFTMAX };
    spec.scoring = match keys.count("expert_gating_func")?.filter(|&gating| gating != 0).unwrap_or(own) {
        GATING_SOFTMAX => Scoring::Softmax,
        GATING_SIGMOID if family.experts == Experts::Biased => Scoring::Sigmoid,
        other => {
            let hint =
                format!("a router that is {own} ({GATING_SOFTMAX}: softmax, {GATING_SIGMOID}: sigmoid)");
            return Err(keys.unsupported("expert_gating_func", &other.to_string(), &hint));
        }
    };
    groups(keys, spec)
}
/// Groups of experts. In these families no model is known to have several; llama.cpp judges them as DeepSeek-V3 does.
fn groups(keys: &Keys, spec: &mut ArchSpec) -> Result<()> {
    let (key, key_of_used) = ("expert_group_count", "expert_group_used_count");
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0).max(1) as usize) };
    (spec.expert_groups, spec.top_groups) = (count(key)?, count(key_of_used)?);
    if spec.expert_groups == 1 {
        spec.top_groups = 1;
        return Ok(());
    }
    let len = spec.experts / spec.expert_groups;
    if !spec.experts.is_multiple_of(spec.expert_groups) || len < 2 {
        let expected = format!("a divisor of {} experts that leaves two to a group at least", spec.experts);
        return Err(keys.invalid(key, &Value::from(spec.expert_groups as u32), &expected));
    }
    let fewest = spec.experts_per_token.most().div_ceil(len);
    if !(fewest..=spec.expert_groups).contains(&spec.top_groups) {
        let expected = format!("{fewest} to {} groups of {len} experts", spec.expert_groups);
        return Err(keys.invalid(key_of_used, &Value::from(spec.top_groups as u32), &expected));
    }
    spec.choice = ExpertChoice::GroupsByTwoBest;
    Ok(())
}

#[cfg(test)]
mod tests;
