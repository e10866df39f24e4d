//! MiniMax-M2 to M2.5: norms over all heads of queries and keys together, `rotary_dim` columns of a head turn, experts in every
//! layer behind sigmoids with a bias.
//!
//! Its config.json counts modules for multi-token prediction; no published checkpoint has their weights.
//!
//! Source: transformers `models/minimax_m2`; llama.cpp `conversion/minimax.py`, `src/models/minimax-m2.cpp`; mlx-lm
//! `models/minimax.py`.

use serde_json::{Value, json};

use super::block::moe::{self, MoeNames};
use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, Turns, check_mlx_keys, check_mlx_rope, head_lengths, with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Experts, Written};
use super::{Config, Family, MlxRouter, NAMING, Naming, Presence, Router, Scoring, Spec};
use crate::error::Result;

/// The `minimax_m2` family.
pub(super) const FAMILY: Family = Family {
    model_type: "minimax_m2",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming {
        moe: MoeNames {
            block: "block_sparse_moe",
            matrices: ["w1", "w3", "w2"],
            bias: "e_score_correction_bias",
            ..moe::NAMES
        },
        mlx: decoder::MLX,
        mlx_router: MlxRouter::EightBits,
        ..NAMING
    },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    head_norms: Presence::Always,
    whole_norms: true,
    experts: Experts::Sigmoid,
    keys,
    loadable,
    ..Architecture::plain("minimax-m2")
};

const ROPE_THETA: f64 = 5e6;

fn spec(config: &Config) -> Result<Spec> {
    check_only(config)?;
    let defaults = Defaults {
        model_type: "minimax_m2",
        key_value_heads: Some(8),
        head_dim: Some(128),
        rope_theta: ROPE_THETA,
        turns: Turns::Counted,
        ..DEFAULTS
    };
    let mut spec = with_attention(decoder::spec(config, &defaults)?, |attention| {
        (attention.head_norms, attention.whole_norms) = (Presence::Always, true);
    });
    let width = config.dimension("intermediate_size")?;
    let mut moe = decoder::experts(config, "num_local_experts", width, true)?;
    moe.router = Router { scoring: Scoring::Sigmoid, bias: Presence::Always, ..moe.router };
    spec.ffn.moe = Some(moe);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

/// Refuses settings that no implementation of the family reads.
fn check_only(config: &Config) -> Result<()> {
    for (key, only) in [
        ("use_qk_norm", json!(true)),
        ("qk_norm_type", json!("per_layer")),
        ("use_routing_bias", json!(true)),
        ("scoring_func", json!("sigmoid")),
        ("shared_intermediate_size", json!(0)),
    ] {
        if let Some(other) = config.get(key).filter(|found| **found != only) {
            return Err(config.invalid(key, &other.to_string(), &only.to_string()));
        }
    }
    // 0 stands for linear attention, which the models before M2 had.
    if let Some(kinds) = config.get("attn_type_list").and_then(Value::as_array)
        && let Some(other) = kinds.iter().find(|kind| kind.as_u64() != Some(1))
    {
        return Err(config.invalid("attn_type_list", &other.to_string(), "1 in every layer"));
    }
    Ok(())
}

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(config, &MlxRope { theta: None, is_nested: false, scales: false }, ROPE_THETA)?;
    let keys = [
        "num_key_value_heads",
        "max_position_embeddings",
        "shared_intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "rotary_dim",
        "head_dim",
    ];
    check_mlx_keys(config, &keys)
}

fn keys(keys: &mut Written) -> Result<()> {
    for key in ["scoring_func", "rotary_dim"] {
        if keys.config.get(key).is_none() {
            return Err(beyond(GGUF.name, key, "missing", "a config.json that says it"));
        }
    }
    keys.gating()?;
    head_lengths(keys)?;
    let width = keys.config.dimension("intermediate_size")?;
    keys.count("expert_feed_forward_length", width as u64, "intermediate_size")?;
    keys.count("rope.dimension_count", keys.spec.rope.dim as u64, "rotary_dim")
}

/// llama.cpp wants an output head of its own.
fn loadable(spec: &Spec) -> Result<()> {
    if spec.embedding.tied {
        return Err(beyond(GGUF.name, "tie_word_embeddings", "true", "an output head of its own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MiniMax-M2.5's, as published.
    fn published() -> Value {
        json!({
            "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "num_hidden_layers": 62,
            "hidden_size": 3072, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128,
            "intermediate_size": 1536, "vocab_size": 200_064, "num_experts_per_tok": 8, "num_local_experts": 256,
            "max_position_embeddings": 196_608, "rope_theta": 5_000_000, "rotary_dim": 64, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "use_qk_norm": true, "qk_norm_type": "per_layer",
            "use_routing_bias": true, "use_mtp": true, "mtp_transformer_layers": 1, "num_mtp_modules": 3,
            "shared_intermediate_size": 0, "scoring_func": "sigmoid",
        })
    }

    #[test]
    fn the_published_model_has_229_billion_parameters() {
        let spec = FAMILY.spec(&Config::new(&published())).unwrap();
        assert_eq!(spec.rope.dim, 64);
        let count = |shape: &[usize]| shape.iter().map(|&extent| extent as u64).product::<u64>();
        let parameters: u64 = FAMILY.expected(&spec).iter().map(|tensor| count(&tensor.shape)).sum();
        assert_eq!(parameters / 1_000_000_000, 228);
    }

    #[test]
    fn contradictions_name_the_key() {
        for (key, value) in [
            ("rotary_dim", json!(63)),
            ("rotary_dim", json!(256)),
            ("partial_rotary_factor", json!(0.25)),
            ("use_qk_norm", json!(false)),
            ("qk_norm_type", json!("per_head")),
            ("scoring_func", json!("softmax")),
            ("shared_intermediate_size", json!(8)),
            ("attn_type_list", json!([1, 0])),
            ("num_experts_per_tok", json!(300)),
        ] {
            let mut config = published();
            config[key] = value;
            let error = FAMILY.spec(&Config::new(&config)).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
