//! Small models of every kind that llama.cpp runs as `deepseek2`, against llama-perplexity.
//!
//! Routers of every gating function, with a bias and without, in groups and not; no experts at all; a temperature of
//! queries; queries without low rank; extensions of positions that llama.cpp computes otherwise than the models, by
//! transformers too. `fixtures/make_deepseek2_goldens.py` made the same files.

use std::path::{Path, PathBuf};

use requant::evaluate::{self, Bos, Perplexity, Windows};
use requant::model::{self, Storage, Unobserved};
use requant::opened::Opened;
use requant_formats::container::gguf::{self, GgmlType, Metadata, TensorSpec};
use serde_json::Value as Json;

use crate::conversion::{fixtures, names};
use crate::maker;
use crate::requantize::requantize;

/// Names and contents of the goldens.
fn models() -> Vec<(String, Json)> {
    let folder = fixtures().join("goldens/forward/deepseek2");
    let read = |name: &str| serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
    let models: Vec<(String, Json)> = names(&folder)
        .iter()
        .filter_map(|name| Some((name.strip_suffix(".json")?.to_owned(), read(name))))
        .collect();
    assert!(models.len() >= 15, "{}", models.len());
    models
}

/// 12 bits of a hash of position and name.
fn noise(name: &str, count: u32, scale: f32, around: f32) -> Vec<f32> {
    let seed =
        name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let value = |position: u32| {
        let mut x = position.wrapping_mul(0x9e37_79b9).wrapping_add(seed);
        for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        x ^= x >> 16;
        ((x >> 20) as f32 - 2048.0) / 2048.0 * scale + around
    };
    (0..count).map(value).collect()
}

/// Writes the model of a golden, with the tokenizer of another fixture.
fn write(path: &Path, golden: &Json, change: impl FnOnce(&mut Metadata)) {
    let file = std::fs::read(fixtures().join("goldens/forward/deepseek-v2-gguf/model.gguf")).unwrap();
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "deepseek2");
    for (key, value) in gguf::read(&mut file.as_slice(), file.len() as u64).unwrap().metadata.iter() {
        if key.starts_with("tokenizer.") {
            metadata.set(key, value.clone());
        }
    }
    for (key, value) in golden["metadata"].as_object().unwrap() {
        let key = format!("deepseek2.{key}");
        match value {
            Json::Bool(flag) => metadata.set(key, *flag),
            Json::String(text) => metadata.set(key, text.as_str()),
            Json::Number(number) if number.is_f64() => metadata.set(key, number.as_f64().unwrap() as f32),
            number => metadata.set(key, number.as_u64().unwrap() as u32),
        }
    }
    change(&mut metadata);
    let mut specs = Vec::new();
    let mut contents = Vec::new();
    for tensor in golden["tensors"].as_array().unwrap() {
        let (name, mut shape, scale, around): (String, Vec<u64>, f32, f32) =
            serde_json::from_value(tensor.clone()).unwrap();
        let values = noise(&name, shape.iter().product::<u64>() as u32, scale, around);
        shape.reverse();
        specs.push(TensorSpec { name, shape, ggml_type: GgmlType::F32 });
        contents.push(values.into_iter().flat_map(f32::to_le_bytes).collect());
    }
    maker::gguf(path, metadata, specs, &contents);
}

/// On the windows of the golden.
fn measure(path: &Path, golden: &Json) -> Perplexity {
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let golden = golden.get("perplexity");
    let windows = golden.map_or(2, |golden| golden["running"].as_array().unwrap().len());
    let context = golden.map_or(128, |golden| golden["context"].as_u64().unwrap() as usize);
    let model = Opened::open(path).unwrap();
    let all = Windows::new(&model.tokenizer().unwrap(), &text, context, Bos::Auto).unwrap();
    let windows = Windows::from_tokens(all.tokens[..windows * context].to_vec(), context);
    evaluate::perplexity(model.store().unwrap(), &windows, &mut Unobserved).unwrap()
}

fn written(directory: &Path, name: &str, golden: &Json) -> PathBuf {
    let path = directory.join(format!("{name}.gguf"));
    write(&path, golden, |_| {});
    path
}

/// On F32 files with an f32 cache llama.cpp computes in f32 as well; its log has four decimals, 2e-8 of these. What is
/// left is the order of sums, 27 layers deep at most.
#[test]
fn perplexity_equals_that_of_llama_perplexity_window_by_window() {
    let directory = tempfile::tempdir().unwrap();
    for (name, golden) in models().into_iter().filter(|(_, golden)| golden.get("perplexity").is_some()) {
        let measured = measure(&written(directory.path(), &name, &golden), &golden);
        let golden = &golden["perplexity"];
        let running: Vec<f64> = serde_json::from_value(golden["running"].clone()).unwrap();
        let ours = measured.running(running.len());
        assert_eq!(ours.len(), running.len());
        let worst = ours.iter().zip(&running).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        println!("{name}: {} {}, {worst:e}", measured.perplexity, golden["perplexity"]);
        assert!(worst < 1e-5, "{name}: {worst}");
        let error = golden["error"].as_f64().unwrap();
        assert!((measured.error / error - 1.0).abs() < 1e-4, "{name}: {} {error}", measured.error);
    }
}

/// Both sum in f32, in another order: 2e-5 at most was seen, of logits up to 7.
#[test]
fn logits_equal_those_of_transformers() {
    let directory = tempfile::tempdir().unwrap();
    for (name, golden) in models().into_iter().filter(|(_, golden)| golden.get("logits").is_some()) {
        let model = Opened::open(&written(directory.path(), &name, &golden)).unwrap();
        let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        let expected: Vec<f32> = serde_json::from_value(golden["logits"].clone()).unwrap();
        let hidden =
            model::forward(model.store().unwrap(), &ids, ids.len(), &Storage::Memory, &mut Unobserved)
                .unwrap();
        let found = model::logits(model.store().unwrap(), &hidden, &[ids.len() - 1]).unwrap();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = expected.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        println!("{name}: largest difference of a logit {worst:e}, of {largest}");
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

/// That the temperature matters in these windows, and that the first of its steps is as without.
#[test]
fn a_temperature_changes_what_is_behind_its_first_step() {
    let directory = tempfile::tempdir().unwrap();
    let (_, golden) = models().into_iter().find(|(name, _)| name == "mistral").unwrap();
    let with = measure(&written(directory.path(), "with", &golden), &golden).perplexity;
    let changed = |key: &'static str, value: Option<u32>| {
        let path = directory.path().join("changed.gguf");
        write(&path, &golden, |metadata| match value {
            Some(value) => metadata.set(format!("deepseek2.{key}"), value),
            None => assert!(metadata.remove(&format!("deepseek2.{key}")).is_some()),
        });
        measure(&path, &golden).perplexity
    };
    let without = changed("attention.temperature_scale", None);
    println!("with {with}, without {without}");
    assert!((without / with - 1.0).abs() > 1e-3, "{with} {without}");
    assert_eq!(changed("attention.temperature_length", Some(512)), without);
}

/// A layer without the tensor is one with a bias of zeros.
#[test]
fn layers_may_lack_the_bias_of_their_router() {
    let directory = tempfile::tempdir().unwrap();
    let (_, golden) = models().into_iter().find(|(name, _)| name == "sigmoid-bias").unwrap();
    let with = |change: &dyn Fn(&mut Vec<Json>)| {
        let mut golden = golden.clone();
        let tensors = golden["tensors"].as_array_mut().unwrap();
        let is_bias = |tensor: &Json| tensor[0].as_str().unwrap().ends_with(".exp_probs_b.bias");
        assert!(tensors.iter().filter(|tensor| is_bias(tensor)).count() > 1);
        let last = tensors.iter().rposition(is_bias).unwrap();
        tensors.swap(0, last);
        change(tensors);
        measure(&written(directory.path(), "changed", &golden), &golden).perplexity
    };
    let without = with(&|tensors| drop(tensors.remove(0)));
    let zeros = with(&|tensors| (tensors[0][2], tensors[0][3]) = (0.0.into(), 0.0.into()));
    assert_eq!(without, zeros);
    assert_ne!(without, with(&|_| {}));
}

/// Conversions read such files, and what they write is read: F32 as it was, Q8_0 close to it.
#[test]
fn conversions_of_them_can_be_measured() {
    let directory = tempfile::tempdir().unwrap();
    for (name, golden) in models() {
        let path = written(directory.path(), &name, &golden);
        let source = measure(&path, &golden).perplexity;
        let converted = |format: &str| {
            let output = directory.path().join(format!("{name}-{format}.gguf"));
            requantize(&path, format, &output);
            measure(&output, &golden).perplexity
        };
        let (exact, close) = (converted("f32"), converted("q8_0"));
        println!("{name}: {source}, Q8_0 {close}");
        assert_eq!(exact, source, "{name}");
        assert!(close != source && (close / source - 1.0).abs() < 0.05, "{name}: {source} {close}");
    }
}
