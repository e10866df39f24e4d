//! Llama (2 to 3.3), and what llama.cpp takes for it.
//!
//! llama.cpp turns neighbouring columns of queries and keys where transformers turns the two halves of a head, so its
//! converter interleaves their rows (`conversion/llama.py`, `LlamaModel.permute`).

use super::decoder::{self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, head_lengths};
use super::gguf::{Architecture, Experts, Vocabulary, Written};
use super::{Config, Family, NAMING, Naming, Pairing, Presence, Spec};
use crate::error::Result;

/// The `llama` family.
pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

pub(super) const GGUF: Architecture = Architecture {
    pairing: Pairing::Adjacent,
    experts: Experts::Perhaps,
    has_divisors: true,
    dense_biases: Presence::Perhaps,
    is_70b: |size| size.experts != 8 && size.heads != size.kv_heads,
    vocabulary: Vocabulary {
        prefers_sentence_piece: true,
        needs_sentence_piece: false,
        cuts_embedding: false,
        states_space_prefix: true,
        denies_space_prefix: false,
        // StarCoder's tokenizer, which Granite and SmolLM have.
        size_without_bos: Some(49152),
        states_pooling: false,
        rerankers: &[],
        special: &[],
    },
    keys,
    ..Architecture::plain("llama")
};

fn spec(config: &Config) -> Result<Spec> {
    decoder::check_no_attention_bias(config)?;
    if config.flag_or("mlp_bias", false)? {
        return Err(config.invalid("mlp_bias", "true", "false"));
    }
    decoder::spec(config, &Defaults { model_type: "llama", ..DEFAULTS })
}

fn mlx(config: &Config) -> Result<()> {
    mlx_as_llama(config)
}

/// Refuses what mlx-lm's model of Llama, which it has for others too, could not be built from.
///
/// # Errors
/// Names the key of config.json.
pub(super) fn mlx_as_llama(config: &Config) -> Result<()> {
    check_mlx_rope(
        config,
        &MlxRope { theta: Some(10000.0), is_nested: false, scales: true },
        DEFAULTS.rope_theta,
    )?;
    // Without it the model is taken for a tied one.
    check_mlx_keys(config, &["rms_norm_eps", "tie_word_embeddings"])
}

fn keys(keys: &mut Written) -> Result<()> {
    head_lengths(keys)?;
    own_keys(keys)
}

/// Those of everything that llama.cpp takes for Llama.
///
/// # Errors
/// When they are out of range.
pub(super) fn own_keys(keys: &mut Written) -> Result<()> {
    keys.count("vocab_size", keys.spec.embedding.vocab as u64, "vocab_size")?;
    keys.count("rope.dimension_count", keys.spec.rope.dim as u64, "head_dim")
}
