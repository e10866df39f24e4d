//! One broken checkpoint per error: each must be refused from headers alone, with a message that
//! names the tensor (or key) and the file.

use requant::checkpoint::Checkpoint;
use requant::source::LocalDirectory;
use requant_formats::Dtype;
use serde_json::json;

use crate::maker::{self, Size, Storage, Tensor};

const FP8: Storage = Storage::Fp8(Dtype::F8_E4M3);
const GATE: &str = "model.layers.1.mlp.experts.2.gate_proj.weight";
const SHARD: &str = "model-00001-of-00001.safetensors";

/// Opens what `spoil` made of a good checkpoint; the error's text.
fn error_of(storage: Storage, spoil: impl FnOnce(&mut maker::Checkpoint)) -> String {
    let mut checkpoint = maker::checkpoint(Size::default(), storage);
    spoil(&mut checkpoint);
    let directory = tempfile::tempdir().unwrap();
    checkpoint.write(directory.path());
    open(directory.path()).err().expect("the checkpoint is broken")
}

fn open(directory: &std::path::Path) -> Result<Checkpoint, String> {
    let source = LocalDirectory::open(directory).map_err(|error| error.to_string())?;
    Checkpoint::open(Box::new(source)).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn good_checkpoints_of_every_kind_open() {
    let storages = [
        FP8,
        Storage::Fp8(Dtype::F8_E5M2),
        Storage::Fp8Exponents(Dtype::F8_E4M3),
        Storage::Plain(Dtype::BF16),
        Storage::Plain(Dtype::F16),
        Storage::Plain(Dtype::F32),
    ];
    for storage in storages {
        for shards in [0, 1, 7] {
            let mut checkpoint = maker::checkpoint(Size::default(), storage);
            checkpoint.indexed = shards > 0;
            checkpoint.spread(shards.max(1));
            let directory = tempfile::tempdir().unwrap();
            checkpoint.write(directory.path());
            let opened = open(directory.path()).unwrap();
            assert_eq!(opened.tensors().len(), checkpoint.tensors.len());
            let scaled = opened.tensors().iter().filter(|tensor| tensor.scale().is_some()).count();
            assert_eq!(scaled > 0, !matches!(storage, Storage::Plain(_)));
        }
    }
}

#[test]
fn missing_scale() {
    let error = error_of(FP8, |c| c.remove(&format!("{GATE}_scale_inv")));
    assert_names(&error, &[GATE, "scale", SHARD, "missing"]);
}

#[test]
fn scale_of_wrong_shape() {
    let error = error_of(FP8, |c| c.tensor(&format!("{GATE}_scale_inv")).shape = vec![2, 1]);
    assert_names(&error, &[GATE, "[2, 1]", "[1, 2]", SHARD]);
}

#[test]
fn scale_of_wrong_dtype() {
    let error = error_of(FP8, |c| {
        let scale = c.tensor(&format!("{GATE}_scale_inv"));
        scale.dtype = Dtype::I32;
    });
    assert_names(&error, &[GATE, "I32", SHARD]);
}

#[test]
fn byte_scale_without_the_config_saying_so() {
    let error = error_of(Storage::Fp8Exponents(Dtype::F8_E4M3), |c| {
        c.config["quantization_config"].as_object_mut().unwrap().remove("scale_fmt");
        c.tensor(&format!("{GATE}_scale_inv")).dtype = Dtype::U8;
    });
    assert_names(&error, &[GATE, "U8", SHARD]);
}

#[test]
fn scale_beside_an_unquantized_weight() {
    let error = error_of(FP8, |c| {
        let weight = c.tensor(GATE);
        weight.dtype = Dtype::BF16;
        weight.bytes = vec![0; 2 * weight.bytes.len()];
    });
    assert_names(&error, &[GATE, "BF16", "scale", SHARD]);
}

#[test]
fn fp8_without_quantization_config() {
    let error = error_of(FP8, |c| {
        c.config.as_object_mut().unwrap().remove("quantization_config");
    });
    assert_names(&error, &["config.json", "quantization_config", "F8_E4M3", SHARD]);
}

#[test]
fn missing_expert() {
    let error = error_of(FP8, |c| {
        c.remove(GATE);
        c.remove(&format!("{GATE}_scale_inv"));
    });
    assert_names(&error, &[GATE, "missing", "model.safetensors.index.json"]);
}

#[test]
fn shape_that_contradicts_config() {
    let error = error_of(FP8, |c| c.config["moe_intermediate_size"] = json!(64));
    assert_names(&error, &["experts.0.gate_proj", "[128, 256]", "[64, 256]", SHARD]);
}

#[test]
fn index_names_a_shard_that_is_not_there() {
    let error =
        error_of(FP8, |c| c.extra_index.push(("x".into(), "model-00009-of-00009.safetensors".into())));
    assert_names(&error, &["model.safetensors.index.json", "model-00009-of-00009.safetensors"]);
}

#[test]
fn index_names_a_tensor_that_its_shard_lacks() {
    let error = error_of(FP8, |c| c.extra_index.push(("ghost.weight".into(), SHARD.into())));
    assert_names(&error, &["ghost.weight", SHARD]);
}

#[test]
fn tensor_in_a_shard_but_not_in_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = maker::checkpoint(Size::default(), FP8);
    checkpoint.write(directory.path());
    let path = directory.path().join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, index.replace(&format!("\"{GATE}\":\"{SHARD}\","), "")).unwrap();
    assert_names(&open(directory.path()).err().unwrap(), &[GATE, SHARD]);
}

#[test]
fn index_puts_a_tensor_in_the_wrong_shard() {
    let error = error_of(FP8, |c| {
        c.spread(2);
        let wrong = 1 - c.tensor(GATE).shard;
        c.extra_index.push((GATE.into(), format!("model-0000{}-of-00002.safetensors", wrong + 1)));
    });
    assert_names(&error, &[GATE, "model-00001-of-00002", "model-00002-of-00002"]);
}

#[test]
fn unknown_tensor() {
    let error = error_of(FP8, |c| {
        let bytes = vec![0; 8];
        let name = "model.layers.1.self_attn.surprise.weight".to_owned();
        c.tensors.push(Tensor { name, dtype: Dtype::F32, shape: vec![2], bytes, shard: 0 });
    });
    assert_names(&error, &["surprise", SHARD, "unknown"]);
}

#[test]
fn unknown_tensor_in_the_prediction_layer() {
    let error = error_of(FP8, |c| {
        let name = "model.layers.2.surprise.weight".to_owned();
        c.tensors.push(Tensor { name, dtype: Dtype::F32, shape: vec![2], bytes: vec![0; 8], shard: 0 });
    });
    assert_names(&error, &["surprise", SHARD]);
}

#[test]
fn same_tensor_in_two_shards() {
    let error = error_of(FP8, |c| {
        let copy = Tensor { shard: 1, ..c.tensor(GATE).clone() };
        c.tensors.push(copy);
    });
    assert_names(&error, &[GATE, "model-00001-of-00002", "model-00002-of-00002"]);
}

#[test]
fn dtype_that_is_no_weight() {
    let error = error_of(FP8, |c| c.tensor(GATE).dtype = Dtype::I8);
    assert_names(&error, &[GATE, "I8", SHARD]);
}

#[test]
fn truncated_shard() {
    let directory = tempfile::tempdir().unwrap();
    maker::checkpoint(Size::default(), FP8).write(directory.path());
    let path = directory.path().join(SHARD);
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let error = open(directory.path()).err().unwrap_or_else(|| panic!("accepted {len} bytes"));
        assert_names(&error, &[SHARD]);
    }
}

#[test]
fn no_config_no_index_no_directory() {
    let directory = tempfile::tempdir().unwrap();
    assert_names(&open(directory.path()).err().unwrap(), &["config.json", "not found"]);
    std::fs::write(directory.path().join("m-Q4_0.gguf"), "").unwrap();
    assert_names(&open(directory.path()).err().unwrap(), &["config.json", "m-Q4_0.gguf"]);
    let checkpoint = maker::checkpoint(Size::default(), FP8);
    checkpoint.write(directory.path());
    std::fs::remove_file(directory.path().join("model.safetensors.index.json")).unwrap();
    std::fs::copy(directory.path().join(SHARD), directory.path().join("other.safetensors")).unwrap();
    assert_names(&open(directory.path()).err().unwrap(), &["model.safetensors.index.json"]);
    assert_names(&open(&directory.path().join("nowhere")).err().unwrap(), &["nowhere"]);
}

#[test]
fn unusable_config() {
    for (pointer, value, words) in [
        ("/model_type", json!("bloom"), vec!["bloom", "deepseek_v3"]),
        ("/quantization_config/quant_method", json!("bitsandbytes"), vec!["bitsandbytes", "fp8"]),
        ("/quantization_config/weight_block_size", json!([128]), vec!["weight_block_size"]),
        ("/hidden_size", json!(null), vec!["hidden_size", "missing"]),
        ("/attention_bias", json!(true), vec!["attention_bias"]),
    ] {
        let error = error_of(FP8, |c| *c.config.pointer_mut(pointer).expect("a key of the config") = value);
        assert_names(&error, &words);
        assert_names(&error, &["config.json"]);
    }
    // Scales per block that the config knows nothing of.
    for (pointer, value) in [
        ("/quantization_config/weight_block_size", json!(null)),
        ("/quantization_config/quant_method", json!("gptq")),
    ] {
        let error = error_of(FP8, |c| *c.config.pointer_mut(pointer).expect("a key of the config") = value);
        assert_names(&error, &["weight_block_size", SHARD, "_scale_inv"]);
    }
}
