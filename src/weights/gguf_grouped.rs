//! Hyper-parameters of a GGUF with grouped-query attention, straight from its metadata.
//!
//! Every key of the architecture must be one that is read here, or be known to change nothing.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_hparams`), `src/models/*.cpp`, `src/llama-graph.cpp` (`build_moe_ffn`).

use requant_formats::container::gguf::{Metadata, Value};

use super::gguf_families::{Experts, Family, HeadNorms};
use super::gguf_keys::{Contents, Keys};
use super::gguf_rotary::{rotary, sliding};
use crate::arch::{ArchSpec, Attention, ExpertChoice, Grouped, QkvBiases, Scoring};
use crate::error::Result;

/// Most layers, prediction layers included; what llama.cpp reads.
const MAX_LAYERS: usize = 512;
/// Most experts; what llama.cpp reads.
const MAX_EXPERTS: usize = 1024;
const EPSILON: &str = "attention.layer_norm_rms_epsilon";
const GATING_SOFTMAX: u64 = 1;
const GATING_SIGMOID: u64 = 2;

/// Reads and checks the hyper-parameters of a file; and whether queries, keys and values are one matrix in it.
///
/// # Errors
/// A key that is missing, out of range, of the wrong type or unknown; what this version cannot evaluate.
pub(super) fn spec(
    family: &Family,
    metadata: &Metadata,
    file: &str,
    contents: &Contents,
) -> Result<(ArchSpec, bool)> {
    let keys = Keys::new(metadata, file, family.architecture);
    if keys.value("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention.causal", "false", "models that predict the next token"));
    }
    let blocks = keys.required_count("block_count")?;
    let hidden = keys.required_count("embedding_length")?;
    let heads = keys.required_count("attention.head_count")?;
    let mtp = predictors(family, &keys)?;
    let layers = blocks.checked_sub(mtp).filter(|&layers| layers > 0 && blocks <= MAX_LAYERS);
    let layers = layers.ok_or_else(|| {
        let expected = format!("more than the {mtp} prediction layers, and {MAX_LAYERS} at most");
        keys.invalid("block_count", &Value::from(blocks as u32), &expected)
    })?;
    let in_layers = |suffix: &str| contents.names.iter().any(|name| suffix_of(name) == Some(suffix));

    let (rope, sliding_rope) = rotary(family, &keys, head_dim(&keys, hidden / heads)?, contents.names)?;
    let attention = Grouped {
        sliding: sliding(family, &keys, layers, sliding_rope)?,
        biases: QkvBiases {
            query: in_layers("attn_q.bias"),
            key: in_layers("attn_k.bias"),
            value: in_layers("attn_v.bias"),
        },
        output_bias: in_layers("attn_output.bias"),
        head_norms: match family.head_norms {
            HeadNorms::Never => false,
            HeadNorms::Always => true,
            HeadNorms::Perhaps => in_layers("attn_q_norm.weight"),
        },
        ..grouped(family, &keys, hidden, layers, heads)?
    };
    let mut spec = ArchSpec {
        model_type: family.architecture.to_owned(),
        hidden,
        layers,
        // A file may have been made without the layers that its metadata counts.
        mtp_layers: if in_layers("nextn.eh_proj.weight") { mtp } else { 0 },
        dense_layers: layers,
        dense_intermediate: keys.count("feed_forward_length")?.unwrap_or(0) as usize,
        expert_intermediate: 0,
        experts: 0,
        experts_per_token: 0,
        shared_experts: 0,
        shared_intermediate: 0,
        shared_gate: false,
        expert_groups: 1,
        top_groups: 1,
        routed_scale: 1.0,
        normalize_top: false,
        scoring: Scoring::Softmax,
        choice: ExpertChoice::Ungrouped,
        router_bias: false,
        heads,
        attention: Attention::Grouped(attention),
        rope,
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
    };
    experts(family, &keys, &mut spec)?;
    if spec.dense_layers == 0 {
        spec.dense_intermediate = 0;
    } else if spec.dense_intermediate == 0 {
        return Err(keys.missing("feed_forward_length"));
    }
    keys.check_all_known(&[])?;
    Ok((spec, in_layers("attn_qkv.weight")))
}

/// What follows the layer in a tensor's name.
fn suffix_of(name: &str) -> Option<&str> {
    name.strip_prefix("blk.")?.split_once('.').map(|(_, suffix)| suffix)
}

/// Prediction layers, which `block_count` includes.
fn predictors(family: &Family, keys: &Keys) -> Result<usize> {
    match family.experts {
        Experts::Biased => Ok(keys.count("nextn_predict_layers")?.unwrap_or(0) as usize),
        _ => Ok(0),
    }
}

/// Heads and scores.
fn grouped(family: &Family, keys: &Keys, hidden: usize, layers: usize, heads: usize) -> Result<Grouped> {
    let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads as u64) as usize;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let found = Value::from(kv_heads as u32);
        return Err(keys.invalid("attention.head_count_kv", &found, &format!("a divisor of {heads} heads")));
    }
    let head_dim = head_dim(keys, hidden / heads)?;
    let value_dim = keys.count("attention.value_length")?.map_or(hidden / heads, |dim| dim as usize);
    if head_dim != value_dim {
        let found = Value::from(value_dim as u32);
        return Err(keys.invalid("attention.value_length", &found, &format!("that of keys, {head_dim}")));
    }
    let scaled_by = if family.gemma == Some(layers) { hidden / heads } else { head_dim };
    let score_cap = match family.caps {
        Some((default, _)) => Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default)),
        None => None,
    };
    Ok(Grouped {
        kv_heads,
        head_dim,
        score_scale: 1.0 / (scaled_by as f64).sqrt(),
        score_cap,
        biases: QkvBiases::default(),
        output_bias: false,
        head_norms: false,
        sliding: None,
    })
}

/// Width of a head.
fn head_dim(keys: &Keys, default: usize) -> Result<usize> {
    match keys.count("attention.key_length")?.map_or(default, |dim| dim as usize) {
        0 => Err(keys.invalid("attention.key_length", &Value::from(0u32), "more than 0")),
        dim => Ok(dim),
    }
}

/// Experts.
fn experts(family: &Family, keys: &Keys, spec: &mut ArchSpec) -> Result<()> {
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0) as usize) };
    spec.experts = match family.experts {
        Experts::Never => return Ok(()),
        Experts::Perhaps => count("expert_count")?,
        _ => keys.required_count("expert_count")?,
    };
    spec.experts_per_token = count("expert_used_count")?;
    if spec.experts == 0 {
        return Ok(());
    }
    if !(1..=spec.experts.min(MAX_EXPERTS)).contains(&spec.experts_per_token) || spec.experts > MAX_EXPERTS {
        let found = Value::from(spec.experts_per_token as u32);
        let expected = format!("1 to {} experts, of {MAX_EXPERTS} at most", spec.experts);
        return Err(keys.invalid("expert_used_count", &found, &expected));
    }
    spec.dense_layers = 0;
    spec.expert_intermediate = match family.experts {
        Experts::Perhaps => spec.dense_intermediate,
        _ => match count("expert_feed_forward_length")? {
            0 => spec.dense_intermediate / spec.experts_per_token,
            width => width,
        },
    };
    if spec.expert_intermediate == 0 {
        return Err(keys.missing("expert_feed_forward_length"));
    }
    spec.normalize_top = matches!(family.experts, Experts::Perhaps | Experts::Normalized);
    spec.expert_groups = count("expert_group_count")?.max(1);
    spec.top_groups = count("expert_group_used_count")?.max(1);
    match family.experts {
        Experts::GatedShared => {
            spec.shared_experts = 1;
            spec.shared_gate = true;
            spec.shared_intermediate = match count("expert_shared_feed_forward_length")? {
                0 => spec.dense_intermediate,
                width => width,
            };
        }
        Experts::Biased => {
            spec.dense_layers = count("leading_dense_block_count")?;
            spec.shared_experts = count("expert_shared_count")?;
            spec.shared_intermediate = spec.shared_experts * spec.expert_intermediate;
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
    let groups_fit = spec.experts.is_multiple_of(spec.expert_groups) && spec.top_groups <= spec.expert_groups;
    if !groups_fit || spec.expert_groups > 1 && spec.choice != ExpertChoice::GroupsByTwoBest {
        let found = spec.expert_groups.to_string();
        return Err(keys.unsupported("expert_group_count", &found, "one group of experts in this family"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
