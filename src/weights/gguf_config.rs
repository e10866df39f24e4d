//! Hyper-parameters of a `deepseek2` GGUF, spelled as config.json spells them, so that the model family
//! reads and checks them as it does a checkpoint's.
//!
//! llama.cpp keeps a tenth of `mscale_all_dim` as `yarn_log_multiplier` and does not keep `mscale`: every
//! published model has the two equal, which makes the factor on sine and cosine 1. Without
//! `expert_gating_func` the router is a softmax (the GGUF files of DeepSeek-V2 lack the key).
//!
//! A softmax router with groups judges a group by its best expert, as DeepSeek-V2 does; llama.cpp judges groups
//! of every model by the sum of their two best, and so computes something else than the model it was made from.
//! V2 files without group counts, which is most of them, choose from all experts, here and there.
//!
//! Layers beyond the model proper predict further tokens (`nextn_predict_layers`); a file may count them and lack them.
//!
//! Source: llama.cpp `src/models/deepseek2.cpp`, `src/llama-graph.cpp` (`build_moe_ffn`).

use requant_formats::container::gguf::{Metadata, Value};
use serde_json::{Map, json};

use super::gguf_keys::{Contents, Keys};
use crate::error::{Error, Result};

/// The one architecture of the DeepSeek family.
pub(super) const ARCHITECTURE: &str = "deepseek2";
const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;
/// Keys about the cache of keys and values, which says nothing about what a model computes.
const OF_THE_CACHE: &[&str] = &["attention.head_count_kv", "attention.key_length", "attention.value_length"];

/// Counts that must be there: key of the GGUF, key of config.json.
const COUNTS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.kv_lora_rank", "kv_lora_rank"),
    ("rope.dimension_count", "qk_rope_head_dim"),
    ("expert_count", "n_routed_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
];

/// Counts that may be absent.
const OPTIONAL_COUNTS: &[(&str, &str)] = &[
    ("leading_dense_block_count", "first_k_dense_replace"),
    ("expert_shared_count", "n_shared_experts"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
    ("attention.q_lora_rank", "q_lora_rank"),
];

/// config.json of the model in `file`.
///
/// # Errors
/// A key that is missing, of the wrong type, or unknown.
pub(super) fn config(metadata: &Metadata, file: &str, contents: &Contents) -> Result<serde_json::Value> {
    let keys = Keys::new(metadata, file, ARCHITECTURE);
    let mut config = Map::new();
    let blocks = keys.required_count("block_count")? as u64;
    let predictors = keys.count("nextn_predict_layers")?.unwrap_or(0);
    let layers = blocks.checked_sub(predictors).filter(|&layers| layers > 0).ok_or_else(|| {
        keys.invalid(
            "block_count",
            &Value::from(blocks as u32),
            &format!("more than the {predictors} that predict"),
        )
    })?;
    let has_predictor = contents.names.contains(format!("blk.{layers}.nextn.eh_proj.weight").as_str());
    config.insert("num_hidden_layers".into(), layers.into());
    config.insert("num_nextn_predict_layers".into(), if has_predictor { predictors } else { 0 }.into());
    for (key, name) in COUNTS {
        config.insert((*name).into(), keys.count(key)?.ok_or_else(|| keys.missing(key))?.into());
    }
    for (key, name) in OPTIONAL_COUNTS {
        if let Some(count) = keys.count(key)? {
            config.insert((*name).into(), count.into());
        }
    }
    let key = "attention.key_length_mla";
    let key_length = head_length(&keys, "key_length")?.ok_or_else(|| keys.missing(key))?;
    let value_length = head_length(&keys, "value_length")?;
    let value_length = value_length.ok_or_else(|| keys.missing("attention.value_length_mla"))?;
    config.insert("v_head_dim".into(), value_length.into());
    let rope = keys.count("rope.dimension_count")?.unwrap_or(0);
    let nope = key_length.checked_sub(rope).ok_or_else(|| keys.missing(key))?;
    config.insert("qk_nope_head_dim".into(), nope.into());

    let gating = keys.count("expert_gating_func")?.unwrap_or(SOFTMAX);
    let flag = keys.flag("expert_weights_norm")?;
    // llama.cpp scales weights that it has normalized, as V3 does and V2 does not.
    let softmax_family = if flag { "deepseek_v3" } else { "deepseek_v2" };
    let (model_type, scoring, method) = match gating {
        SIGMOID => ("deepseek_v3", "sigmoid", "noaux_tc"),
        SOFTMAX if keys.count("expert_group_count")?.unwrap_or(1) > 1 => {
            (softmax_family, "softmax", "group_limited_greedy")
        }
        SOFTMAX => (softmax_family, "softmax", "greedy"),
        other => {
            return Err(Error::Unsupported {
                what: format!("{file}: {ARCHITECTURE}.expert_gating_func {other}"),
                hint: format!("routers may be softmax ({SOFTMAX}) or sigmoid ({SIGMOID})"),
            });
        }
    };
    config.insert("model_type".into(), model_type.into());
    config.insert("scoring_func".into(), scoring.into());
    config.insert("topk_method".into(), method.into());
    config.insert("vocab_size".into(), contents.vocab.into());
    config.insert("tie_word_embeddings".into(), (!contents.names.contains("output.weight")).into());
    config.insert("norm_topk_prob".into(), flag.into());
    // llama.cpp takes 0 for absent.
    let scale = keys.number("expert_weights_scale")?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
    config.insert("routed_scaling_factor".into(), scale.into());
    let key = "attention.layer_norm_rms_epsilon";
    config.insert("rms_norm_eps".into(), keys.required_number(key)?.into());
    config.insert("rope_theta".into(), keys.number("rope.freq_base")?.unwrap_or(10000.0).into());
    if let Some(scaling) = rope_scaling(&keys)? {
        config.insert("rope_scaling".into(), scaling);
    }
    keys.check_all_known(OF_THE_CACHE)?;
    Ok(config.into())
}

/// `rope_scaling` of config.json.
fn rope_scaling(keys: &Keys) -> Result<Option<serde_json::Value>> {
    match keys.text("rope.scaling.type") {
        None | Some("none") => return Ok(None),
        Some("yarn") => {}
        Some(other) => {
            return Err(Error::Unsupported {
                what: format!("{}: {} {other:?}", keys.file(), keys.full("rope.scaling.type")),
                hint: "this version evaluates \"yarn\", or none".into(),
            });
        }
    }
    for key in ["rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor"] {
        if keys.number(key)?.is_some_and(|factor| factor != 1.0) {
            return Err(Error::Unsupported {
                what: format!("{}: {}", keys.file(), keys.full(key)),
                hint: "no model of this family is known to have it".into(),
            });
        }
    }
    let original = "rope.scaling.original_context_length";
    // The division in f32 undoes the converter's multiplication.
    let all_dim = keys.number("rope.scaling.yarn_log_multiplier")?.map_or(0.0, |log| log as f32 / 0.1f32);
    Ok(Some(json!({
        "type": "yarn",
        "factor": keys.required_number("rope.scaling.factor")?,
        "original_max_position_embeddings": keys.count(original)?.ok_or_else(|| keys.missing(original))?,
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        "mscale": f64::from(all_dim),
        "mscale_all_dim": f64::from(all_dim),
    })))
}

/// Width of a head; files from before May 2025 do not tell it from the width of what is cached.
fn head_length(keys: &Keys, key: &str) -> Result<Option<u64>> {
    let own = keys.count(&format!("attention.{key}_mla"))?;
    if own.is_some() { Ok(own) } else { keys.count(&format!("attention.{key}")) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::arch::{self, ArchSpec, Config, ExpertChoice, Scoring};

    /// DeepSeek-V2's, as its converter writes them; it has no `expert_gating_func`.
    fn deepseek_v2() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "deepseek2");
        for (key, count) in [
            ("block_count", 60u32),
            ("embedding_length", 5120),
            ("feed_forward_length", 12288),
            ("attention.head_count", 128),
            ("attention.q_lora_rank", 1536),
            ("attention.kv_lora_rank", 512),
            ("attention.key_length_mla", 192),
            ("attention.value_length_mla", 128),
            ("rope.dimension_count", 64),
            ("expert_count", 160),
            ("expert_used_count", 6),
            ("expert_shared_count", 2),
            ("expert_group_count", 8),
            ("expert_group_used_count", 3),
            ("expert_feed_forward_length", 1536),
            ("leading_dense_block_count", 1),
            ("rope.scaling.original_context_length", 4096),
        ] {
            metadata.set(format!("deepseek2.{key}"), count);
        }
        metadata.set("deepseek2.rope.scaling.type", "yarn");
        for (key, number) in [
            ("attention.layer_norm_rms_epsilon", 1e-6f32),
            ("expert_weights_scale", 16.0),
            ("rope.freq_base", 10000.0),
            ("rope.scaling.factor", 40.0),
            ("rope.scaling.yarn_log_multiplier", 0.1 * 0.707),
        ] {
            metadata.set(format!("deepseek2.{key}"), number);
        }
        metadata
    }

    fn spec(metadata: &Metadata) -> Result<ArchSpec> {
        spec_of(metadata, &["output.weight"])
    }

    fn spec_of(metadata: &Metadata, names: &[&str]) -> Result<ArchSpec> {
        let contents = Contents { vocab: 102_400, names: &names.iter().copied().collect::<HashSet<_>>() };
        let config = config(metadata, "m.gguf", &contents)?;
        arch::find(&config)?.spec(&Config::new(&config))
    }

    #[test]
    fn layers_that_predict_are_not_layers_of_the_model() {
        let mut metadata = deepseek_v2();
        metadata.set("deepseek2.nextn_predict_layers", 1u32);
        let counts =
            |names: &[&str]| spec_of(&metadata, names).map(|spec| (spec.layers, spec.mtp_layers)).unwrap();
        assert_eq!(counts(&["output.weight", "blk.59.nextn.eh_proj.weight"]), (59, 1));
        assert_eq!(counts(&["output.weight"]), (59, 0));
        let mut metadata = deepseek_v2();
        metadata.set("deepseek2.nextn_predict_layers", 60u32);
        let error = spec(&metadata).unwrap_err().to_string();
        assert!(error.contains("deepseek2.block_count") && error.contains("60"), "{error}");
    }

    #[test]
    fn a_key_that_nobody_knows_is_an_error() {
        let mut metadata = deepseek_v2();
        metadata.set("deepseek2.attention.key_length", 576u32);
        metadata.set("deepseek2.context_length", 163_840u32);
        spec(&metadata).unwrap();
        metadata.set("deepseek2.attention.temperature_scale", 0.1f32);
        let error = spec(&metadata).unwrap_err().to_string();
        assert!(error.contains("deepseek2.attention.temperature_scale"), "{error}");
    }

    fn widths(spec: &ArchSpec) -> (usize, usize, usize) {
        let latent = spec.latent().unwrap();
        (latent.nope_dim, spec.rope.dim, latent.v_dim)
    }

    #[test]
    fn without_a_gating_function_the_router_is_that_of_v2() {
        let spec = spec(&deepseek_v2()).unwrap();
        assert_eq!(spec.model_type, "deepseek_v2");
        assert_eq!((spec.scoring, spec.choice), (Scoring::Softmax, ExpertChoice::GroupsByBest));
        assert_eq!(widths(&spec), (128, 64, 128));
        assert_eq!((spec.norm_eps, spec.routed_scale, spec.normalize_top), (1e-6, 16.0, false));
        let yarn = spec.rope.yarn().unwrap();
        assert_eq!((yarn.factor, yarn.original_context, yarn.beta_fast), (40.0, 4096, 32.0));
        assert!((yarn.mscale_all_dim - 0.707).abs() < 1e-6);
    }

    #[test]
    fn without_groups_and_low_rank_queries_it_is_v2_lite() {
        let mut metadata = deepseek_v2();
        for key in ["expert_group_count", "expert_group_used_count", "attention.q_lora_rank"] {
            metadata.remove(&format!("deepseek2.{key}"));
        }
        let spec = spec(&metadata).unwrap();
        assert_eq!((spec.choice, spec.latent().unwrap().q_lora), (ExpertChoice::Ungrouped, None));
    }

    #[test]
    fn heads_may_be_described_as_they_were_before_the_projection_was_split() {
        let mut metadata = deepseek_v2();
        for (new, old, count) in
            [("key_length_mla", "key_length", 192u32), ("value_length_mla", "value_length", 128)]
        {
            metadata.remove(&format!("deepseek2.attention.{new}"));
            assert!(spec(&metadata).unwrap_err().to_string().contains(new));
            metadata.set(format!("deepseek2.attention.{old}"), count);
        }
        let spec = spec(&metadata).unwrap();
        assert_eq!(widths(&spec), (128, 64, 128));
    }

    #[test]
    fn normalized_weights_are_scaled_as_llama_cpp_does() {
        let mut metadata = deepseek_v2();
        metadata.set("deepseek2.expert_weights_norm", true);
        let spec = spec(&metadata).unwrap();
        assert_eq!((spec.scoring, spec.choice), (Scoring::Softmax, ExpertChoice::GroupsByBest));
        assert_eq!((spec.normalize_top, spec.routed_scale), (true, 16.0));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        for (key, value, named) in [
            ("deepseek2.expert_gating_func", Value::from(4u32), "expert_gating_func 4"),
            ("deepseek2.rope.scaling.type", Value::from("linear"), "\"linear\""),
            ("deepseek2.rope.scaling.yarn_attn_factor", Value::from(2f32), "yarn_attn_factor"),
            ("deepseek2.block_count", Value::from("many"), "block_count"),
            ("deepseek2.expert_group_count", Value::from(7u32), "n_group"),
        ] {
            let mut metadata = deepseek_v2();
            metadata.set(key, value);
            let error = spec(&metadata).unwrap_err().to_string();
            assert!(error.contains(named), "{key}: {error}");
        }
    }
}
