//! Checkpoints that are refused by name: by all targets, or by the one whose consumer would compute something else.

use requant::opened::Opened;
use requant::plan::{self, Options};
use serde_json::{Value, json};

use crate::families::{File, Model, models, rebuild};
use crate::grouped_query::path;

/// A key that is missing, or contradicts another or what the family does, is named.
#[test]
fn hostile_configurations_name_the_key() {
    let base = |name: &str| models().into_iter().find(|model| model.name == name).unwrap();
    for (name, key, value) in [
        ("qwen2", "hidden_size", Value::Null),
        ("qwen2", "num_key_value_heads", json!(3)),
        ("qwen2", "hidden_act", json!("gelu")),
        ("qwen3", "attention_bias", json!(true)),
        ("qwen3", "head_dim", json!(7)),
        ("qwen3moe", "mlp_only_layers", json!([0])),
        ("qwen3moe", "decoder_sparse_step", json!(2)),
        ("qwen3moe", "num_experts_per_tok", json!(7)),
        ("qwen2moe", "shared_expert_intermediate_size", json!("wide")),
        ("llama-moe", "sliding_window", json!(24)),
        ("llama-moe", "num_local_experts", json!(0)),
        // Other models than the family's own.
        ("qwen3", "architectures", json!(["Qwen3ForSequenceClassification"])),
        ("qwen3", "architectures", json!(["Qwen3Model"])),
        ("qwen2", "is_causal", json!(false)),
        ("qwen2", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("llama-moe", "partial_rotary_factor", json!(0.5)),
        ("llama-moe", "residual_multiplier", json!(0.22)),
        ("qwen3", "draft_vocab_size", json!(32)),
        ("qwen2", "rope_theta", json!(0.0)),
        ("qwen2", "rope_scaling", json!({"type": "linear"})),
        ("qwen2", "rope_scaling", json!({"type": "linear", "factor": 0.0})),
        ("qwen2", "rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("qwen2", "rope_scaling", json!({"type": "default", "mrope_section": [2, 2, 4]})),
        ("qwen3", "rope_scaling", yarn(json!({"truncate": false}))),
        ("qwen3", "rope_scaling", yarn(json!({"beta_fast": 1.0}))),
        ("qwen3", "rope_scaling", yarn(json!({"attention_factor": 0.0}))),
        ("qwen3", "rope_scaling", yarn(json!({"extrapolation_factor": 0.5}))),
        ("qwen3", "rope_scaling", yarn(json!({"short_factor": [1.0]}))),
        ("qwen3", "rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        (
            "llama-moe",
            "rope_scaling",
            json!({"rope_type": "llama3", "original_max_position_embeddings": 64, "low_freq_factor": 4}),
        ),
    ] {
        let Model { mut config, name, pre, is_interleaved } = base(name);
        let directory = tempfile::tempdir().unwrap();
        let whole = Model { name, pre, config: config.clone(), is_interleaved };
        rebuild(&whole, &File::open(&path(name)), directory.path());
        config[key] = value;
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let error =
            Opened::open(directory.path()).err().unwrap_or_else(|| panic!("{name} {key}")).to_string();
        assert!(error.contains(key), "{name} {key}: {error}");
    }
}

/// A section of YaRN with more in it.
fn yarn(more: Value) -> Value {
    let mut section = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    section
}

/// What one of the consumers would compute otherwise than the checkpoint says is refused for that one alone.
#[test]
fn routers_that_a_consumer_does_not_have_are_refused_for_it() {
    for (name, normalizes, refused) in
        [("qwen3moe", false, &["q8_0"][..]), ("qwen2moe", true, &["q8_0", "mlx-bf16"])]
    {
        let mut model = models().into_iter().find(|model| model.name == name).unwrap();
        model.config["norm_topk_prob"] = normalizes.into();
        model.config["rope_theta"] = json!(500.0);
        let directory = tempfile::tempdir().unwrap();
        rebuild(&model, &File::open(&path(name)), directory.path());
        let opened = Opened::open(directory.path()).unwrap();
        let options = Options { tokenizer_pre: Some(model.pre.into()), ..Options::default() };
        for format in ["q8_0", "mlx-bf16", "gptq-4bit-32g"] {
            let options = if format == "q8_0" { options.clone() } else { Options::default() };
            match plan::blueprint(&opened, format, &options) {
                Err(error) if refused.contains(&format) => {
                    assert!(error.to_string().contains("norm_topk_prob"), "{name} {format}: {error}");
                }
                found => {
                    assert!(found.is_ok() && !refused.contains(&format), "{name} {format}: {:?}", found.err())
                }
            }
        }
    }
}

/// mlx-lm has defaults of its own, and some of its models look in one place only, or scale nothing.
#[test]
fn rotary_positions_that_mlx_lm_would_take_for_others_are_refused_for_it() {
    let linear = json!({"type": "linear", "factor": 2.0});
    let top = json!(500.0);
    for (name, keys, refused) in [
        ("qwen2", vec![], Some("rope_theta")),
        ("qwen2", vec![("rope_theta", top.clone())], Some("of type linear")),
        ("qwen2", vec![("rope_theta", top.clone()), ("rope_scaling", linear.clone())], None),
        ("qwen2", vec![("rope_theta", top.clone()), ("rope_scaling", yarn(json!({})))], None),
        (
            "qwen2",
            vec![("rope_theta", top.clone()), ("rope_scaling", yarn(json!({"attention_factor": 2.0})))],
            Some("attention_factor"),
        ),
        ("qwen2moe", vec![("rope_theta", top.clone())], None),
        (
            "qwen2moe",
            vec![("rope_theta", top.clone()), ("rope_scaling", linear.clone())],
            Some("of type linear"),
        ),
        ("qwen3", vec![], None),
        (
            "qwen3moe",
            vec![("rope_theta", top.clone()), ("rope_scaling", linear.clone())],
            Some("of type linear"),
        ),
    ] {
        let mut model = models().into_iter().find(|model| model.name == name).unwrap();
        for (key, value) in keys {
            model.config[key] = value;
        }
        let directory = tempfile::tempdir().unwrap();
        rebuild(&model, &File::open(&path(name)), directory.path());
        let opened = Opened::open(directory.path()).unwrap();
        match (plan::blueprint(&opened, "mlx-bf16", &Options::default()), refused) {
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{name}: {error}"),
            (found, refused) => {
                assert_eq!(found.err().map(|error| error.to_string()), refused.map(str::to_owned))
            }
        }
        plan::blueprint(&opened, "gptq-4bit-32g", &Options::default()).unwrap();
    }
}

/// mlx-lm takes this router's 8 bits in groups of 64, whatever the format's groups are, and stops at rows of 32.
#[test]
fn routers_whose_rows_are_no_groups_of_64_are_refused_for_mlx() {
    let mut model = models().into_iter().find(|model| model.name == "qwen3moe").unwrap();
    model.config["rope_theta"] = json!(500.0);
    let directory = tempfile::tempdir().unwrap();
    rebuild(&model, &File::open(&path(model.name)), directory.path());
    let opened = Opened::open(directory.path()).unwrap();
    let error = plan::blueprint(&opened, "mlx-4bit-g32", &Options::default()).err().unwrap().to_string();
    assert!(error.contains("model.layers.0.mlp.gate.weight") && error.contains("groups of 64"), "{error}");
    // Here the recipe skips all rows, routers too.
    plan::blueprint(&opened, "mlx-4bit", &Options::default()).unwrap();
}

/// llama.cpp's converter tells a reranker by its name and makes a classifier of it.
#[test]
fn rerankers_are_refused_for_gguf_alone() {
    let model = models().into_iter().find(|model| model.name == "qwen3").unwrap();
    let options = Options { tokenizer_pre: Some(model.pre.into()), ..Options::default() };
    for case in ["directory", "card", "config"] {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join(if case == "directory" { "Qwen3-Reranker-tiny" } else { "model" });
        std::fs::create_dir(&source).unwrap();
        let Model { name, pre, mut config, is_interleaved } = model.clone();
        if case == "config" {
            config["_name_or_path"] = "org/Qwen3-Reranker-0.6B".into();
        }
        rebuild(&Model { name, pre, config, is_interleaved }, &File::open(&path("qwen3")), &source);
        if case == "card" {
            std::fs::write(source.join("README.md"), "---\nlicense: mit\n---\n# Qwen3-Reranker-0.6B\n")
                .unwrap();
        }
        let opened = Opened::open(&source).unwrap();
        let error = plan::blueprint(&opened, "q8_0", &options).err().unwrap().to_string();
        assert!(error.contains("qwen3-reranker"), "{case}: {error}");
        plan::blueprint(&opened, "mlx-4bit-g32", &Options::default()).unwrap();
    }
}

/// What llama.cpp's converter would read instead of tokenizer.json, or beside it, is not passed over.
#[test]
fn files_that_the_converter_reads_first_are_refused_for_gguf_alone() {
    for (name, file) in
        [("qwen2", "tokenizer.model"), ("qwen3", "modules.json"), ("llama-moe", "tokenizer.model")]
    {
        let model = models().into_iter().find(|model| model.name == name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        rebuild(&model, &File::open(&path(name)), directory.path());
        std::fs::write(directory.path().join(file), "[]").unwrap();
        let opened = Opened::open(directory.path()).unwrap();
        let options = Options { tokenizer_pre: Some(model.pre.into()), ..Options::default() };
        let error = plan::blueprint(&opened, "q8_0", &options).err().unwrap().to_string();
        assert!(error.contains(file), "{name}: {error}");
        plan::blueprint(&opened, "gptq-4bit-32g", &Options::default()).unwrap();
    }
}
