//! Gemma 2: capped scores and logits, every other layer with a sliding window.
//!
//! mlx-lm's model has no window, so that only models whose window is as long as their context can be converted for it.

use super::decoder::{self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, with_attention};
use super::gemma::{self, GEMMA, beyond_mlx};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Windows, Written};
use super::{Activation, Attention, Config, Divisors, Family, MlxOrder, NAMING, Naming, Spec};
use crate::error::Result;

/// The `gemma2` family.
pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: MlxOrder { post_attention_last: true, ..decoder::MLX }, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    activation: Activation::GeluTanh,
    windows: Windows::AllBut(PERIOD, Some(4096)),
    gemma: Some(46),
    caps: Some((CAPS.0.1, CAPS.1.1)),
    states_common: false,
    vocabulary: gemma::VOCABULARY,
    keys,
    loadable,
    ..Architecture::plain("gemma2")
};

/// Each of so many layers has no window.
const PERIOD: usize = 2;
/// Keys and defaults of the caps of scores and of logits.
const CAPS: ((&str, f64), (&str, f64)) =
    (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0));

fn spec(config: &Config) -> Result<Spec> {
    let defaults = Defaults { model_type: "gemma2", ..GEMMA };
    let mut spec = gemma::spec(config, &defaults, PERIOD, |spec| Ok(spec.rope.clone()))?;
    gemma::check_tied(config, &spec)?;
    let score_cap = gemma::cap(config, CAPS.0.0, Some(CAPS.0.1))?;
    spec.embedding.logit_cap = gemma::cap(config, CAPS.1.0, Some(CAPS.1.1))?;
    Ok(with_attention(spec, |attention| attention.score_cap = score_cap))
}

fn mlx(config: &Config) -> Result<()> {
    let rope = MlxRope { theta: Some(10000.0), is_nested: false, scales: false };
    check_mlx_rope(config, &rope, DEFAULTS.rope_theta)?;
    check_mlx_keys(config, &["head_dim", "rms_norm_eps", "num_key_value_heads", "query_pre_attn_scalar"])?;
    for (key, _) in [CAPS.0, CAPS.1] {
        if config.is_null(key) {
            return Err(beyond_mlx(key, "null", "a number there"));
        }
    }
    let (window, context) =
        (config.count_or("sliding_window", 4096)?, config.count_or("max_position_embeddings", 8192)?);
    if window < context {
        let limit = format!(
            "a window of all positions, {context}; texts up to {window} tokens are the same without one, so \
             max_position_embeddings {window} in a copy of config.json makes a model for these"
        );
        return Err(beyond_mlx("sliding_window", &window.to_string(), &limit));
    }
    Ok(())
}

/// What the converter writes of this architecture, in its order.
fn keys(keys: &mut Written) -> Result<()> {
    let (config, spec) = (keys.config, keys.spec);
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    let heads = spec.heads();
    let (key, value) = (grouped.key_dim as u64, grouped.value_dim as u64);
    keys.count(
        "context_length",
        config.count_or("max_position_embeddings", 8192)?,
        "max_position_embeddings",
    )?;
    keys.count("embedding_length", spec.hidden as u64, "hidden_size")?;
    keys.count("block_count", spec.layers as u64, "num_hidden_layers")?;
    keys.count("feed_forward_length", *spec.ffn.dense.width.of(0) as u64, "intermediate_size")?;
    keys.count("attention.head_count", heads.query as u64, "num_attention_heads")?;
    keys.count("attention.head_count_kv", heads.key_value as u64, "num_key_value_heads")?;
    keys.float("attention.layer_norm_rms_epsilon", spec.norms.eps);
    keys.count("attention.key_length", key, "head_dim")?;
    keys.count("attention.value_length", value, "head_dim")?;
    for (name, cap) in
        [("attn_logit_softcapping", grouped.score_cap), ("final_logit_softcapping", spec.embedding.logit_cap)]
    {
        if let Some(cap) = cap {
            keys.float(name, cap);
        }
    }
    let window = grouped.sliding.as_ref().map_or(0, |sliding| sliding.window);
    keys.count("attention.sliding_window", window as u64, "sliding_window")
}

/// The file says nothing of rotary positions, and has caps in any case.
fn loadable(spec: &Spec) -> Result<()> {
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    for ((key, _), cap) in [(CAPS.0, grouped.score_cap), (CAPS.1, spec.embedding.logit_cap)] {
        if cap.is_none() {
            return Err(beyond(GGUF.name, key, "null", "a number there"));
        }
    }
    let rope = &spec.rope;
    if rope.theta != DEFAULTS.rope_theta {
        return Err(beyond(
            GGUF.name,
            "rope_theta",
            &rope.theta.to_string(),
            &DEFAULTS.rope_theta.to_string(),
        ));
    }
    if rope.scaling.is_some() || rope.divisors != Divisors::Absent {
        return Err(beyond(GGUF.name, "rope_scaling", "with a type", "rotary positions that are not scaled"));
    }
    gemma::loadable(&GGUF, spec)
}
