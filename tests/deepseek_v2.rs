//! GGUF files of DeepSeek-V2, made by llama.cpp's converter, against transformers, llama-tokenize and
//! llama-perplexity.

use std::path::{Path, PathBuf};

use requant::evaluate::{self, Bos, Windows};
use requant::model::{self, Storage, Unobserved};
use requant::opened::Opened;
use requant_formats::container::gguf::{self, GgmlType, Gguf, TensorSpec, Value};
use serde_json::Value as Json;

use crate::conversion::fixtures;
use crate::maker;

fn folder() -> PathBuf {
    fixtures().join("goldens/forward/deepseek-v2-gguf")
}

fn golden(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn open() -> Opened {
    Opened::open(&folder().join("model.gguf")).unwrap()
}

fn logits(model: &Opened) -> Vec<f32> {
    let ids: Vec<u32> = serde_json::from_value(golden("ids.json")).unwrap();
    let hidden =
        model::forward(model.store().unwrap(), &ids, ids.len(), &Storage::Memory, &mut Unobserved).unwrap();
    let positions: Vec<usize> = (0..ids.len()).collect();
    model::logits(model.store().unwrap(), &hidden, &positions).unwrap()
}

/// Low-rank queries, YaRN with mscale 0.707, no groups.
#[test]
fn logits_equal_those_of_transformers() {
    let model = open();
    let spec = model.store().unwrap().spec();
    assert!((spec.rope.yarn().unwrap().mscale_all_dim - 0.707).abs() < 1e-6);
    assert_eq!(spec.latent().unwrap().q_lora, Some(48));
    let bytes = std::fs::read(folder().join("logits.f32")).unwrap();
    let expected = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let logits = logits(&model);
    assert_eq!(logits.len(), expected.len());
    let worst = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference of a logit: {worst:e}");
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn text_is_cut_as_llama_tokenize_cuts_it() {
    let tokenizer = open().tokenizer().unwrap();
    for sample in golden("tokens.json").as_array().unwrap() {
        let ids = tokenizer.encode(sample["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(serde_json::to_value(&ids).unwrap(), sample["ids"], "{}", sample["text"]);
    }
}

/// On an F32 file with an f32 cache llama.cpp computes in f32 as well; its log has four decimals, 2e-6 of 22.
#[test]
fn perplexity_equals_that_of_llama_perplexity_window_by_window() {
    let model = open();
    let golden = golden("perplexity.json");
    let running: Vec<f64> = serde_json::from_value(golden["running"].clone()).unwrap();
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let windows = Windows::new(&model.tokenizer().unwrap(), &text, 128, Bos::Auto).unwrap();
    let windows =
        Windows::from_tokens(windows.tokens[..running.len() * windows.context].to_vec(), windows.context);
    let measured = evaluate::perplexity(model.store().unwrap(), &windows, &mut Unobserved).unwrap();
    let ours = measured.running(windows.len());
    assert_eq!(ours.len(), running.len());
    let worst = ours.iter().zip(&running).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    println!("{} {}: largest relative difference {worst:e}", measured.perplexity, golden["perplexity"]);
    assert!(worst < 1e-5, "{worst}");
    let error = golden["error"].as_f64().unwrap();
    assert!((measured.error / error - 1.0).abs() < 1e-3, "{} {error}", measured.error);
}

/// Values of an F32 tensor.
fn values(file: &[u8], header: &Gguf, name: &str) -> Vec<f32> {
    let tensor = header.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(tensor.ggml_type.name(), "F32");
    let from = (header.data_offset_bytes + tensor.offset_bytes) as usize;
    let bytes = &file[from..][..tensor.len_bytes as usize];
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The same model as converters before May 2025 wrote it: `attn_kv_b` in one piece, heads described without
/// regard to what is cached. llama-perplexity gives this file the same estimates as the other.
fn write_unsplit(path: &Path) {
    const KEY: &str = "deepseek2.attention.";
    let file = std::fs::read(folder().join("model.gguf")).unwrap();
    let header = gguf::read(&mut file.as_slice(), file.len() as u64).unwrap();
    let mut metadata = header.metadata.clone();
    for key in ["key_length", "value_length"] {
        let own = metadata.remove(&format!("{KEY}{key}_mla")).unwrap();
        metadata.set(format!("{KEY}{key}"), own);
    }
    metadata.set("deepseek2.attention.head_count_kv", Value::from(2u32));
    let count = |key: &str| metadata.get(key).and_then(Value::as_u64).unwrap() as usize;
    let heads = count("deepseek2.attention.head_count");
    let (lora, v) = (count("deepseek2.attention.kv_lora_rank"), count("deepseek2.attention.value_length"));
    let nope = count("deepseek2.attention.key_length") - count("deepseek2.rope.dimension_count");

    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    let mut specs = Vec::new();
    for tensor in &header.tensors {
        let Some(layer) = tensor.name.strip_suffix(".attn_k_b.weight") else {
            if !tensor.name.ends_with(".attn_v_b.weight") {
                contents.push(bytes(values(&file, &header, &tensor.name)));
                let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
                specs.push(TensorSpec { name, shape, ggml_type: tensor.ggml_type });
            }
            continue;
        };
        let keys = values(&file, &header, &tensor.name);
        let values = values(&file, &header, &format!("{layer}.attn_v_b.weight"));
        let mut whole = Vec::new();
        for head in 0..heads {
            // Keys are stored transposed: [heads, lora, nope].
            let at = |row: usize, col: usize| keys[(head * lora + col) * nope + row];
            whole.extend(
                (0..nope).flat_map(|row| (0..lora).map(move |col| (row, col))).map(|(r, c)| at(r, c)),
            );
            whole.extend(&values[head * v * lora..][..v * lora]);
        }
        let name = format!("{layer}.attn_kv_b.weight");
        contents.push(bytes(whole));
        let shape = vec![lora as u64, (heads * (nope + v)) as u64];
        specs.push(TensorSpec { name, shape, ggml_type: GgmlType::F32 });
    }
    maker::gguf(path, metadata, specs, &contents);
}

#[test]
fn a_file_from_before_the_projection_was_split_gives_the_same_logits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old.gguf");
    write_unsplit(&path);
    assert_eq!(logits(&Opened::open(&path).unwrap()), logits(&open()));
}
