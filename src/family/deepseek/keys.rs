//! The keys of `deepseek2` files.
//!
//! Source: llama.cpp `conversion/deepseek.py` (`DeepseekV2Model.set_gguf_parameters`). Odd, and kept:
//!
//! - latent attention counts as one key-value head, whatever config.json says;
//! - key and value lengths come first where transformers has a width of heads, else behind the ranks;
//! - `yarn_log_multiplier` is a tenth of `mscale_all_dim`, and is written without YaRN too if that is given.

use crate::error::Result;
use crate::family::gguf::Written;

/// What keys of GGUF files say where config.json is silent: the defaults of transformers, of which the converter takes it.
pub(in crate::family) struct Silent {
    /// Groups of experts, and how many are chosen.
    pub(in crate::family) groups: Option<(u64, u64)>,
    /// Factor on the weights of experts.
    pub(in crate::family) scale: f64,
    /// Whether these are normalized.
    pub(in crate::family) normalize: bool,
    /// Whether there is a width of heads, so that the lengths of keys and values come first.
    pub(in crate::family) has_head_dim: bool,
}

/// Those of V3.
///
/// # Errors
/// Names the key of config.json whose value is out of range.
pub(super) fn keys(keys: &mut Written) -> Result<()> {
    keys_with(keys, &Silent { groups: Some((8, 4)), scale: 2.5, normalize: true, has_head_dim: true })
}

/// The same with the defaults of a family.
///
/// # Errors
/// Names the key of config.json whose value is out of range.
pub(in crate::family) fn keys_with(keys: &mut Written, silent: &Silent) -> Result<()> {
    let (config, spec) = (keys.config, keys.spec);
    let latent = spec.latent()?;
    // Transformers has defaults for absent keys, but none for a null.
    let (groups, top_groups) = silent.groups.unzip();
    for (key, name, default) in
        [("expert_group_count", "n_group", groups), ("expert_group_used_count", "topk_group", top_groups)]
    {
        if config.get(name).is_some() || !config.is_null(name) && default.is_some() {
            keys.count(key, config.count_or(name, default.unwrap_or(0))?, name)?;
        }
    }
    keys.gating()?;
    let lengths = |keys: &mut Written| {
        keys.count("attention.key_length", (latent.kv_lora + spec.rope.dim) as u64, "kv_lora_rank")?;
        keys.count("attention.value_length", latent.kv_lora as u64, "kv_lora_rank")
    };
    if silent.has_head_dim {
        lengths(keys)?;
    }
    keys.count("leading_dense_block_count", spec.ffn.dense.layers as u64, "first_k_dense_replace")?;
    keys.count("vocab_size", spec.embedding.vocab as u64, "vocab_size")?;
    if let Some(rank) = latent.q_lora {
        keys.count("attention.q_lora_rank", rank as u64, "q_lora_rank")?;
    }
    keys.count("attention.kv_lora_rank", latent.kv_lora as u64, "kv_lora_rank")?;
    if !silent.has_head_dim {
        lengths(keys)?;
    }
    keys.count("attention.key_length_mla", (latent.nope_dim + spec.rope.dim) as u64, "qk_nope_head_dim")?;
    keys.count("attention.value_length_mla", latent.v_dim as u64, "v_head_dim")?;
    if let Some(moe) = &spec.ffn.moe {
        keys.count("expert_feed_forward_length", *moe.width.of(0) as u64, "moe_intermediate_size")?;
        let shared = moe.shared.as_ref().map_or(0, |shared| shared.experts);
        keys.count("expert_shared_count", shared as u64, "n_shared_experts")?;
    }
    if !config.is_null("routed_scaling_factor") {
        keys.float("expert_weights_scale", config.number_or("routed_scaling_factor", silent.scale)?);
    }
    if !config.is_null("norm_topk_prob") && config.flag_or("norm_topk_prob", silent.normalize)? {
        keys.flag("expert_weights_norm", true);
    }
    keys.count("rope.dimension_count", spec.rope.dim as u64, "qk_rope_head_dim")?;
    if let Some(rope) = keys.rope().filter(|rope| rope.get("mscale_all_dim").is_some()) {
        keys.float("rope.scaling.yarn_log_multiplier", 0.1 * rope.number_or("mscale_all_dim", 0.0)?);
    }
    Ok(())
}
