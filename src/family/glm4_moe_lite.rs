//! GLM-4.7-Flash: DeepSeek-V3's architecture with one dense layer, and a prediction layer that GGUF files keep.
//!
//! Source: transformers `models/glm4_moe_lite`; llama.cpp `conversion/glm.py` (`Glm4MoeLiteModel`), `src/models/deepseek2.cpp`;
//! mlx-lm `models/glm4_moe_lite.py`.

use serde_json::Value;

use super::decoder::{MlxRope, check_mlx_rope};
use super::deepseek::{self, Defaults, Silent, keys_with};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Vocabulary, Written};
use super::{CHECKPOINTS, Checkpoints, Config, ExpertChoice, Family, Scoring, Spec, glm4_moe};
use crate::error::Result;

/// The `glm4_moe_lite` family.
pub(super) const FAMILY: Family = Family {
    model_type: DEFAULTS.model_type,
    checkpoint: Some(Checkpoints { spec, mlx, mlx_ties_head: false, ..CHECKPOINTS }),
    gguf: &GGUF,
    naming: deepseek::NAMES,
    renamed: None,
};

const GGUF: Architecture = Architecture {
    keeps_predictors: true,
    vocabulary: Vocabulary { special: glm4_moe::SPECIAL, ..deepseek::GGUF.vocabulary },
    keys,
    ..deepseek::GGUF
};

const DEFAULTS: Defaults = Defaults {
    model_type: "glm4_moe_lite",
    scoring: Scoring::Sigmoid,
    choice: ExpertChoice::GroupsByTwoBest,
    normalize_top: true,
};

/// What its implementations have different defaults for.
const STATED: [&str; 6] = [
    "q_lora_rank",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "rms_norm_eps",
    "num_key_value_heads",
];
const KINDS: &str = "mlp_layer_types";

fn spec(config: &Config) -> Result<Spec> {
    if let Some(key) = STATED.iter().find(|key| !config.has(key)) {
        return Err(config.missing(key));
    }
    for (key, expected) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(other) = config.get(key).filter(|value| value.as_str() != Some(expected)) {
            return Err(config.invalid(key, &other.to_string(), &format!("{expected:?}")));
        }
    }
    if config.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        let found = config.number_or("partial_rotary_factor", 1.0)?.to_string();
        return Err(config.invalid("partial_rotary_factor", &found, "1 in models of this family"));
    }
    let spec = deepseek::spec(config, &DEFAULTS)?;
    check_layers(config, &spec)?;
    Ok(spec)
}

/// transformers goes by `mlp_layer_types`, which without it is one dense layer; the others by `first_k_dense_replace`.
fn check_layers(config: &Config, spec: &Spec) -> Result<()> {
    let dense = spec.ffn.dense.layers;
    let Some(kinds) = config.get(KINDS) else {
        return match dense {
            1 => Ok(()),
            found => {
                let expected = format!("1, or {KINDS} that says the same");
                Err(config.invalid("first_k_dense_replace", &found.to_string(), &expected))
            }
        };
    };
    let expected = |layer| if layer < dense { "dense" } else { "sparse" };
    let is_expected = |list: &Vec<Value>| {
        list.len() == spec.layers
            && list.iter().zip(0..).all(|(kind, layer)| kind.as_str() == Some(expected(layer)))
    };
    if kinds.as_array().is_some_and(is_expected) {
        return Ok(());
    }
    let message = format!(
        "\"dense\" in the first {dense} of {} layers, as first_k_dense_replace says, else \"sparse\"",
        spec.layers
    );
    Err(config.invalid(KINDS, &kinds.to_string(), &message))
}

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(config, &MlxRope { theta: Some(1e6), is_nested: false, scales: true }, 10000.0)
}

fn keys(keys: &mut Written) -> Result<()> {
    let (config, spec) = (keys.config, keys.spec);
    // llama.cpp knows the published model by its size.
    let is_published = matches!(spec.layers, 47 | 48) && spec.embedding.vocab == 154_880;
    if config.get("scoring_func").is_none() && !is_published {
        let limit = "scoring_func \"sigmoid\", or 47 layers and a vocabulary of 154880";
        return Err(beyond(GGUF.name, "scoring_func", "missing", limit));
    }
    keys_with(keys, &Silent { groups: Some((1, 1)), scale: 1.8, normalize: true, has_head_dim: false })?;
    if spec.mtp_layers > 0 {
        keys.count("nextn_predict_layers", spec.mtp_layers as u64, "num_nextn_predict_layers")?;
    }
    Ok(())
}
