//! Plans of small checkpoints that exist as headers only.

use std::collections::BTreeMap;

use requant_formats::Dtype;
use requant_formats::container::safetensors;
use serde_json::{Value, json};

use super::*;
use crate::family::{self, Config, Turn};
use crate::plan::{Rounding, Sidecar};
use crate::source::{Source, SourceFile};

/// Files in memory; a shard's tensor bytes read as zeros.
struct Headers {
    files: Vec<SourceFile>,
    bytes: Vec<Vec<u8>>,
}

impl Source for Headers {
    fn location(&self) -> String {
        "memory".into()
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes[file].iter().skip(offset_bytes as usize).copied();
        for (to, from) in buf.iter_mut().zip(bytes.chain(std::iter::repeat(0))) {
            *to = from;
        }
        Ok(())
    }
}

fn config() -> Value {
    json!({
        "model_type": "deepseek_v3", "hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 256,
        "num_nextn_predict_layers": 1, "first_k_dense_replace": 1, "intermediate_size": 192,
        "moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_attention_heads": 2,
        "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
        "v_head_dim": 32, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
        "topk_method": "noaux_tc", "_name_or_path": "somewhere",
    })
}

/// A checkpoint with every tensor of its config stored as `matrix` (FP8 with scales) or `vector`.
fn checkpoint(config: &Value, matrix: Dtype, vector: Dtype, others: &[(&str, &str)]) -> Opened {
    let family = family::find(config).unwrap();
    let spec = family.spec(&Config::new(config)).unwrap();
    let mut config = config.clone();
    if matrix == Dtype::F8_E4M3 {
        config["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    }
    let mut entries = BTreeMap::new();
    let mut offset = 0;
    let mut add = |name: String, dtype: Dtype, shape: &[usize]| {
        let end = offset + shape.iter().product::<usize>() * dtype.size_bytes();
        entries.insert(name, json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    };
    for tensor in family.expected(&spec) {
        let is_matrix = tensor.name.contains("_proj");
        let dtype = match tensor.name.rsplit('.').next() {
            Some("e_score_correction_bias") => Dtype::F32,
            _ if is_matrix && !tensor.name.contains("eh_proj") => matrix,
            _ => vector,
        };
        add(tensor.name.clone(), dtype, &tensor.shape);
        if dtype == Dtype::F8_E4M3 {
            let blocks: Vec<usize> = tensor.shape.iter().map(|extent| extent.div_ceil(128)).collect();
            add(format!("{}_scale_inv", tensor.name), Dtype::F32, &blocks);
        }
    }
    let header = json!(entries).to_string();
    let mut shard = (header.len() as u64).to_le_bytes().to_vec();
    shard.extend(header.bytes());
    let shard_len = (shard.len() + offset) as u64;

    let mut files = vec![("model.safetensors", shard, shard_len)];
    let texts = others.iter().map(|&(name, text)| (name, text.as_bytes().to_vec(), text.len() as u64));
    files.extend(texts);
    let text = config.to_string();
    files.push(("config.json", text.clone().into_bytes(), text.len() as u64));
    files.sort_by_key(|file| file.0);
    let source = Headers {
        files: files
            .iter()
            .map(|&(name, _, len_bytes)| SourceFile {
                name: name.into(),
                len_bytes,
                sha256: None,
                modified: None,
            })
            .collect(),
        bytes: files.into_iter().map(|(_, bytes, _)| bytes).collect(),
    };
    Checkpoint::open(Box::new(source)).unwrap().into()
}

fn fp8() -> Opened {
    checkpoint(&config(), Dtype::F8_E4M3, Dtype::BF16, &[])
}

fn plan(source: &Opened, format: &str) -> Result<Blueprint> {
    crate::plan::blueprint(source, format, &Options::default())
}

fn types(blueprint: &Blueprint) -> BTreeMap<&str, &str> {
    blueprint.tensors.iter().map(|tensor| (tensor.names[0].as_str(), tensor.type_name.as_str())).collect()
}

fn sidecar<'a>(blueprint: &'a Blueprint, name: &str) -> Option<&'a Sidecar> {
    blueprint.sidecars.iter().find(|sidecar| sidecar.name == name)
}

#[test]
fn parameters_are_in_the_order_of_the_model() {
    let names: Vec<String> = parameters::parameters(fp8().checkpoint().unwrap())
        .unwrap()
        .into_iter()
        .map(|parameter| parameter.name)
        .collect();
    let attention = [
        "q_a_proj.weight",
        "q_a_layernorm.weight",
        "q_b_proj.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_layernorm.weight",
        "embed_q.weight",
        "unembed_out.weight",
        "o_proj.weight",
    ];
    let dense = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];
    let experts = [
        "switch_mlp.gate_proj.weight",
        "switch_mlp.up_proj.weight",
        "switch_mlp.down_proj.weight",
        "gate.weight",
        "gate.e_score_correction_bias",
        "shared_experts.gate_proj.weight",
        "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight",
    ];
    // As `tree_flatten(model.parameters())` lists them, mlx-lm 0.32.2.
    let mut expected = vec!["model.embed_tokens.weight".to_owned()];
    for (layer, block) in [(0, &dense[..]), (1, &experts[..])] {
        expected.extend(attention.map(|name| format!("model.layers.{layer}.self_attn.{name}")));
        expected.extend(block.iter().map(|name| format!("model.layers.{layer}.mlp.{name}")));
        expected.push(format!("model.layers.{layer}.input_layernorm.weight"));
        expected.push(format!("model.layers.{layer}.post_attention_layernorm.weight"));
    }
    expected.extend(["model.norm.weight".to_owned(), "lm_head.weight".to_owned()]);
    assert_eq!(names, expected);
}

#[test]
fn modules_whose_rows_are_not_whole_groups_stay_unquantized() {
    let source = fp8();
    let four = plan(&source, "mlx-4bit").unwrap();
    let types = types(&four);
    for (name, expected) in [
        ("model.embed_tokens.weight", "affine4_g64"),
        ("lm_head.weight", "affine4_g64"),
        ("model.layers.0.self_attn.q_a_proj.weight", "affine4_g64"),
        // Rows of q_lora_rank = 96.
        ("model.layers.0.self_attn.q_b_proj.weight", "BF16"),
        ("model.layers.0.self_attn.embed_q.weight", "affine4_g64"),
        ("model.layers.1.mlp.switch_mlp.down_proj.weight", "affine4_g64"),
        ("model.layers.1.mlp.gate.weight", "BF16"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "F32"),
        ("model.norm.weight", "BF16"),
    ] {
        assert_eq!(types[name], expected, "{name}");
    }
    let of_32 = plan(&source, "mlx-4bit-g32").unwrap();
    assert_eq!(self::types(&of_32)["model.layers.0.self_attn.q_b_proj.weight"], "affine4_g32");
    let plain = plan(&source, "MLX-BF16").unwrap();
    assert!(plain.tensors.iter().all(|tensor| tensor.names.len() == 1));
}

#[test]
fn kv_b_is_split_by_head_and_its_keys_are_transposed() {
    let source = fp8();
    let blueprint = plan(&source, "mlx-8bit").unwrap();
    let find = |name: &str| blueprint.tensors.iter().find(|tensor| tensor.names[0].ends_with(name)).unwrap();
    let keys = find("0.self_attn.embed_q.weight");
    assert_eq!(keys.shape, [2, 64, 64]);
    let rows: Vec<_> =
        keys.pieces.iter().map(|piece| (piece.rows.clone(), piece.turn == Turn::Transposed)).collect();
    assert_eq!(rows, [(0..64, true), (96..160, true)]);
    let values = find("0.self_attn.unembed_out.weight");
    assert_eq!(values.shape, [2, 32, 64]);
    let rows: Vec<_> =
        values.pieces.iter().map(|piece| (piece.rows.clone(), piece.turn == Turn::Transposed)).collect();
    assert_eq!(rows, [(64..96, false), (160..192, false)]);
}

#[test]
fn prediction_layers_are_dropped_by_their_number() {
    let source = fp8();
    let blueprint = plan(&source, "mlx-4bit").unwrap();
    assert_eq!(blueprint.dropped.len(), 1);
    assert!(blueprint.dropped[0].reason.contains("layer 2"), "{}", blueprint.dropped[0].reason);
    for (id, tensor) in source.tensors().iter().enumerate() {
        let is_dropped = blueprint.dropped[0].tensors.contains(&id);
        assert_eq!(is_dropped, tensor.name.starts_with("model.layers.2."), "{}", tensor.name);
    }
}

#[test]
fn torch_dtype_decides_the_float_type() {
    let mut config = config();
    let proj = "model.layers.0.self_attn.o_proj.weight";
    let norm = "model.norm.weight";
    for (torch_dtype, matrix, vector, expected) in [
        (json!("bfloat16"), Dtype::F8_E4M3, Dtype::BF16, ("affine4_g64", Rounding::Bf16, "BF16")),
        (json!("float32"), Dtype::F8_E4M3, Dtype::BF16, ("affine4_g64_f32", Rounding::Bf16, "F32")),
        (Value::Null, Dtype::F8_E4M3, Dtype::F32, ("affine4_g64", Rounding::Bf16, "F32")),
        (json!("bfloat16"), Dtype::F32, Dtype::F32, ("affine4_g64", Rounding::Bf16, "BF16")),
        (json!("float16"), Dtype::BF16, Dtype::F32, ("affine4_g64_f16", Rounding::F16, "F16")),
        (Value::Null, Dtype::F16, Dtype::F16, ("affine4_g64_f16", Rounding::F16, "F16")),
        (json!("auto"), Dtype::F32, Dtype::BF16, ("affine4_g64_f32", Rounding::Exact, "BF16")),
    ] {
        config["torch_dtype"] = torch_dtype.clone();
        let source = checkpoint(&config, matrix, vector, &[]);
        let blueprint = plan(&source, "mlx-4bit").unwrap();
        let tensor = blueprint.tensors.iter().find(|tensor| tensor.names[0] == proj).unwrap();
        let found = (tensor.type_name.as_str(), tensor.rounding, types(&blueprint)[norm]);
        assert_eq!(found, expected, "{torch_dtype} {matrix}");
    }
    config["torch_dtype"] = json!("float16");
    let error = plan(&checkpoint(&config, Dtype::F8_E4M3, Dtype::BF16, &[]), "mlx-4bit").map(|_| ());
    let text = error.unwrap_err().to_string();
    assert!(text.contains("float16") && text.contains("_proj.weight"), "{text}");
}

#[test]
fn arrays_are_dealt_to_shards_in_order() {
    let source = fp8();
    let blueprint = plan(&source, "mlx-4bit").unwrap();
    assert_eq!(blueprint.files[0].name, "model.safetensors");

    let mut tensors = blueprint.tensors.clone();
    let order: BTreeMap<String, usize> = parameters::parameters(source.checkpoint().unwrap())
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(at, parameter)| (parameter.name, at))
        .collect();
    tensors.sort_by_key(|tensor| order[&tensor.names[0]]);
    tensors.iter_mut().for_each(|tensor| tensor.placements.clear());
    let limit = 20_000;
    let files = shards::lay_out_within(&mut tensors, limit).unwrap();
    let (mut file, mut size) = (0, 0);
    for (name, placement) in tensors.iter().flat_map(|tensor| tensor.names.iter().zip(&tensor.placements)) {
        if size > 0 && size + placement.len_bytes > limit {
            (file, size) = (file + 1, 0);
        }
        size += placement.len_bytes;
        assert_eq!(placement.file, file, "{name}");
    }
    assert_eq!(files.len(), file + 1);
    assert_eq!(files[1].name, format!("model-00002-of-{:05}.safetensors", files.len()));
}

#[test]
fn headers_and_placements_agree_and_leave_no_gap() {
    let source = fp8();
    for format in ["mlx-3bit", "mlx-bf16"] {
        let blueprint = plan(&source, format).unwrap();
        let file = &blueprint.files[0];
        let header = safetensors::read_header(&mut &file.header[..], file.len_bytes).unwrap();
        assert_eq!(header.metadata, BTreeMap::from([("format".to_owned(), "mlx".to_owned())]));
        let mut placed: Vec<_> = blueprint
            .tensors
            .iter()
            .flat_map(|tensor| tensor.names.iter().zip(&tensor.placements))
            .map(|(name, placement)| (placement.offset_bytes, placement.len_bytes, name.clone()))
            .collect();
        placed.sort();
        let in_header: Vec<_> = header
            .tensors
            .iter()
            .map(|entry| {
                (header.data_offset_bytes + entry.begin_bytes, entry.len_bytes(), entry.name.clone())
            })
            .collect();
        assert_eq!(placed, in_header);
    }
}

#[test]
fn index_counts_bytes_and_parameters() {
    let blueprint = plan(&fp8(), "mlx-4bit").unwrap();
    let index = sidecar(&blueprint, "model.safetensors.index.json").unwrap();
    let index: Value = serde_json::from_slice(&index.bytes).unwrap();
    let elements: u64 = blueprint.tensors.iter().map(OutputTensor::len_elems).sum();
    let bytes: u64 = blueprint.tensors.iter().flat_map(|t| &t.placements).map(|p| p.len_bytes).sum();
    assert_eq!(index["metadata"], json!({"total_size": bytes, "total_parameters": elements}));
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.keys().is_sorted());
    assert_eq!(map["lm_head.biases"], "model.safetensors");
}

#[test]
fn config_is_that_of_mlx_lm() {
    let generation = r#"{"eos_token_id": [1, 2]}"#;
    let others = [
        ("generation_config.json", generation),
        ("tokenizer.json", "{}"),
        ("modeling_deepseek.py", "pass"),
        ("notes.txt", "not carried"),
        ("assets/tokenizer.json", "not carried"),
    ];
    let source = checkpoint(&config(), Dtype::F8_E4M3, Dtype::BF16, &others);
    let blueprint = plan(&source, "mlx-6bit-g32").unwrap();
    let names: Vec<&str> = blueprint.sidecars.iter().map(|sidecar| sidecar.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "modeling_deepseek.py",
            "tokenizer.json"
        ]
    );
    let bytes = &sidecar(&blueprint, "config.json").unwrap().bytes;
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.contains("    \"rms_norm_eps\": 1e-06,\n"), "{text}");
    let section = "{\n        \"group_size\": 32,\n        \"bits\": 6,\n        \"mode\": \"affine\"\n    }";
    assert!(text.contains(&format!("\"quantization\": {section},\n    \"quantization_config\": {section}")));
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(value.as_object().unwrap().keys().is_sorted());
    assert_eq!(value["eos_token_id"], json!([1, 2]));
    assert_eq!(value.get("_name_or_path"), None);

    // Without quantization the source's own section stays, as mlx-lm leaves it.
    let plain = plan(&source, "mlx-bf16").unwrap();
    let value: Value = serde_json::from_slice(&sidecar(&plain, "config.json").unwrap().bytes).unwrap();
    assert_eq!(value["quantization_config"]["quant_method"], "fp8");
    assert_eq!(value.get("quantization"), None);
}

#[test]
fn models_that_mlx_lm_cannot_build_are_refused() {
    for (key, value, named) in [
        ("topk_method", json!("greedy"), "topk_method"),
        ("quantization", json!({"bits": 4}), "quantization"),
    ] {
        let mut config = config();
        config[key] = value;
        let source = checkpoint(&config, Dtype::BF16, Dtype::BF16, &[]);
        let text = plan(&source, "mlx-4bit").map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(named), "{text}");
    }
}
