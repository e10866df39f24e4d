//! Seed-OSS: biases in attention, wide heads.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, head_lengths, with_attention,
};
use super::gguf::Architecture;
use super::gguf::write::beyond;
use super::{Attention, Config, Family, NAMING, Names, Naming, Presence, Spec};
use crate::error::Result;

/// The `seed_oss` family.
pub(super) const FAMILY: Family = Family {
    model_type: "seed_oss",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ffn_norm: FFN_NORM, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture { keys: head_lengths, loadable, ..Architecture::plain("seed_oss") };

const FFN_NORM: Names = Names::new("post_attention_layernorm.weight", "post_attention_norm.weight");

fn spec(config: &Config) -> Result<Spec> {
    if config.flag_or("mlp_bias", false)? {
        return Err(config.invalid("mlp_bias", "true", "false"));
    }
    let defaults =
        Defaults { model_type: "seed_oss", key_value_heads: Some(8), head_dim: Some(128), ..DEFAULTS };
    let biases = Presence::certain(config.flag_or("attention_bias", true)?);
    let output_bias = Presence::certain(config.flag_or("attention_out_bias", false)?);
    let spec = decoder::spec(config, &defaults)?;
    Ok(with_attention(spec, |attention| (attention.biases, attention.output_bias) = (biases, output_bias)))
}

fn mlx(config: &Config) -> Result<()> {
    let rope = MlxRope { theta: Some(10000.0), is_nested: false, scales: true };
    check_mlx_rope(config, &rope, DEFAULTS.rope_theta)?;
    // Its defaults for the last two are not those of transformers.
    check_mlx_keys(
        config,
        &["rms_norm_eps", "num_key_value_heads", "head_dim", "attention_bias", "tie_word_embeddings"],
    )
}

fn loadable(spec: &Spec) -> Result<()> {
    match &spec.attention {
        Attention::Grouped(grouped) if grouped.output_bias == Presence::Always => {
            Err(beyond(GGUF.name, "attention_out_bias", "true", "attention_out_bias false"))
        }
        _ => Ok(()),
    }
}
