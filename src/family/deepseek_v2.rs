//! DeepSeek-V2 and V2-Lite: softmax scores without a bias, the best experts of the best groups or of all.
//!
//! With `norm_topk_prob` the weights of the chosen are normalized and `routed_scaling_factor` is left out. So says
//! the code that the checkpoints came with; transformers' own class knows no `norm_topk_prob` and always scales,
//! llama.cpp does both. No published model sets it.
//!
//! Source: `modeling_deepseek.py` of the published checkpoints (`MoEGate`).

use super::deepseek::{self, Defaults};
use super::{Config, ExpertChoice, Family, Moe, Scoring, Spec};
use crate::error::Result;

/// The `deepseek_v2` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(deepseek::checkpoints(spec)),
    gguf: &deepseek::GGUF,
    naming: deepseek::NAMES,
    renamed: None,
};

const DEFAULTS: Defaults = Defaults {
    model_type: "deepseek_v2",
    scoring: Scoring::Softmax,
    choice: ExpertChoice::Ungrouped,
    normalize_top: false,
};

fn spec(config: &Config) -> Result<Spec> {
    let mut spec = deepseek::spec(config, &DEFAULTS)?;
    if let Some(Moe { per_token, router, .. }) = &mut spec.ffn.moe {
        // With one expert there is nothing to normalize, and MoEGate scales.
        router.normalize &= per_token.most() > 1;
        if router.normalize {
            router.scale = 1.0;
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalized_weights_are_not_scaled() {
        let mut config = serde_json::json!({
            "model_type": "deepseek_v2", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8,
            "moe_intermediate_size": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "routed_scaling_factor": 16.0,
            "num_attention_heads": 1, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
            "vocab_size": 8,
        });
        let scale = |config: &serde_json::Value| {
            let spec = FAMILY.spec(&Config::new(config)).unwrap();
            let router = spec.ffn.moe.unwrap().router;
            (router.normalize, router.scale)
        };
        assert_eq!(scale(&config), (false, 16.0));
        config["norm_topk_prob"] = true.into();
        assert_eq!(scale(&config), (true, 1.0));
        config["num_experts_per_tok"] = 1.into();
        assert_eq!(scale(&config), (false, 16.0));
    }
}
