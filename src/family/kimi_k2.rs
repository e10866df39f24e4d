//! Kimi-K2 (Base, Instruct, Thinking): DeepSeek-V3's architecture with other numbers, and no prediction layer.
//!
//! Its config.json says `model_type: kimi_k2` and `architectures: [DeepseekV3ForCausalLM]`, its code is
//! `modeling_deepseek.py`, its tensors have V3's names. Readers treat it as V3: mlx-lm by renaming the type
//! (`MODEL_REMAPPING`), llama.cpp by the architecture (`deepseek2`). Thinking has its experts in
//! compressed-tensors' `pack-quantized`. Kimi-K2.5 and later (`kimi_k25`) wrap the same model in another one with a
//! `text_config`.
//!
//! Source: model card ("Kimi-K2 reuses the DeepSeekV3CausalLM architecture") and config.json of
//! moonshotai/Kimi-K2-Instruct.

use super::deepseek::{self, Defaults};
use super::{Config, ExpertChoice, Family, Naming, Scoring, Spec};
use crate::error::Result;

/// The `kimi_k2` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(deepseek::checkpoints(spec)),
    gguf: &deepseek::GGUF,
    naming: Naming { mlx_keeps_codes: true, ..deepseek::NAMES },
    renamed: None,
};

const DEFAULTS: Defaults = Defaults {
    model_type: "kimi_k2",
    scoring: Scoring::Sigmoid,
    choice: ExpertChoice::GroupsByTwoBest,
    normalize_top: true,
};

fn spec(config: &Config) -> Result<Spec> {
    deepseek::spec(config, &DEFAULTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kimi-K2-Instruct's, as published.
    fn published() -> serde_json::Value {
        serde_json::json!({
            "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false,
            "model_type": "kimi_k2", "hidden_size": 7168, "num_hidden_layers": 61,
            "num_nextn_predict_layers": 0, "first_k_dense_replace": 1, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_routed_experts": 384,
            "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "routed_scaling_factor": 2.827, "norm_topk_prob": true, "scoring_func": "sigmoid",
            "topk_method": "noaux_tc", "num_attention_heads": 64, "num_key_value_heads": 64,
            "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "vocab_size": 163840, "rms_norm_eps": 1e-6, "rope_theta": 50000.0,
            "tie_word_embeddings": false,
            "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
        })
    }

    #[test]
    fn the_published_model_has_a_trillion_parameters() {
        let value = published();
        let spec = FAMILY.spec(&Config::new(&value)).unwrap();
        assert_eq!(
            (spec.ffn.moe.as_ref().unwrap().router.groups, spec.ffn.dense.layers, spec.mtp_layers),
            (1, 1, 0)
        );
        let count = |shape: &[usize]| shape.iter().map(|&d| d as u64).product::<u64>();
        let expected = FAMILY.expected(&spec);
        assert!(expected.iter().all(|tensor| tensor.required));
        let parameters: u64 = expected.iter().map(|tensor| count(&tensor.shape)).sum();
        // The hub says 1026.5 B and counts one scale for each 128 x 128 block of FP8 too.
        let is_fp8 = |name: &str| name.contains("_proj");
        let blocks = |shape: &[usize]| shape.iter().map(|&d| d.div_ceil(128) as u64).product::<u64>();
        let fp8 = expected.iter().filter(|tensor| is_fp8(&tensor.name));
        let scales: u64 = fp8.map(|tensor| blocks(&tensor.shape)).sum();
        assert_eq!((parameters, scales), (1_026_408_232_448, 62_495_192));
    }

    #[test]
    fn grouped_query_attention_is_not_this_family() {
        let mut config = published();
        config.as_object_mut().unwrap().remove("kv_lora_rank");
        let error = FAMILY.spec(&Config::new(&config)).unwrap_err().to_string();
        assert!(error.contains("kv_lora_rank"), "{error}");
    }
}
