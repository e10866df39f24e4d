//! Qwen2 and Qwen2.5: biases in attention.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_head_dim, check_mlx_keys, check_mlx_rope, check_no_window,
    stated_head_lengths, with_attention,
};
use super::gguf::{Architecture, Vocabulary};
use super::{Config, Family, NAMING, Naming, Presence, Spec};
use crate::error::Result;

/// The `qwen2` family.
pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

/// Of Qwen3 too, whose converter builds on this one.
pub(super) const VOCABULARY: Vocabulary = Vocabulary {
    prefers_sentence_piece: true,
    states_pooling: true,
    needs_sentence_piece: false,
    cuts_embedding: false,
    denies_space_prefix: false,
    states_space_prefix: false,
    rerankers: &[],
    special: &[],
    size_without_bos: None,
};

const GGUF: Architecture = Architecture {
    has_output_bias: true,
    is_70b: |_| true,
    vocabulary: VOCABULARY,
    keys: stated_head_lengths,
    ..Architecture::plain("qwen2")
};

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(
        config,
        &MlxRope { theta: Some(1e6), is_nested: false, scales: true },
        DEFAULTS.rope_theta,
    )?;
    // Without the last the model is taken for a tied one.
    check_mlx_keys(config, &["rms_norm_eps", "num_key_value_heads", "tie_word_embeddings"])?;
    check_mlx_head_dim(config)
}

fn spec(config: &Config) -> Result<Spec> {
    check_no_window(config, config.flag_or("use_sliding_window", false)?)?;
    let spec =
        decoder::spec(config, &Defaults { model_type: "qwen2", key_value_heads: Some(32), ..DEFAULTS })?;
    Ok(with_attention(spec, |attention| attention.biases = Presence::Always))
}
