//! Mixtral: experts in every layer, and what llama.cpp takes for Llama.

use super::block::moe::{self, MoeNames};
use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, check_mlx_head_dim, check_mlx_rope, check_no_window,
    stated_head_lengths,
};
use super::gguf::{Architecture, Written};
use super::{Config, Family, MlxRouter, NAMING, Naming, Spec, llama};
use crate::error::Result;

/// The `mixtral` family.
pub(super) const FAMILY: Family = Family {
    model_type: "mixtral",
    checkpoint: Some(decoder::checkpoints(spec, mlx)),
    gguf: &GGUF,
    naming: Naming {
        moe: MoeNames { block: "block_sparse_moe", matrices: ["w1", "w3", "w2"], ..moe::NAMES },
        mlx: decoder::MLX,
        mlx_router: MlxRouter::Quantized,
        ..NAMING
    },
    renamed: None,
};

const GGUF: Architecture = Architecture { keys, ..llama::GGUF };

fn spec(config: &Config) -> Result<Spec> {
    check_no_window(config, true)?;
    let defaults = Defaults {
        model_type: "mixtral",
        key_value_heads: Some(8),
        norm_eps: 1e-5,
        rope_theta: 1e6,
        ..DEFAULTS
    };
    let mut spec = decoder::spec(config, &defaults)?;
    let width = config.dimension("intermediate_size")?;
    spec.ffn.moe = Some(decoder::experts(config, "num_local_experts", width, true)?);
    spec.ffn.dense.layers = 0;
    Ok(spec)
}

fn mlx(config: &Config) -> Result<()> {
    check_mlx_head_dim(config)?;
    check_mlx_rope(config, &MlxRope { theta: Some(1e6), is_nested: false, scales: false }, 1e6)
}

fn keys(keys: &mut Written) -> Result<()> {
    stated_head_lengths(keys)?;
    llama::own_keys(keys)
}
