//! Hyper-parameters of a `deepseek2` GGUF, key for key as the converter writes them.
//!
//! Source: llama.cpp `conversion/base.py` (`TextModel.set_gguf_parameters`) and
//! `conversion/deepseek.py` (`DeepseekV2Model.set_gguf_parameters`). The converter reads
//! config.json through transformers' `DeepseekV3Config`, so its defaults stand in for absent
//! keys. Odd, and kept:
//!
//! - latent attention counts as one key-value head, whatever config.json says;
//! - key and value lengths are set twice and stay at their first place;
//! - `yarn_log_multiplier` is a tenth of `mscale_all_dim`, and is written without YaRN too if
//!   that is given.

use requant_formats::container::gguf::Metadata;
use serde_json::Value;

use crate::arch::{ArchSpec, Config};
use crate::error::Result;

/// Name of the architecture in GGUF, and prefix of its keys.
pub(super) const ARCHITECTURE: &str = "deepseek2";

/// Appends the hyper-parameters to `metadata`.
///
/// # Errors
/// Names the key of config.json whose value has the wrong type or is out of range.
pub(super) fn add(metadata: &mut Metadata, raw: &Value, spec: &ArchSpec) -> Result<()> {
    let config = &Config::new(raw);
    let latent = spec.latent()?;
    let is_null = |key: &str| raw.get(key).is_some_and(Value::is_null);
    let mut keys = Keys { metadata, config };
    keys.count("block_count", spec.layers as u64, "num_hidden_layers")?;
    let context = config.count_or("max_position_embeddings", 4096)?;
    keys.count("context_length", context, "max_position_embeddings")?;
    keys.count("embedding_length", spec.hidden as u64, "hidden_size")?;
    keys.count("feed_forward_length", *spec.dense_intermediate.of(0) as u64, "intermediate_size")?;
    keys.count("attention.head_count", latent.heads as u64, "num_attention_heads")?;
    keys.count("attention.head_count_kv", 1, "num_key_value_heads")?;
    let rope = config.section("rope_scaling").or_else(|| config.section("rope_parameters"));
    keys.rope_scaling(rope.as_ref())?;
    let theta = match &rope {
        Some(rope) if rope.get("rope_theta").is_some() => rope.number_or("rope_theta", 0.0)?,
        _ => config.number_or("rope_theta", 10000.0)?,
    };
    keys.float("rope.freq_base", theta);
    keys.float("attention.layer_norm_rms_epsilon", config.number_or("rms_norm_eps", 1e-6)?);
    keys.count("expert_count", spec.experts as u64, "n_routed_experts")?;
    keys.count("expert_used_count", *spec.experts_per_token.of(0) as u64, "num_experts_per_tok")?;
    // Transformers has defaults for absent keys, but none for a null.
    if !is_null("n_group") {
        keys.count("expert_group_count", config.count_or("n_group", 8)?, "n_group")?;
    }
    if !is_null("topk_group") {
        keys.count("expert_group_used_count", config.count_or("topk_group", 4)?, "topk_group")?;
    }
    keys.gating()?;
    keys.count("attention.key_length", (latent.kv_lora + spec.rope.dim) as u64, "kv_lora_rank")?;
    keys.count("attention.value_length", latent.kv_lora as u64, "kv_lora_rank")?;

    keys.count("leading_dense_block_count", spec.dense_layers as u64, "first_k_dense_replace")?;
    keys.count("vocab_size", spec.vocab as u64, "vocab_size")?;
    if let Some(rank) = latent.q_lora {
        keys.count("attention.q_lora_rank", rank as u64, "q_lora_rank")?;
    }
    keys.count("attention.kv_lora_rank", latent.kv_lora as u64, "kv_lora_rank")?;
    keys.count("attention.key_length_mla", (latent.nope_dim + spec.rope.dim) as u64, "qk_nope_head_dim")?;
    keys.count("attention.value_length_mla", latent.v_dim as u64, "v_head_dim")?;
    keys.count(
        "expert_feed_forward_length",
        *spec.expert_intermediate.of(0) as u64,
        "moe_intermediate_size",
    )?;
    keys.count("expert_shared_count", spec.shared_experts as u64, "n_shared_experts")?;
    if !is_null("routed_scaling_factor") {
        keys.float("expert_weights_scale", config.number_or("routed_scaling_factor", 2.5)?);
    }
    if !is_null("norm_topk_prob") && config.flag_or("norm_topk_prob", true)? {
        keys.metadata.set(key("expert_weights_norm"), true);
    }
    keys.count("rope.dimension_count", spec.rope.dim as u64, "qk_rope_head_dim")?;
    if let Some(rope) = rope.filter(|rope| rope.get("mscale_all_dim").is_some()) {
        keys.float("rope.scaling.yarn_log_multiplier", 0.1 * rope.number_or("mscale_all_dim", 0.0)?);
    }
    Ok(())
}

fn key(name: &str) -> String {
    format!("{ARCHITECTURE}.{name}")
}

struct Keys<'a> {
    metadata: &'a mut Metadata,
    config: &'a Config<'a>,
}

impl Keys<'_> {
    fn count(&mut self, name: &str, value: u64, source: &str) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| self.config.invalid(source, &value.to_string(), "a number below 2^32"))?;
        self.metadata.set(key(name), value);
        Ok(())
    }

    /// GGUF's floats are f32; Python rounds to nearest, as `as` does.
    fn float(&mut self, name: &str, value: f64) {
        self.metadata.set(key(name), value as f32);
    }

    fn rope_scaling(&mut self, rope: Option<&Config>) -> Result<()> {
        let Some(rope) = rope else { return Ok(()) };
        let kind = rope.text("rope_type").or_else(|| rope.text("type"));
        if kind != Some("yarn") || rope.get("factor").is_none() {
            return Ok(());
        }
        self.metadata.set(key("rope.scaling.type"), "yarn");
        self.float("rope.scaling.factor", rope.number_or("factor", 0.0)?);
        let original = "original_max_position_embeddings";
        self.count("rope.scaling.original_context_length", rope.dimension(original)? as u64, original)?;
        let attention =
            if rope.get("attention_factor").is_some() { "attention_factor" } else { "attn_factor" };
        for (name, source) in [
            ("rope.scaling.yarn_ext_factor", "extrapolation_factor"),
            ("rope.scaling.yarn_attn_factor", attention),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ] {
            if rope.get(source).is_some() {
                self.float(name, rope.number_or(source, 0.0)?);
            }
        }
        Ok(())
    }

    /// How the router turns logits into weights; absent when config.json does not say.
    fn gating(&mut self) -> Result<()> {
        let Some(value) = self.config.get("scoring_func") else { return Ok(()) };
        let id: u32 = match value.as_str() {
            Some("softmax") => 1,
            Some("sigmoid") => 2,
            Some("sqrtsoftplus") => 4,
            _ => {
                let found = value.to_string();
                return Err(self.config.invalid("scoring_func", &found, "\"sigmoid\" or \"softmax\""));
            }
        };
        self.metadata.set(key("expert_gating_func"), id);
        Ok(())
    }
}
