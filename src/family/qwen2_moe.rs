//! Qwen2-MoE and Qwen1.5-MoE: biases in attention, a shared expert with a gate.

use super::block::moe::{self, MoeNames};
use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_head_dim, check_mlx_keys, check_mlx_rope, check_no_window,
    stated_head_lengths, with_attention,
};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Experts, Written};
use super::{ByLayer, Checkpoints, Config, Family, MlxRouter, NAMING, Naming, Presence, Shared, Spec};
use crate::error::Result;

/// The `qwen2_moe` family.
pub(super) const FAMILY: Family = Family {
    model_type: "qwen2_moe",
    checkpoint: Some(Checkpoints { mlx_ties_head: false, ..decoder::checkpoints(spec, mlx) }),
    gguf: &GGUF,
    naming: Naming {
        moe: MoeNames { shared: "shared_expert", ..moe::NAMES },
        mlx: decoder::MLX,
        mlx_router: MlxRouter::Quantized,
        ..NAMING
    },
    renamed: None,
};

const GGUF: Architecture =
    Architecture { experts: Experts::GatedShared, keys, loadable, ..Architecture::plain("qwen2moe") };

fn spec(config: &Config) -> Result<Spec> {
    check_no_window(config, config.flag_or("use_sliding_window", false)?)?;
    let spec =
        decoder::spec(config, &Defaults { model_type: "qwen2_moe", key_value_heads: Some(16), ..DEFAULTS })?;
    let biases = Presence::certain(config.flag_or("qkv_bias", true)?);
    let mut spec = with_attention(spec, |attention| attention.biases = biases);
    let width = config.dimension("moe_intermediate_size")?;
    let normalize = config.flag_or("norm_topk_prob", false)?;
    let mut moe = decoder::experts(config, "num_experts", width, normalize)?;
    let width = ByLayer::all(config.dimension("shared_expert_intermediate_size")?);
    moe.shared = Some(Shared { experts: 1, width, gate: true });
    spec.ffn.moe = Some(moe);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

fn mlx(config: &Config) -> Result<()> {
    if !config.flag_or("qkv_bias", true)? {
        return Err(config.invalid("qkv_bias", "false", "true: mlx-lm's model has these biases"));
    }
    if config.flag_or("norm_topk_prob", false)? {
        return Err(config.invalid("norm_topk_prob", "true", "false: mlx-lm's model does not normalize"));
    }
    check_mlx_rope(
        config,
        &MlxRope { theta: Some(1e6), is_nested: false, scales: false },
        DEFAULTS.rope_theta,
    )?;
    check_mlx_keys(config, &["rms_norm_eps", "intermediate_size"])?;
    check_mlx_head_dim(config)
}

fn keys(keys: &mut Written) -> Result<()> {
    stated_head_lengths(keys)?;
    for (name, source) in [
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ] {
        let width = keys.config.dimension(source)?;
        keys.count(name, width as u64, source)?;
    }
    Ok(())
}

/// llama.cpp does not normalize the weights of the chosen experts, whatever config.json says.
fn loadable(spec: &Spec) -> Result<()> {
    if spec.ffn.moe.as_ref().is_some_and(|moe| moe.router.normalize) {
        return Err(beyond(GGUF.name, "norm_topk_prob", "true", "norm_topk_prob false"));
    }
    Ok(())
}
