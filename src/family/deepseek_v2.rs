//! DeepSeek-V2 and V2-Lite: softmax scores without a bias, the best experts of the best groups or of all.
//!
//! With `norm_topk_prob` the weights of the chosen are normalized and `routed_scaling_factor` is left out. So says
//! the code that the checkpoints came with; transformers' own class knows no `norm_topk_prob` and always scales,
//! llama.cpp does both. No published model sets it.
//!
//! Source: `modeling_deepseek.py` of the published checkpoints (`MoEGate`).

use super::decoder::{MlxRope, check_mlx_keys, check_mlx_rope};
use super::deepseek::{self, Defaults, Silent, keys_with};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Written};
use super::{CHECKPOINTS, Checkpoints, Config, ExpertChoice, Family, Moe, Naming, Scoring, Spec};
use crate::error::{Error, Result};

/// The `deepseek_v2` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(Checkpoints { spec, convertible, mlx, mlx_ties_head: false, ..CHECKPOINTS }),
    gguf: &GGUF,
    naming: Naming { mlx_splits_key_value: false, ..deepseek::NAMES },
    renamed: None,
};

const GGUF: Architecture = Architecture { keys, ..deepseek::GGUF };

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

/// What can be converted: routers as V2 has them.
fn convertible(spec: &Spec) -> Result<()> {
    let is_own = |moe: &Moe| {
        moe.router.scoring == Scoring::Softmax && moe.router.choice != ExpertChoice::GroupsByTwoBest
    };
    if spec.ffn.moe.as_ref().is_some_and(is_own) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("converting this {} model", spec.model_type),
        hint: "its router is not deepseek_v2's (scoring_func, topk_method); it can be evaluated".into(),
    })
}

fn keys(keys: &mut Written) -> Result<()> {
    if let Some(moe) = &keys.spec.ffn.moe
        && moe.router.normalize
        && keys.config.number_or("routed_scaling_factor", 1.0)? != 1.0
    {
        // The checkpoints' own code does one or the other.
        let limit = "a routed_scaling_factor of 1: it scales normalized weights as well";
        return Err(beyond(GGUF.name, "norm_topk_prob", "true", limit));
    }
    keys_with(keys, &Silent { groups: None, scale: 1.0, normalize: false, has_head_dim: true })
}

fn mlx(config: &Config) -> Result<()> {
    let refuse = |what: &str, hint: &str| {
        Err(Error::Unsupported { what: format!("config.json: {what}"), hint: hint.into() })
    };
    if config.section("rope_scaling").is_none_or(|scaling| scaling.get("factor").is_none()) {
        return refuse("no rope_scaling with a factor", "mlx-lm reads deepseek_v2 models only with one");
    }
    if config.flag_or("norm_topk_prob", false)? {
        return refuse("norm_topk_prob true", "mlx-lm's model of this family leaves it out");
    }
    if config.text("topk_method") == Some("group_limited_greedy") {
        check_mlx_keys(config, &["n_group", "topk_group"])?;
    }
    check_mlx_rope(config, &MlxRope { theta: Some(10000.0), is_nested: false, scales: true }, 10000.0)?;
    check_mlx_keys(config, &["num_experts_per_tok", "n_routed_experts", "n_shared_experts"])
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
