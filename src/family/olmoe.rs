//! OLMoE: norms over all heads of queries and keys together, experts in every layer whose weights stay as the softmax has them.
//!
//! Source: transformers `models/olmoe`; llama.cpp `conversion/olmo.py`, `src/models/olmoe.cpp`; mlx-lm `models/olmoe.py`.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, stated_head_lengths, with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Experts, Written};
use super::{Attention, Config, Family, Heads, MlxRouter, NAMING, Naming, Presence, Spec};
use crate::error::Result;

/// The `olmoe` family.
pub(super) const FAMILY: Family = Family {
    model_type: "olmoe",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, mlx_router: MlxRouter::Quantized, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    head_norms: Presence::Always,
    whole_norms: true,
    experts: Experts::Plain,
    keys,
    loadable,
    ..Architecture::plain("olmoe")
};

/// The epsilon that the converter writes, whatever config.json says; others are refused for it.
const EPSILON: f64 = 1e-5;

fn spec(config: &Config) -> Result<Spec> {
    decoder::check_no_attention_bias(config)?;
    if let Some(clip) = config.get("clip_qkv") {
        return Err(config.invalid(
            "clip_qkv",
            &clip.to_string(),
            "null: queries, keys and values as they are",
        ));
    }
    let spec = decoder::spec(config, &Defaults { model_type: "olmoe", norm_eps: EPSILON, ..DEFAULTS })?;
    let mut spec = with_attention(spec, |attention| {
        (attention.head_norms, attention.whole_norms) = (Presence::Always, true);
    });
    let width = config.dimension("intermediate_size")?;
    let normalize = config.flag_or("norm_topk_prob", false)?;
    spec.ffn.moe = Some(decoder::experts(config, "num_experts", width, normalize)?);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

fn mlx(config: &Config) -> Result<()> {
    let rope = MlxRope { theta: Some(DEFAULTS.rope_theta), is_nested: false, scales: true };
    check_mlx_rope(config, &rope, DEFAULTS.rope_theta)?;
    // Without the second the model is taken for a tied one.
    check_mlx_keys(config, &["rms_norm_eps", "tie_word_embeddings"])
}

fn keys(keys: &mut Written) -> Result<()> {
    stated_head_lengths(keys)
}

/// llama.cpp's model has as many heads of keys as of queries, a head of its own, one epsilon, and does not normalize weights.
fn loadable(spec: &Spec) -> Result<()> {
    let refuse = |key: &str, found: &str, limit: &str| Err(beyond(GGUF.name, key, found, limit));
    let Heads { query, key_value } = spec.heads();
    if query != key_value {
        return refuse(
            "num_key_value_heads",
            &key_value.to_string(),
            &format!("as many as query heads, {query}"),
        );
    }
    if let Attention::Grouped(grouped) = &spec.attention
        && query * grouped.key_dim != spec.hidden
    {
        let limit = format!("hidden_size / num_attention_heads, {}", spec.hidden / query);
        return refuse("head_dim", &grouped.key_dim.to_string(), &limit);
    }
    if spec.norms.eps != EPSILON {
        return refuse(
            "rms_norm_eps",
            &spec.norms.eps.to_string(),
            "1e-5, which the converter writes into each",
        );
    }
    if spec.ffn.moe.as_ref().is_some_and(|moe| moe.router.normalize) {
        return refuse("norm_topk_prob", "true", "norm_topk_prob false");
    }
    if spec.embedding.tied {
        return refuse("tie_word_embeddings", "true", "an output head of its own");
    }
    Ok(())
}
