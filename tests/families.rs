//! Checkpoints of families with grouped-query attention: what transformers computes on them, and the files that llama.cpp's
//! converter made of them.
//!
//! The converter's files of `grouped_query` hold the weights exactly. The checkpoint that such a file was made from is put
//! together again here, with the names that transformers gives and written independently of the library's own.

use std::collections::BTreeMap;
use std::path::Path;

use requant::opened::Opened;
use requant::plan::{self, Options};
use requant_formats::Dtype;
use requant_formats::container::gguf::{self, Array, Gguf, Value as GgufValue};
use serde_json::{Value, json};

use crate::conversion::{Silent, convert, convert_with, settings};
use crate::grouped_query::{check_logits, logits, path};
use crate::maker;
use crate::requantize::requantize;

/// A model of `grouped_query`: its name there, how its tokenizer cuts, its config.json, and whether llama.cpp turns
/// neighbouring columns of its heads together.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) pre: &'static str,
    pub(crate) config: Value,
    pub(crate) is_interleaved: bool,
}

/// As transformers saves them (`fixtures/make_gqa_goldens.py`).
pub(crate) fn models() -> Vec<Model> {
    let config = |own: Value| {
        let mut config = json!({
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "dtype": "float16",
            "bos_token_id": 0, "eos_token_id": 1, "attention_dropout": 0.0,
        });
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        config
    };
    let model = |name, pre, config, is_interleaved| Model { name, pre, config, is_interleaved };
    vec![
        model(
            "qwen2",
            "qwen2",
            config(json!({
                "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
                "use_sliding_window": false, "sliding_window": null, "vocab_size": 288,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            })),
            false,
        ),
        model(
            "qwen2moe",
            "gpt-2",
            config(json!({
                "model_type": "qwen2_moe", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 3,
                "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1,
                "mlp_only_layers": [], "norm_topk_prob": false, "use_sliding_window": false, "vocab_size": 288,
                "tie_word_embeddings": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            })),
            false,
        ),
        model(
            "qwen3",
            "qwen2",
            config(json!({
                "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                "num_attention_heads": 20, "num_key_value_heads": 5, "head_dim": 8, "tie_word_embeddings": false,
                "use_sliding_window": false, "attention_bias": false, "vocab_size": 288,
                "rope_parameters": {
                    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            })),
            false,
        ),
        model(
            "qwen3moe",
            "smollm",
            config(json!({
                "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24, "num_experts": 6,
                "num_experts_per_tok": 3, "moe_intermediate_size": 32, "decoder_sparse_step": 1,
                "mlp_only_layers": [], "norm_topk_prob": true, "use_sliding_window": false, "vocab_size": 288,
                "tie_word_embeddings": false, "attention_bias": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            })),
            false,
        ),
        model(
            "llama-moe",
            "gpt-2",
            config(json!({
                "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24, "num_local_experts": 6,
                "num_experts_per_tok": 2, "sliding_window": null, "vocab_size": 352,
                "tie_word_embeddings": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            })),
            true,
        ),
    ]
}

/// A file of the converter.
pub(crate) struct File {
    header: Gguf,
    bytes: Vec<u8>,
}

impl File {
    pub(crate) fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        Self { header: gguf::read(&mut bytes.as_slice(), bytes.len() as u64).unwrap(), bytes }
    }

    /// Type, shape (innermost first) and bytes of each tensor.
    fn tensors(&self) -> BTreeMap<&str, (String, &[u64], &[u8])> {
        let tensors = self.header.tensors.iter().map(|tensor| {
            let from = (self.header.data_offset_bytes + tensor.offset_bytes) as usize;
            let bytes = &self.bytes[from..][..tensor.len_bytes as usize];
            (tensor.name.as_str(), (tensor.ggml_type.to_string(), tensor.shape.as_slice(), bytes))
        });
        tensors.collect()
    }

    /// The hyper-parameters, in order.
    fn hyper_parameters(&self) -> Vec<(String, String)> {
        let architecture =
            self.header.metadata.get("general.architecture").and_then(GgufValue::as_str).unwrap();
        let own = self.header.metadata.iter().filter(|(key, _)| key.starts_with(&format!("{architecture}.")));
        own.map(|(key, value)| (key.to_owned(), format!("{value:?}"))).collect()
    }
}

/// Weights as f16, which holds them exactly.
fn halves(kind: &str, bytes: &[u8]) -> Vec<u8> {
    if kind == "F16" {
        return bytes.to_vec();
    }
    assert_eq!(kind, "F32");
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let half = |value: f32| {
        let half = half::f16::from_f32(value);
        assert_eq!(half.to_f32(), value);
        half.to_le_bytes()
    };
    values.flat_map(half).collect()
}

/// Rows of heads whose columns that turn together are neighbours, as a checkpoint has them: two halves.
fn apart(rows: &[u8], heads: usize) -> Vec<u8> {
    let mut apart = Vec::new();
    for head in rows.chunks_exact(rows.len() / heads) {
        // In these models a head has 24 rows.
        let rows: Vec<&[u8]> = head.chunks_exact(head.len() / 24).collect();
        (0..24).step_by(2).chain((1..24).step_by(2)).for_each(|row| apart.extend(rows[row]));
    }
    apart
}

/// Name in the checkpoint of a tensor that is one in both.
fn name_of(name: &str, block: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let (stem, kind) = rest.rsplit_once('.').unwrap();
    let own = match stem {
        "attn_norm" => "input_layernorm".into(),
        "ffn_norm" => "post_attention_layernorm".into(),
        "attn_output" => "self_attn.o_proj".into(),
        "attn_q_norm" | "attn_k_norm" => format!("self_attn.{}", &stem[5..]),
        "attn_q" | "attn_k" | "attn_v" => format!("self_attn.{}_proj", &stem[5..]),
        "ffn_gate" | "ffn_up" | "ffn_down" => format!("mlp.{}_proj", &stem[4..]),
        "ffn_gate_inp" => format!("{block}.gate"),
        "ffn_gate_inp_shexp" => format!("{block}.shared_expert_gate"),
        "ffn_gate_shexp" => format!("{block}.shared_expert.gate_proj"),
        "ffn_up_shexp" => format!("{block}.shared_expert.up_proj"),
        "ffn_down_shexp" => format!("{block}.shared_expert.down_proj"),
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{own}.{kind}")
}

/// The checkpoint that the converter's file was made from.
pub(crate) fn rebuild(model: &Model, file: &File, directory: &Path) {
    let is_mixtral = model.config["model_type"] == "mixtral";
    let block = if is_mixtral { "block_sparse_moe" } else { "mlp" };
    let matrices = if is_mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    let heads = |key: &str| model.config[key].as_u64().unwrap() as usize;
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: Vec<usize>, bytes: Vec<u8>| {
        tensors.push(maker::Tensor { name, dtype: Dtype::F16, shape, bytes, shard: 0 });
    };
    for (name, (kind, shape, bytes)) in file.tensors() {
        let mut bytes = halves(&kind, bytes);
        let mut shape: Vec<usize> = shape.iter().rev().map(|&extent| extent as usize).collect();
        if let Some((before, _)) = name.split_once("_exps.") {
            let layer = before.split('.').nth(1).unwrap();
            let matrix = ["gate", "up", "down"].iter().position(|end| before.ends_with(end)).unwrap();
            let len = bytes.len() / shape[0];
            for (expert, bytes) in bytes.chunks_exact(len).enumerate() {
                let name =
                    format!("model.layers.{layer}.{block}.experts.{expert}.{}.weight", matrices[matrix]);
                add(name, shape[1..].to_vec(), bytes.to_vec());
            }
            continue;
        }
        if model.is_interleaved && (name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight")) {
            let is_query = name.ends_with("attn_q.weight");
            let key = if is_query { "num_attention_heads" } else { "num_key_value_heads" };
            bytes = apart(&bytes, heads(key));
        }
        if name.ends_with("ffn_gate_inp_shexp.weight") {
            shape = vec![1, shape.iter().product()];
        }
        add(name_of(name, block), shape, bytes);
    }
    let config = model.config.clone();
    maker::Checkpoint { config, tensors, indexed: false, extra_index: Vec::new() }.write(directory);
    std::fs::write(directory.join("tokenizer.json"), tokenizer(file).to_string()).unwrap();
}

/// A byte-level tokenizer with the file's tokens.
fn tokenizer(file: &File) -> Value {
    let texts = |key: &str| -> Vec<String> {
        match file.header.metadata.get(key) {
            Some(GgufValue::Array(Array::String(texts))) => texts.clone(),
            _ => Vec::new(),
        }
    };
    let tokens = texts("tokenizer.ggml.tokens");
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1)],
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": texts("tokenizer.ggml.merges"),
        },
    })
}

#[test]
fn checkpoints_compute_what_transformers_computes() {
    for model in models() {
        let directory = tempfile::tempdir().unwrap();
        rebuild(&model, &File::open(&path(model.name)), directory.path());
        let opened = Opened::open(directory.path()).unwrap();
        check_logits(model.name, &logits(&opened, model.name));
    }
}

#[test]
fn gguf_files_are_those_of_the_converter() {
    for model in models() {
        let directory = tempfile::tempdir().unwrap();
        let golden = File::open(&path(model.name));
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        rebuild(&model, &golden, &source);
        let output = directory.path().join("m.gguf");
        let options = Options { tokenizer_pre: Some(model.pre.into()), ..Options::default() };
        convert_with(&source, &settings("f16", 2), &options, &output, &Silent).unwrap();
        let found = File::open(&output);
        assert_eq!(found.hyper_parameters(), golden.hyper_parameters(), "{}", model.name);
        let (found, golden) = (found.tensors(), golden.tensors());
        assert_eq!(found.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>(), "{}", model.name);
        for (name, (kind, shape, bytes)) in &golden {
            let (found_kind, found_shape, found_bytes) = &found[name];
            // llama-quantize leaves out dimensions of one row behind the others.
            let shape = if let [cols, 1] = shape { &[*cols][..] } else { *shape };
            assert_eq!((found_kind, *found_shape), (kind, shape), "{} {name}", model.name);
            assert!(found_bytes == bytes, "{} {name}", model.name);
        }
    }
}

/// The converter's file as another type is compared with llama-quantize's elsewhere (`requantize`); a checkpoint gives the
/// same tensors in one step.
#[test]
fn quantized_files_hold_the_tensors_of_the_converter_s_file_quantized() {
    for model in models() {
        let directory = tempfile::tempdir().unwrap();
        let converted = path(model.name);
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        rebuild(&model, &File::open(&converted), &source);
        for format in ["q8_0", "q4_k_m", "q3_k_m", "iq4_xs", "mxfp4_moe"] {
            let output = |number| directory.path().join(format!("{format}-{number}.gguf"));
            let (one, two) = (output(1), output(2));
            let options = Options { tokenizer_pre: Some(model.pre.into()), ..Options::default() };
            convert_with(&source, &settings(format, 2), &options, &one, &Silent).unwrap();
            requantize(&converted, format, &two);
            let (one, two) = (File::open(&one), File::open(&two));
            assert_eq!(one.hyper_parameters(), two.hyper_parameters(), "{} {format}", model.name);
            assert!(one.tensors() == two.tensors(), "{} {format}", model.name);
        }
    }
}

#[test]
fn other_targets_can_be_read_back() {
    for model in models() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        rebuild(&model, &File::open(&path(model.name)), &source);
        let expected = logits(&Opened::open(&source).unwrap(), model.name);
        let spread = expected.iter().map(|logit| logit.abs()).fold(0.0, f32::max);
        let mut formats = vec!["compressed-tensors-w4a16-g32", "gptq-4bit-32g", "awq-4bit-32g"];
        // What mlx-lm's model cannot be built from is refused.
        let refusal = match model.name {
            "llama-moe" => Some("head_dim 24"),
            "qwen3moe" | "qwen2" | "qwen2moe" => Some("no rope_theta"),
            _ => None,
        };
        match refusal {
            None => formats.push("mlx-4bit-g32"),
            Some(named) => {
                let opened = Opened::open(&source).unwrap();
                let error = plan::blueprint(&opened, "mlx-4bit", &Options::default()).err().unwrap();
                assert!(error.to_string().contains(named), "{}: {error}", model.name);
            }
        }
        for format in formats {
            let output = directory.path().join(format);
            convert(&source, format, 2, &output).unwrap();
            let found = logits(&Opened::open(&output).unwrap(), model.name);
            let far = found.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > spread).count();
            assert!(far == 0 && found != expected, "{} {format}: {far}", model.name);
        }
    }
}
