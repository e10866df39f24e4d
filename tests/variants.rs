//! GGUF files with what few of their family have: biases, fused projections, factors of matrices, dimensions of
//! positions, groups of experts; against llama-perplexity.
//!
//! Values of new vectors are those of fixtures/make_gqa_variant_goldens.py.

use requant::opened::Opened;
use requant_formats::container::gguf::{Array, GgmlType, Metadata, TensorSpec, Value};
use serde_json::Value as Json;

use crate::grouped_query::{Contents, check_running, folder, logits, path, rewritten};
use crate::requantize::requantize;

type Change = Box<dyn Fn(&mut Metadata, &mut Contents)>;

/// Numbers of few bits between -15/32 and 15/32.
fn values(name: &str, count: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 37 + name.len() * 101) % 61) as f32 - 30.0) / 64.0).collect()
}

fn push(contents: &mut Contents, name: &str, values: Vec<f32>) {
    let spec = TensorSpec { name: name.into(), shape: vec![values.len() as u64], ggml_type: GgmlType::F32 };
    contents.push((spec, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
}

/// Biases of feed-forward blocks, but for the gate of layer 1.
fn dense_biases(_: &mut Metadata, contents: &mut Contents) {
    for layer in 0..3 {
        for (part, rows) in [("gate", 64), ("up", 64), ("down", 32)] {
            if (layer, part) != (1, "gate") {
                let name = format!("blk.{layer}.ffn_{part}.bias");
                push(contents, &name, values(&name, rows));
            }
        }
    }
}

/// Queries, keys and values in one tensor.
fn fused(layers: &'static [usize], kinds: &'static [&'static str]) -> Change {
    Box::new(move |_, contents| {
        for layer in layers {
            for kind in kinds {
                let parts = ["q", "k", "v"].map(|part| {
                    let name = format!("blk.{layer}.attn_{part}.{kind}");
                    let at = contents.iter().position(|(spec, _)| spec.name == name).unwrap();
                    contents.remove(at)
                });
                let mut shape = parts[0].0.shape.clone();
                let rows = shape.last_mut().unwrap();
                *rows = parts.iter().map(|(spec, _)| spec.shape.last().unwrap()).sum();
                let name = format!("blk.{layer}.attn_qkv.{kind}");
                let spec = TensorSpec { name, shape, ggml_type: parts[0].0.ggml_type };
                contents.push((spec, parts.into_iter().flat_map(|(_, bytes)| bytes).collect()));
            }
        }
    })
}

fn sections(counts: [i32; 4]) -> Change {
    Box::new(move |metadata, _| {
        metadata.set("glm4moe.rope.dimension_sections", Value::Array(Array::I32(counts.to_vec())));
    })
}

fn groups(architecture: &'static str) -> Change {
    Box::new(move |metadata, _| {
        metadata.set(format!("{architecture}.expert_group_count"), 3u32);
        metadata.set(format!("{architecture}.expert_group_used_count"), 2u32);
    })
}

/// A factor for every matrix that may have one, and one for hardware, which changes nothing.
fn scales(_: &mut Metadata, contents: &mut Contents) {
    let matrices: Vec<(String, u64)> = contents
        .iter()
        .filter_map(|(spec, _)| {
            let stem = spec.name.strip_suffix(".weight")?;
            let (_, module) = stem.strip_prefix("blk.")?.split_once('.')?;
            let is_one = matches!(module, "attn_q" | "attn_k" | "attn_v" | "attn_output")
                || module.starts_with("ffn_") && !module.contains("norm") && !module.contains("inp");
            is_one.then(|| (stem.to_owned(), if spec.shape.len() == 3 { spec.shape[2] } else { 1 }))
        })
        .collect();
    for (stem, count) in matrices {
        let name = format!("{stem}.scale");
        let values = values(&name, count as usize);
        push(contents, &name, values.iter().map(|value| 1.0 + value).collect());
        push(contents, &format!("{stem}.input_scale"), values);
    }
}

fn head_bias(_: &mut Metadata, contents: &mut Contents) {
    let values = values("output.bias", 288).into_iter().map(|value| 4.0 * value).collect();
    push(contents, "output.bias", values);
}

/// Rows and columns that stay of the tensor of this name: a vector, which is a column, a matrix of 16 bits, or every one of
/// a stack.
fn keep(contents: &mut Contents, name: &str, row: impl Fn(usize) -> bool, column: impl Fn(usize) -> bool) {
    let (spec, bytes) = contents.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
    let at = usize::from(spec.shape.len() > 1);
    let (cols, size) = if at == 1 { (spec.shape[0] as usize, 2) } else { (1, 4) };
    let rows = spec.shape[at] as usize;
    let stays = |element: usize| row(element / cols % rows) && column(element % cols);
    let kept = bytes.chunks(size).enumerate().filter(|&(element, _)| stays(element));
    *bytes = kept.flat_map(|(_, value)| value.to_vec()).collect();
    spec.shape[at] = (0..rows).filter(|&at| row(at)).count() as u64;
    if at == 1 {
        spec.shape[0] = (0..cols).filter(|&at| column(at)).count() as u64;
    }
}

/// Makes columns of a matrix zero that do not `stay`.
fn silence(contents: &mut Contents, name: &str, stay: impl Fn(usize) -> bool) {
    let (spec, bytes) = contents.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
    let cols = spec.shape[0] as usize;
    bytes.chunks_mut(2).enumerate().filter(|(at, _)| !stay(at % cols)).for_each(|(_, value)| value.fill(0));
}

/// Name of the golden, the model, and what changes it.
fn variants() -> Vec<(&'static str, &'static str, Change)> {
    vec![
        ("dense-biases", "llama", Box::new(dense_biases)),
        ("fused", "llama", fused(&[0, 2], &["weight", "bias"])),
        ("fused-weights", "qwen2", fused(&[0, 1], &["weight"])),
        ("sections", "glm4moe", sections([2, 2, 2, 0])),
        ("fourth-section", "glm4moe", sections([1, 1, 1, 2])),
        ("groups-llama", "llama-moe", groups("llama")),
        ("groups-qwen2moe", "qwen2moe", groups("qwen2moe")),
        ("groups-qwen3moe", "qwen3moe", groups("qwen3moe")),
        ("scales", "qwen3", Box::new(scales)),
        ("scales-experts", "qwen3moe", Box::new(scales)),
        ("head-bias", "qwen2", Box::new(head_bias)),
    ]
}

fn goldens() -> Json {
    serde_json::from_slice(&std::fs::read(folder().join("variants.json")).unwrap()).unwrap()
}

/// In F32 with an f32 cache llama.cpp computes in f32 as well; its log has four decimals.
#[test]
fn perplexity_equals_that_of_llama_perplexity() {
    let directory = tempfile::tempdir().unwrap();
    let goldens = goldens();
    assert_eq!(goldens.as_object().unwrap().len(), variants().len());
    for (name, base, change) in variants() {
        let model = Opened::open(&rewritten(directory.path(), base, change)).unwrap();
        check_running(name, &model, &goldens[name], 128, 1e-5);
    }
}

/// What is stored in another way, and what does not matter, gives the same bits.
#[test]
fn what_means_the_same_gives_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let classes: Change = Box::new(|metadata, contents| {
        let labels = vec!["yes".to_owned(), "no".to_owned()];
        metadata.set("qwen3.classifier.output_labels", Value::Array(Array::String(labels)));
        metadata.set("qwen3.pooling_type", 4u32);
        push(contents, "cls.output.bias", vec![1.0, 2.0]);
    });
    let one: Change = Box::new(|_, contents| push(contents, "blk.1.ffn_up.scale", vec![1.0]));
    for (base, change) in [
        ("llama", fused(&[0, 2], &["weight", "bias"])),
        ("qwen2", fused(&[1], &["weight", "bias"])),
        ("qwen2", fused(&[0, 1], &["weight"])),
        ("gemma3", fused(&[3], &["weight"])),
        ("glm4moe", sections([2, 2, 2, 0])),
        ("glm4moe", sections([6, 0, 0, 0])),
        ("qwen3", classes),
        ("qwen3", one),
        ("qwen3", Box::new(|metadata, _| metadata.set("qwen3.expert_count", 0u32))),
    ] {
        let model = Opened::open(&rewritten(directory.path(), base, change)).unwrap();
        assert_eq!(logits(&model, base), logits(&Opened::open(&path(base)).unwrap(), base), "{base}");
    }
}

/// All of them are converted as well, and what is converted is evaluated: to F32 the same bits.
#[test]
fn what_is_converted_is_evaluated() {
    let directory = tempfile::tempdir().unwrap();
    for (name, base, change) in variants() {
        let path = rewritten(directory.path(), base, change);
        let output = directory.path().join(format!("{name}.gguf"));
        requantize(&path, "f32", &output);
        let [before, after] = [path, output].map(|path| logits(&Opened::open(&path).unwrap(), base));
        assert_eq!(before, after, "{name}");
    }
}

/// Layers with other counts than the first, and heads of values that are narrower than those of keys; no other program is known
/// to evaluate them in these families, so they are held against the same model with zeros for what they lack.
#[test]
fn layers_and_heads_may_have_sizes_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let counts = |counts: &[u32]| Value::Array(Array::U32(counts.to_vec()));
    let all = |_: usize| true;
    // Rows and columns of the first 2 of 4 query heads, and of the first of 2 of keys and values.
    let (two, one) = (|at: usize| at < 48, |at: usize| at < 24);
    let narrow = |at: usize| at % 24 < 16;
    let cases: [(&str, &str, Change, Change); 4] = [
        (
            "heads",
            "llama",
            Box::new(move |metadata, contents| {
                metadata.set("llama.attention.head_count", counts(&[4, 4, 2]));
                metadata.set("llama.attention.head_count_kv", counts(&[2, 2, 1]));
                metadata.set("llama.attention.key_length", 24u32);
                for kind in ["weight", "bias"] {
                    keep(contents, &format!("blk.2.attn_q.{kind}"), two, all);
                    keep(contents, &format!("blk.2.attn_k.{kind}"), one, all);
                    keep(contents, &format!("blk.2.attn_v.{kind}"), one, all);
                }
                keep(contents, "blk.2.attn_output.weight", all, two);
            }),
            Box::new(move |_, contents| silence(contents, "blk.2.attn_output.weight", two)),
        ),
        (
            "feed-forward",
            "llama",
            Box::new(move |metadata, contents| {
                metadata.set("llama.feed_forward_length", counts(&[64, 24, 64]));
                keep(contents, "blk.1.ffn_gate.weight", one, all);
                keep(contents, "blk.1.ffn_up.weight", one, all);
                keep(contents, "blk.1.ffn_down.weight", all, one);
            }),
            Box::new(move |_, contents| silence(contents, "blk.1.ffn_down.weight", one)),
        ),
        (
            "values",
            "llama",
            Box::new(move |metadata, contents| {
                metadata.set("llama.attention.value_length", 16u32);
                for layer in 0..3 {
                    keep(contents, &format!("blk.{layer}.attn_v.weight"), narrow, all);
                    keep(contents, &format!("blk.{layer}.attn_v.bias"), narrow, all);
                    keep(contents, &format!("blk.{layer}.attn_output.weight"), all, narrow);
                }
            }),
            Box::new(move |_, contents| {
                for layer in 0..3 {
                    silence(contents, &format!("blk.{layer}.attn_output.weight"), narrow);
                }
            }),
        ),
        (
            "experts",
            "qwen3moe",
            Box::new(move |metadata, contents| {
                metadata.set("qwen3moe.expert_feed_forward_length", counts(&[32, 24]));
                keep(contents, "blk.1.ffn_gate_exps.weight", one, all);
                keep(contents, "blk.1.ffn_up_exps.weight", one, all);
                keep(contents, "blk.1.ffn_down_exps.weight", all, one);
            }),
            Box::new(move |_, contents| silence(contents, "blk.1.ffn_down_exps.weight", one)),
        ),
    ];
    for (name, base, smaller, silent) in cases {
        let whole = logits(&Opened::open(&path(base)).unwrap(), base);
        let smaller = rewritten(directory.path(), base, smaller);
        let found = logits(&Opened::open(&smaller).unwrap(), base);
        let silent = rewritten(directory.path(), base, silent);
        let expected = logits(&Opened::open(&silent).unwrap(), base);
        assert_eq!(found, expected, "{name}");
        assert_ne!(found, whole, "{name}");
    }
}

#[test]
fn factors_that_belong_to_nothing_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&str, Vec<f32>, &[&str]); 4] = [
        ("blk.0.ffn_up.scale", vec![1.0, 2.0], &["blk.0.ffn_up.scale", "found 2", "expected 1 "]),
        ("blk.9.ffn_up.scale", vec![1.0], &["blk.9.ffn_up.scale", "no blk.9.ffn_up.weight"]),
        ("blk.0.ffn_up.scale", vec![f32::NAN], &["blk.0.ffn_up.scale", "NaN"]),
        ("blk.0.attn_qkv.bias", vec![1.0; 192], &["blk.0.attn_qkv.bias", "[192]", "[240]"]),
    ];
    for (name, values, named) in cases {
        let path = rewritten(directory.path(), "qwen3", |_, contents| push(contents, name, values));
        let error = Opened::open(&path)
            .and_then(Opened::evaluable)
            .err()
            .unwrap_or_else(|| panic!("{named:?}"))
            .to_string();
        assert!(named.iter().all(|part| error.contains(part)), "{named:?}: {error}");
    }
}
