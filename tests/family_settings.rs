//! Settings of families with experts that one of the consumers does not have, or that nobody computes.

use requant::opened::Opened;
use requant::plan::{self, Options};
use serde_json::{Value, json};

use crate::family_goldens::{checkpoint, golden};

/// The golden with one setting changed; null takes it away. A dot leads into a section.
fn changed(name: &str, key: &str, value: &Value) -> Value {
    let mut golden = golden(name);
    let mut section = &mut golden["config"];
    let mut key = key;
    if let Some((outer, inner)) = key.split_once('.') {
        (section, key) = (&mut section[outer], inner);
    }
    let section = section.as_object_mut().unwrap();
    if value.is_null() {
        section.remove(key).unwrap();
    } else {
        section.insert(key.to_owned(), value.clone());
    }
    golden
}

#[test]
fn settings_that_a_consumer_does_not_have_are_refused_for_it() {
    let swapped = json!(["full_attention", "sliding_attention"]);
    for (name, key, value, refused) in [
        ("deepseek_v2-a", "norm_topk_prob", json!(true), &["q8_0", "mlx-4bit"][..]),
        ("deepseek_v2-a", "rope_scaling", Value::Null, &["mlx-4bit"]),
        ("deepseek_v2-b", "n_shared_experts", Value::Null, &["mlx-4bit"]),
        ("glm4_moe_lite-a", "scoring_func", Value::Null, &["q8_0"]),
        ("glm4_moe_lite-a", "rope_theta", Value::Null, &["mlx-4bit"]),
        ("olmoe-a", "norm_topk_prob", json!(true), &["q8_0"]),
        ("olmoe-a", "rms_norm_eps", json!(1e-6), &["q8_0"]),
        ("olmoe-a", "tie_word_embeddings", Value::Null, &["mlx-4bit"]),
        ("olmoe-c", "num_key_value_heads", json!(3), &["q8_0"]),
        ("minimax_m2-a", "scoring_func", Value::Null, &["q8_0"]),
        ("minimax_m2-a", "shared_intermediate_size", Value::Null, &["mlx-4bit"]),
        ("minimax_m2-b", "rotary_dim", json!(24), &[]),
        ("gpt_oss-a", "layer_types", swapped, &["q8_0", "gptq-4bit-32g"]),
        ("gpt_oss-a", "layer_types", Value::Null, &["mlx-4bit", "gptq-4bit-32g"]),
        ("kimi_k25-a", "text_config.rope_theta", Value::Null, &[]),
    ] {
        let (directory, golden) = (tempfile::tempdir().unwrap(), changed(name, key, &value));
        let mut golden = golden;
        if key == "n_shared_experts" {
            let tensors = golden["tensors"].as_array_mut().unwrap();
            tensors.retain(|tensor| !tensor[0].as_str().unwrap().contains("shared_experts"));
        }
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden)).unwrap();
        for format in ["q8_0", "mlx-4bit", "gptq-4bit-32g"] {
            match plan::blueprint(&opened, format, &Options::default()) {
                Err(error) => {
                    let error = error.to_string();
                    assert!(refused.contains(&format), "{name} {key} {format}: {error}");
                    assert!(
                        error.contains(key) || format == "gptq-4bit-32g",
                        "{name} {key} {format}: {error}"
                    );
                }
                Ok(_) => assert!(!refused.contains(&format), "{name} {key} {format}"),
            }
        }
    }
}

#[test]
fn settings_that_nobody_computes_name_the_key() {
    for (name, key, value) in [
        ("deepseek_v2-a", "topk_method", json!("best")),
        ("deepseek_v2-a", "topk_group", json!(5)),
        ("deepseek_v2-a", "kv_lora_rank", Value::Null),
        ("glm4_moe_lite-a", "partial_rotary_factor", json!(0.5)),
        ("glm4_moe_lite-a", "first_k_dense_replace", json!(2)),
        ("glm4_moe_lite-a", "mlp_layer_types", json!(["sparse", "sparse"])),
        ("glm4_moe_lite-a", "q_lora_rank", Value::Null),
        ("glm4_moe_lite-a", "n_shared_experts", Value::Null),
        ("glm4_moe_lite-a", "scoring_func", json!("softmax")),
        ("olmoe-a", "clip_qkv", json!(8.0)),
        ("olmoe-a", "attention_bias", json!(true)),
        ("olmoe-a", "num_experts_per_tok", json!(9)),
        ("minimax_m2-a", "rotary_dim", json!(63)),
        ("minimax_m2-a", "use_qk_norm", json!(false)),
        ("gpt_oss-a", "swiglu_limit", json!(10.0)),
        ("gpt_oss-a", "attention_bias", json!(false)),
        ("gpt_oss-a", "sliding_window", json!(0)),
        ("gpt_oss-a", "rope_scaling", Value::Null),
        ("gpt_oss-a", "num_local_experts", json!(0)),
        ("kimi_k25-a", "text_config.n_routed_experts", Value::Null),
        ("kimi_k25-a", "text_config.moe_layer_freq", json!(2)),
    ] {
        let (directory, golden) = (tempfile::tempdir().unwrap(), changed(name, key, &value));
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden));
        let error = opened.err().unwrap_or_else(|| panic!("{name} {key}")).to_string();
        let key = key.rsplit('.').next().unwrap();
        assert!(error.contains(key), "{name} {key}: {error}");
    }
}

/// Tensors that config.json does not imply, and others than it implies.
#[test]
fn tensors_that_contradict_config_json_are_named() {
    for (name, tensor, shape) in [
        ("olmoe-a", "model.layers.0.self_attn.q_norm.weight", json!([64])),
        ("minimax_m2-a", "model.layers.1.block_sparse_moe.e_score_correction_bias", json!([7])),
        ("gpt_oss-a", "model.layers.0.mlp.experts.gate_up_proj_blocks", json!([8, 512, 4, 16])),
        ("gpt_oss-a", "model.layers.1.mlp.experts.down_proj_scales", json!([8, 256])),
        ("gpt_oss-a", "model.layers.1.self_attn.sinks", json!([3])),
        ("kimi_k25-a", "language_model.model.layers.1.mlp.experts.0.up_proj.weight_packed", json!([256, 31])),
    ] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden(name));
        let rows = golden["tensors"].as_array_mut().unwrap();
        let row = rows.iter_mut().find(|row| row[0] == tensor).unwrap();
        row[1] = shape;
        let error = Opened::open(&checkpoint(directory.path(), name, &golden)).err().unwrap().to_string();
        // A matrix of a stack is called by its own name.
        let own = tensor.rsplit_once(".experts.").map_or(tensor, |(before, _)| before);
        assert!(error.contains(own), "{tensor}: {error}");
    }
}

/// Engines read the experts of gpt-oss in MXFP4 alone.
#[test]
fn what_engines_do_not_read_is_refused_by_name() {
    let (directory, golden) = (tempfile::tempdir().unwrap(), golden("gpt_oss-a"));
    let opened = Opened::open(&checkpoint(directory.path(), "gpt_oss-a", &golden)).unwrap();
    for (format, target) in [
        ("compressed-tensors-w4a16", "compressed-tensors"),
        ("gptq-4bit-32g", "GPTQ"),
        ("awq-4bit-32g", "AWQ"),
    ] {
        let error = plan::blueprint(&opened, format, &Options::default()).err().unwrap().to_string();
        assert!(error.contains("gpt_oss") && error.contains(target), "{error}");
    }
}
