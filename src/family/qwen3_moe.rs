//! Qwen3 with experts.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_keys, check_mlx_rope, check_no_window, head_lengths,
    with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Experts, Written};
use super::{Config, Family, MlxOrder, MlxRouter, NAMING, Naming, Presence, Spec};
use crate::error::Result;

/// The `qwen3_moe` family.
pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming {
        mlx: MlxOrder { norms_first: true, ..decoder::MLX },
        mlx_router: MlxRouter::EightBits,
        ..NAMING
    },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    head_norms: Presence::Always,
    experts: Experts::Normalized,
    keys,
    loadable,
    ..Architecture::plain("qwen3moe")
};

fn mlx(config: &Config) -> Result<()> {
    let keys = [
        "intermediate_size",
        "decoder_sparse_step",
        "mlp_only_layers",
        "rms_norm_eps",
        "num_key_value_heads",
        "head_dim",
        "rope_theta",
        "tie_word_embeddings",
        "max_position_embeddings",
        "norm_topk_prob",
    ];
    check_mlx_rope(config, &MlxRope { theta: None, is_nested: false, scales: false }, DEFAULTS.rope_theta)?;
    check_mlx_keys(config, &keys)
}

fn spec(config: &Config) -> Result<Spec> {
    check_no_window(config, config.flag_or("use_sliding_window", false)?)?;
    decoder::check_no_attention_bias(config)?;
    let spec =
        decoder::spec(config, &Defaults { model_type: "qwen3_moe", key_value_heads: Some(4), ..DEFAULTS })?;
    let mut spec = with_attention(spec, |attention| attention.head_norms = Presence::Always);
    let width = config.dimension("moe_intermediate_size")?;
    let normalize = config.flag_or("norm_topk_prob", false)?;
    spec.ffn.moe = Some(decoder::experts(config, "num_experts", width, normalize)?);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

fn keys(keys: &mut Written) -> Result<()> {
    head_lengths(keys)?;
    let width = keys.config.dimension("moe_intermediate_size")?;
    keys.count("expert_feed_forward_length", width as u64, "moe_intermediate_size")
}

/// llama.cpp normalizes the weights of the chosen experts, whatever config.json says.
fn loadable(spec: &Spec) -> Result<()> {
    if spec.ffn.moe.as_ref().is_some_and(|moe| !moe.router.normalize) {
        return Err(beyond(GGUF.name, "norm_topk_prob", "false", "norm_topk_prob true"));
    }
    Ok(())
}
