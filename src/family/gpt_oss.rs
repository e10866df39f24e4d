//! gpt-oss: heads with a score for no token, sliding windows in turns, clamped experts with biases behind a router with one. The hub has the
//! experts in MXFP4, all of a layer in one tensor, rows of gate and up projection in turns.
//!
//! YaRN's range does not end at whole numbers; llama.cpp and mlx-lm have whole numbers nevertheless, and no way to say it.
//!
//! Source: transformers `models/gpt_oss`, config.json of openai/gpt-oss-20b; llama.cpp `conversion/gpt_oss.py`,
//! `src/models/openai-moe.cpp`; mlx-lm `models/gpt_oss.py`.

use super::block::moe::{self, MoeNames};
use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, Turns, check_mlx_keys, check_mlx_rope, head_lengths, with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Experts, Windows, Written};
use super::{
    Activation, Attention, Checkpoints, Config, Family, MlxOrder, MlxRouter, NAMING, Naming, Presence,
    Router, Scoring, Sliding, Spec, Stack, gemma, glm4_moe,
};
use crate::error::Result;

/// The `gpt_oss` family.
pub(super) const FAMILY: Family = Family {
    model_type: "gpt_oss",
    checkpoint: Some(Checkpoints {
        is_packable: false,
        stacks: &[
            Stack { name: "gate_up_proj", matrices: &["gate_proj", "up_proj"] },
            Stack { name: "down_proj", matrices: &["down_proj"] },
        ],
        mlx_ties_head: false,
        ..decoder::checkpoints(spec, mlx)
    }),
    gguf: &GGUF,
    naming: Naming {
        ffn_norm: glm4_moe::FFN_NORM,
        moe: MoeNames { router: "router", stacks: "experts", ..moe::NAMES },
        mlx: MlxOrder { output_norm_first: true, ..NAMING.mlx },
        mlx_router: MlxRouter::EightBits,
        mlx_keeps_codes: true,
        ..NAMING
    },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    activation: Activation::Clamped,
    experts: Experts::Chosen,
    windows: Windows::AllBut(PERIOD, None),
    sinks: Presence::Always,
    truncates: false,
    keys,
    loadable,
    ..Architecture::plain("gpt-oss")
};

/// Each of so many layers has no window, where config.json does not say.
const PERIOD: usize = 2;
const ROPE_THETA: f64 = 150_000.0;

fn spec(config: &Config) -> Result<Spec> {
    if !config.flag_or("attention_bias", true)? {
        return Err(config.invalid("attention_bias", "false", "true"));
    }
    for (key, only) in [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)] {
        let found = config.number_or(key, only)?;
        if found != only {
            return Err(config.invalid(key, &found.to_string(), &only.to_string()));
        }
    }
    let defaults = Defaults {
        model_type: "gpt_oss",
        key_value_heads: Some(8),
        head_dim: Some(64),
        rope_theta: ROPE_THETA,
        norm_eps: 1e-5,
        turns: Turns::AllInAnyRange,
        activation: Activation::Clamped,
        ..DEFAULTS
    };
    let spec = decoder::spec(config, &defaults)?;
    // transformers scales by 32 then, the others do not.
    if config.section("rope_scaling").or_else(|| config.section("rope_parameters")).is_none() {
        return Err(config.missing("rope_scaling"));
    }
    let window = config.count_or("sliding_window", 128)? as usize;
    if window == 0 || config.is_null("sliding_window") {
        return Err(config.invalid("sliding_window", "0 or null", "more than 0"));
    }
    let layers = decoder::sliding(config, spec.layers, PERIOD)?;
    let rope = Box::new(spec.rope.clone());
    let mut spec = with_attention(spec, |attention| {
        attention.sinks = Presence::Always;
        (attention.biases, attention.output_bias) = (Presence::Always, Presence::Always);
        attention.sliding = Some(Sliding { window, layers, rope });
    });
    let width = config.dimension("intermediate_size")?;
    let mut moe = decoder::experts(config, "num_local_experts", width, false)?;
    moe.router = Router { scoring: Scoring::SoftmaxOfChosen, ..moe.router };
    moe.biases = Presence::Always;
    spec.ffn.moe = Some(moe);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(config, &MlxRope { theta: Some(ROPE_THETA), is_nested: false, scales: true }, ROPE_THETA)?;
    check_mlx_keys(config, &["layer_types"])?;
    let spec = spec(config)?;
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    let has = |slides: bool| {
        grouped.sliding.as_ref().is_some_and(|sliding| sliding.layers.iter().any(|&layer| layer == slides))
    };
    if has(true) && has(false) {
        return Ok(());
    }
    Err(gemma::beyond_mlx("layer_types", "of one kind", "layers of both kinds"))
}

fn keys(keys: &mut Written) -> Result<()> {
    let Attention::Grouped(grouped) = &keys.spec.attention else { return Ok(()) };
    let window = grouped.sliding.as_ref().map_or(0, |sliding| sliding.window);
    head_lengths(keys)?;
    keys.count("attention.sliding_window", window as u64, "sliding_window")?;
    let width = keys.config.dimension("intermediate_size")?;
    keys.count("expert_feed_forward_length", width as u64, "intermediate_size")
}

/// llama.cpp has a window in every other layer, and a head of its own.
fn loadable(spec: &Spec) -> Result<()> {
    if !gemma::slides_by_period(spec, PERIOD) {
        let limit = "a sliding window in every other layer, the first one included";
        return Err(beyond(GGUF.name, "layer_types", "with another order", limit));
    }
    if spec.embedding.tied {
        return Err(beyond(GGUF.name, "tie_word_embeddings", "true", "an output head of its own"));
    }
    Ok(())
}
