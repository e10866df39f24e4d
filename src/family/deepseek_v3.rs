//! DeepSeek-V3 and its kin (V3, V3-0324, R1, V3.1): sigmoid scores, a correction bias for the choice,
//! groups of experts.

use super::deepseek::{self, Defaults};
use super::{Config, ExpertChoice, Family, Scoring, Spec};
use crate::error::Result;

/// The `deepseek_v3` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(deepseek::checkpoints(spec)),
    gguf: &deepseek::GGUF,
    naming: deepseek::NAMES,
    renamed: None,
};

const DEFAULTS: Defaults = Defaults {
    model_type: "deepseek_v3",
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

    fn published() -> serde_json::Value {
        serde_json::json!({
            "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
            "num_nextn_predict_layers": 1, "first_k_dense_replace": 3, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
            "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
            "norm_topk_prob": true, "num_attention_heads": 128, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "vocab_size": 129280, "rms_norm_eps": 1e-6, "rope_theta": 10000,
            "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
        })
    }

    #[test]
    fn the_published_model_has_671_billion_parameters_and_one_prediction_layer() {
        let value = published();
        let spec = FAMILY.spec(&Config::new(&value)).unwrap();
        let expected = FAMILY.expected(&spec);
        let count = |required: bool| -> u64 {
            let of_kind = expected.iter().filter(|tensor| tensor.required == required);
            of_kind.map(|tensor| tensor.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
        };
        assert_eq!(count(true), 671_026_419_200);
        // 684.5 G on the hub counts the 41 M scales too.
        assert_eq!((count(true) + count(false)) / 10_000_000, 68_448);
        // 91,991 tensors on the hub are these plus one scale per FP8 weight.
        let fp8 = expected.iter().filter(|tensor| {
            tensor.shape.len() == 2
                && !tensor.name.contains("mlp.gate.weight")
                && !tensor.name.contains("embed_tokens")
                && !tensor.name.contains("head")
                && !tensor.name.contains("eh_proj")
        });
        assert_eq!(expected.len() + fp8.count(), 91_991);
    }

    #[test]
    fn contradictions_name_the_key() {
        for (key, value) in [
            ("n_group", serde_json::json!(7)),
            ("topk_group", serde_json::json!(9)),
            ("num_experts_per_tok", serde_json::json!(257)),
            ("hidden_size", serde_json::json!(0)),
            ("kv_lora_rank", serde_json::json!("many")),
            ("vocab_size", serde_json::json!(1u64 << 40)),
            ("scoring_func", serde_json::json!("sqrtsoftplus")),
            ("topk_method", serde_json::json!("best")),
            ("moe_layer_freq", serde_json::json!(2)),
            ("hidden_act", serde_json::json!("gelu")),
            ("rope_interleave", serde_json::json!(false)),
            ("rope_scaling.attention_factor", serde_json::json!(1.3)),
        ] {
            let mut config = published();
            match key.split_once('.') {
                None => config[key] = value,
                Some((section, key)) => config[section][key] = value,
            }
            let error = FAMILY.spec(&Config::new(&config)).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
