//! Qwen3: norms of query and key heads.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, check_no_window, head_lengths,
    with_attention,
};
use super::gguf::{Architecture, Vocabulary};
use super::qwen2::VOCABULARY;
use super::{Config, Family, NAMING, Naming, Presence, Spec};
use crate::error::Result;

/// The `qwen3` family.
pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    head_norms: Presence::Always,
    keys: head_lengths,
    vocabulary: Vocabulary { rerankers: &["qwen3-reranker", "qwen3-vl-reranker"], ..VOCABULARY },
    ..Architecture::plain("qwen3")
};

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(config, &MlxRope { theta: None, is_nested: true, scales: true }, DEFAULTS.rope_theta)?;
    check_mlx_keys(
        config,
        &[
            "rms_norm_eps",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
            "tie_word_embeddings",
        ],
    )
}

fn spec(config: &Config) -> Result<Spec> {
    check_no_window(config, config.flag_or("use_sliding_window", false)?)?;
    decoder::check_no_attention_bias(config)?;
    let spec = decoder::spec(
        config,
        &Defaults { model_type: "qwen3", key_value_heads: Some(32), head_dim: Some(128), ..DEFAULTS },
    )?;
    Ok(with_attention(spec, |attention| attention.head_norms = Presence::Always))
}
