//! GGUF files of families with grouped-query attention, made by llama.cpp's converter, against transformers,
//! llama-tokenize and llama-perplexity.
//!
//! The models are tiny and random, and stored in 16 bits that hold their weights exactly.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use requant::evaluate::{self, Bos, Report, Request, Windows};
use requant::model::{self, Hidden, Storage, Unobserved, Workload, peak_ram_bytes, scratch_bytes};
use requant::opened::Opened;
use requant::plan::{self, Options};
use requant_formats::container::gguf::{self, Array, GgmlType, Metadata, TensorSpec, Value};
use serde_json::Value as Json;

use crate::conversion::{fixtures, names};
use crate::requantize::requantize;

pub(crate) fn folder() -> PathBuf {
    fixtures().join("goldens/forward/gqa")
}

/// Names of the models.
fn models() -> Vec<String> {
    let models: Vec<String> =
        names(&folder()).iter().filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    assert!(models.len() >= 10, "{models:?}");
    models
}

pub(crate) fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.gguf"))
}

fn golden(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap()
}

fn ids(name: &str) -> Vec<u32> {
    serde_json::from_value(golden(name)["ids"].clone()).unwrap()
}

fn forward(model: &Opened, ids: &[u32], storage: &Storage) -> Hidden {
    model::forward(model.store().unwrap(), ids, ids.len(), storage, &mut Unobserved).unwrap()
}

/// Logits of the last 16 of `count` positions.
fn last(model: &Opened, hidden: &Hidden, count: usize) -> Vec<f32> {
    let positions: Vec<usize> = (count - 16..count).collect();
    model::logits(model.store().unwrap(), hidden, &positions).unwrap()
}

pub(crate) fn logits(model: &Opened, name: &str) -> Vec<f32> {
    let ids = ids(name);
    last(model, &forward(model, &ids, &Storage::Memory), ids.len())
}

/// Reference and requant sum in another order, in f32: a few units of the last place of numbers up to about 10, through
/// up to seven layers of large weights. The largest difference seen is 3e-5.
#[track_caller]
pub(crate) fn check_logits(what: &str, found: &[f32]) {
    let bytes = std::fs::read(folder().join(format!("{what}.f32"))).unwrap();
    let expected: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{what}: largest difference of a logit {worst:e}");
    assert!(worst < 1e-4, "{what}: {worst}");
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in models() {
        let model = Opened::open(&path(&name)).unwrap();
        check_logits(&name, &logits(&model, &name));
    }
}

/// The prediction layer of GLM 4.5, which llama.cpp's evaluation skips.
#[test]
fn the_prediction_layer_is_that_of_transformers() {
    let model = Opened::open(&path("glm4moe")).unwrap();
    let ids = ids("glm4moe");
    let main = forward(&model, &ids, &Storage::Memory);
    assert!(model::has_second_next(model.store().unwrap()));
    let next = model::second_next(model.store().unwrap(), &main, &ids, ids.len()).unwrap();
    check_logits("glm4moe-mtp", &last(&model, &next, ids.len() - 1));
}

/// On F32 files with an f32 cache llama.cpp computes in f32 as well, but for Gemma's gates, which it looks up in a table
/// with 16-bit entries (9e-5 at most here); its log has four decimals.
#[test]
fn perplexity_equals_that_of_llama_perplexity_window_by_window() {
    for name in models() {
        let model = Opened::open(&path(&name)).unwrap();
        let bound = if name.starts_with("gemma") { 3e-4 } else { 1e-5 };
        for golden in golden(&name)["perplexity"].as_array().unwrap() {
            let context = golden["context"].as_u64().unwrap() as usize;
            check_running(&name, &model, golden, context, bound);
        }
    }
}

/// Holds the estimates after each window against those that llama-perplexity has.
#[track_caller]
pub(crate) fn check_running(name: &str, model: &Opened, golden: &Json, context: usize, bound: f64) {
    let text = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    let running: Vec<f64> = serde_json::from_value(golden["running"].clone()).unwrap();
    let all = Windows::new(&model.tokenizer().unwrap(), &text, context, Bos::Auto).unwrap();
    let windows = Windows::from_tokens(all.tokens[..running.len() * context].to_vec(), context);
    let measured = evaluate::perplexity(model.store().unwrap(), &windows, &mut Unobserved).unwrap();
    let ours = measured.running(windows.len());
    assert_eq!(ours.len(), running.len());
    let worst = ours.iter().zip(&running).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    println!("{name}, context {context}: {} {golden}, {worst:e}", measured.perplexity);
    assert!(worst < bound, "{name}: {worst}");
    let error = golden["error"].as_f64().unwrap();
    assert!((measured.error / error - 1.0).abs() < 1e-3, "{} {error}", measured.error);
}

#[test]
fn text_is_cut_as_llama_tokenize_cuts_it() {
    for name in models() {
        let tokenizer = Opened::open(&path(&name)).unwrap().tokenizer().unwrap();
        for sample in golden(&name)["samples"].as_array().unwrap() {
            let ids = tokenizer.encode(sample["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(serde_json::to_value(&ids).unwrap(), sample["ids"], "{name}: {}", sample["text"]);
        }
    }
}

/// Tensors of a file with their bytes.
pub(crate) type Contents = Vec<(TensorSpec, Vec<u8>)>;

/// A copy of a model with other metadata or tensors.
pub(crate) fn rewritten(
    directory: &Path,
    name: &str,
    change: impl FnOnce(&mut Metadata, &mut Contents),
) -> PathBuf {
    let file = std::fs::read(path(name)).unwrap();
    let header = gguf::read(&mut file.as_slice(), file.len() as u64).unwrap();
    let tensors = header.tensors.iter().map(|tensor| {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        let from = (header.data_offset_bytes + tensor.offset_bytes) as usize;
        let bytes = file[from..][..tensor.len_bytes as usize].to_vec();
        (TensorSpec { name, shape, ggml_type: tensor.ggml_type }, bytes)
    });
    let (mut metadata, mut contents) = (header.metadata.clone(), tensors.collect());
    change(&mut metadata, &mut contents);
    let (specs, contents): (Vec<TensorSpec>, Vec<Vec<u8>>) = contents.into_iter().unzip();
    let (written, mut bytes) = gguf::write_header(metadata, specs).unwrap();
    for (tensor, content) in written.tensors.iter().zip(contents) {
        bytes.resize((written.data_offset_bytes + tensor.offset_bytes) as usize, 0);
        assert_eq!(content.len() as u64, tensor.len_bytes, "{}", tensor.name);
        bytes.extend(content);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let path = directory.join("changed.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The same without a look at bytes: a tensor that is new or of another size holds zeros.
fn changed(
    directory: &Path,
    name: &str,
    change: impl FnOnce(&mut Metadata, &mut Vec<TensorSpec>),
) -> PathBuf {
    rewritten(directory, name, |metadata, contents| {
        let old: HashMap<String, Vec<u8>> =
            contents.iter().map(|(spec, bytes)| (spec.name.clone(), bytes.clone())).collect();
        let mut specs = contents.drain(..).map(|(spec, _)| spec).collect();
        change(metadata, &mut specs);
        contents.extend(specs.into_iter().map(|spec| {
            let elems: u64 = spec.shape.iter().product();
            let len = (elems / spec.ggml_type.block_len_elems() * spec.ggml_type.block_len_bytes()) as usize;
            let bytes = old.get(&spec.name).filter(|bytes| bytes.len() == len);
            let bytes = bytes.cloned().unwrap_or_else(|| vec![0; len]);
            (spec, bytes)
        }));
    })
}

/// All layers of phi3 slide, as the model has it; llama.cpp leaves the window out.
#[test]
fn a_window_counts_in_every_layer_of_phi3() {
    let directory = tempfile::tempdir().unwrap();
    let set = |metadata: &mut Metadata, _: &mut Vec<TensorSpec>| {
        metadata.set("phi3.attention.sliding_window", 24u32);
    };
    let model = Opened::open(&changed(directory.path(), "phi3", set)).unwrap();
    check_logits("phi3-window", &logits(&model, "phi3"));
}

/// The last layer is computed for scored tokens only, in other blocks: the sums are the same but for their order, a few units of
/// the last place of logits up to about 10.
#[test]
fn what_is_not_scored_need_not_be_computed() {
    for name in models() {
        let model = Opened::open(&path(&name)).unwrap();
        let ids: Vec<u32> = (0..1200).map(|i: u32| i * 7919 % 288).collect();
        let wanted: Vec<usize> = (1184..1200).collect();
        let store = model.store().unwrap();
        let (storage, observer) = (Storage::Memory, &mut Unobserved);
        let some = model::forward_for(store, &ids, Some(&wanted), ids.len(), &storage, observer).unwrap();
        let all = last(&model, &forward(&model, &ids, &storage), ids.len());
        let some = last(&model, &some, ids.len());
        let worst = some.iter().zip(&all).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {worst:e}");
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn results_do_not_depend_on_threads_nor_on_where_states_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    for name in models() {
        let model = Opened::open(&path(&name)).unwrap();
        let ids: Vec<u32> = (0..1200).map(|i: u32| i * 7919 % 288).collect();
        let run = |threads: usize, storage: &Storage| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| last(&model, &forward(&model, &ids, storage), ids.len()))
        };
        let one = run(1, &Storage::Memory);
        assert_eq!(run(3, &Storage::Memory), one, "{name}");
        assert_eq!(run(2, &Storage::Scratch(directory.path().to_owned())), one, "{name}");
    }
}

fn against(path: &Path, original: &Path, tokens: &Windows) -> Report {
    let (model, original) = (Opened::open(path).unwrap(), Opened::open(original).unwrap());
    let request = Request {
        model: model.store().unwrap(),
        original: Some(original.store().unwrap()),
        windows: tokens,
        memory_bytes: None,
        scratch: None,
    };
    evaluate::measure(&request, &mut Unobserved).unwrap()
}

/// Quantized and held against what they were made from: F32 is the same, the rest the further off the fewer bits.
#[test]
fn quantized_files_are_measured_against_their_originals() {
    let directory = tempfile::tempdir().unwrap();
    for name in models() {
        let vocab = Opened::open(&path(&name)).unwrap().store().unwrap().spec().embedding.vocab as u32;
        let windows = Windows::from_tokens((0..512).map(|i: u32| i * 7919 % vocab).collect(), 64);
        let divergence = |format: &str| {
            let output = directory.path().join(format!("{name}-{format}.gguf"));
            requantize(&path(&name), format, &output);
            let report = against(&output, &path(&name), &windows);
            let found = report.against.unwrap();
            assert_eq!(found.layers.len(), Opened::open(&output).unwrap().store().unwrap().spec().layers);
            assert_eq!(report.prediction.is_some(), name == "glm4moe");
            found.divergence.mean.value
        };
        let [exact, fine, coarse] = ["f32", "q8_0", "q4_k_m"].map(divergence);
        println!("{name}: mean divergence {exact} {fine:.6} {coarse:.5}");
        assert_eq!(exact, 0.0, "{name}");
        // Errors grow from layer to layer of random weights: of smollm3's five 0.8 is left, of the others' two or three 0.4.
        assert!(0.0 < fine && 4.0 * fine < coarse && coarse < 1.0, "{name}: {fine} {coarse}");
    }
}

/// Nothing that is not understood is passed over.
#[test]
fn what_is_not_understood_is_named_before_work() {
    type Change = Box<dyn FnOnce(&mut Metadata, &mut Vec<TensorSpec>)>;
    let set =
        |key: &'static str, value: Value| -> Change { Box::new(move |metadata, _| metadata.set(key, value)) };
    let without_key = |key: &'static str| -> Change {
        Box::new(move |metadata, _| {
            metadata.remove(key).unwrap();
        })
    };
    let without = |name: &'static str| -> Change {
        Box::new(move |_, specs| {
            let before = specs.len();
            specs.retain(|spec| spec.name != name);
            assert_eq!(specs.len() + 1, before);
        })
    };
    let with = |name: &'static str, shape: Vec<u64>| -> Change {
        let ggml_type = GgmlType::F32;
        Box::new(move |_, specs| specs.push(TensorSpec { name: name.into(), shape, ggml_type }))
    };
    let cases: Vec<(&str, Change, &[&str])> = vec![
        ("qwen3", without("blk.1.attn_norm.weight"), &["blk.1.attn_norm.weight", "missing"]),
        ("qwen3", without("blk.1.attn_k_norm.weight"), &["blk.1.attn_k_norm.weight", "missing"]),
        ("gemma2", without("blk.3.post_ffw_norm.weight"), &["blk.3.post_ffw_norm.weight", "missing"]),
        ("phi3", without("rope_factors_long.weight"), &["rope_factors_long.weight", "missing"]),
        ("phi3", without("blk.1.attn_qkv.weight"), &["blk.1.attn_q.weight", "missing"]),
        ("glm4moe", without("blk.1.exp_probs_b.bias"), &["blk.1.exp_probs_b.bias", "missing"]),
        ("glm4moe", without("blk.2.nextn.enorm.weight"), &["blk.2.nextn.enorm.weight", "missing"]),
        ("qwen2moe", without("blk.0.ffn_gate_inp_shexp.weight"), &["blk.0.ffn_gate_inp_shexp.weight"]),
        ("llama", with("blk.0.attn_sinks.weight", vec![4]), &["blk.0.attn_sinks.weight", "unknown"]),
        ("qwen2", with("rope_freqs.weight", vec![8]), &["rope_freqs.weight", "unknown"]),
        ("llama", set("llama.rope.scaling.type", "ntk".into()), &["llama.rope.scaling.type \"ntk\"", "yarn"]),
        (
            "qwen3",
            set("qwen3.rope.scaling.yarn_attn_factor", (-0.5f32).into()),
            &["yarn_attn_factor", "positive"],
        ),
        ("qwen3", without_key("qwen3.rope.scaling.factor"), &["qwen3.rope.scaling.factor", "missing"]),
        ("llama", set("llama.logit_scale", 2f32.into()), &["llama.logit_scale", "does not know"]),
        ("llama", set("llama.attention.causal", false.into()), &["llama.attention.causal false"]),
        ("llama", set("llama.attention.head_count_kv", 3u32.into()), &["head_count_kv", "a divisor of 4"]),
        (
            "llama",
            set("llama.attention.head_count_kv", Value::Array(Array::U32(vec![2, 2, 1]))),
            &["blk.2.attn_k.weight", "[48, 32]", "[24, 32]"],
        ),
        (
            "llama",
            set("llama.feed_forward_length", Value::Array(Array::U32(vec![64, 64]))),
            &["llama.feed_forward_length", "3, one for each layer"],
        ),
        (
            "llama",
            set("llama.rope.dimension_count", Value::Array(Array::U32(vec![24, 24, 12]))),
            &["llama.rope.dimension_count", "different"],
        ),
        ("llama", set("llama.rope.dimension_count", 7u32.into()), &["rope.dimension_count", "even"]),
        ("llama", set("llama.attention.value_length", 8u32.into()), &["blk.0.attn_v.weight", "[16, 32]"]),
        ("llama", without_key("llama.feed_forward_length"), &["llama.feed_forward_length", "missing"]),
        ("llama", set("llama.block_count", 2u32.into()), &["blk.2.", "unknown"]),
        (
            "glm4moe",
            set("glm4moe.nextn_predict_layers", 3u32.into()),
            &["glm4moe.block_count", "3 prediction"],
        ),
        ("llama", set("llama.embedding_length", 64u32.into()), &["shape", "64"]),
        ("glm4moe", set("glm4moe.expert_gating_func", 4u32.into()), &["expert_gating_func 4"]),
        ("qwen3moe", set("qwen3moe.expert_used_count", 7u32.into()), &["expert_used_count", "1 to 6"]),
        (
            "qwen3moe",
            set("qwen3moe.expert_group_count", 4u32.into()),
            &["expert_group_count", "a divisor of 6"],
        ),
        (
            "qwen3moe",
            Box::new(|metadata, _| {
                metadata.set("qwen3moe.expert_group_count", 3u32);
                metadata.set("qwen3moe.expert_group_used_count", 1u32);
            }),
            &["expert_group_used_count", "2 to 3 groups of 2"],
        ),
        ("gemma3", set("gemma3.attention.sliding_window_pattern", "x".into()), &["sliding_window_pattern"]),
        ("gemma2", set("gemma2.final_logit_softcapping", (-1f32).into()), &["final_logit_softcapping"]),
        ("llama", set("general.architecture", "mamba".into()), &["\"mamba\"", "deepseek2, llama, qwen2"]),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (name, change, named) in cases {
        let path = changed(directory.path(), name, change);
        let error = Opened::open(&path)
            .and_then(Opened::evaluable)
            .err()
            .unwrap_or_else(|| panic!("{named:?}"))
            .to_string();
        assert!(named.iter().all(|part| error.contains(part)), "{named:?}: {error}");
    }
}

/// What can be converted can be evaluated.
#[test]
fn every_architecture_that_is_converted_is_evaluated() {
    let directory = tempfile::tempdir().unwrap();
    let path =
        changed(directory.path(), "llama", |metadata, _| metadata.set("general.architecture", "mamba"));
    let names = |error: String, before: &str| -> BTreeSet<String> {
        let list = error.split_once(before).unwrap_or_else(|| panic!("{error}")).1.to_owned();
        list.split(" are known").next().unwrap().split(", ").map(str::to_owned).collect()
    };
    let source = Opened::open(&path).unwrap();
    let converted = plan::blueprint(&source, "q8_0", &Options::default()).err().unwrap();
    let evaluated = Opened::open(&path).and_then(Opened::evaluable).err().unwrap();
    let evaluated = names(evaluated.to_string(), "evaluates GGUF files of ");
    assert_eq!(evaluated, names(converted.to_string(), "the mixes of types of "));
    // And all of them have a golden; llama has two.
    let mut golden: BTreeSet<String> = models().into_iter().collect();
    assert!(golden.remove("llama-moe") && golden.insert("deepseek2".into()));
    assert_eq!(golden, evaluated);
}

/// The same count for every layer is a count, a period may be spelled out layer by layer, and a file may lack the layers
/// that predict.
#[test]
fn what_means_the_same_gives_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let same = |name: &str, change: &dyn Fn(&mut Metadata, &mut Vec<TensorSpec>)| {
        let model = Opened::open(&changed(directory.path(), name, change)).unwrap();
        assert_eq!(logits(&model, name), logits(&Opened::open(&path(name)).unwrap(), name), "{name}");
    };
    same("llama", &|metadata, _| {
        metadata.set("llama.attention.head_count_kv", Value::Array(Array::U32(vec![2; 3])));
    });
    same("gemma2", &|metadata, _| {
        let slides = vec![true, false, true, false];
        metadata.set("gemma2.attention.sliding_window_pattern", Value::Array(Array::Bool(slides)));
    });
    same("gemma3", &|metadata, _| metadata.set("gemma3.attention.sliding_window_pattern", Value::from(6u32)));
    same("glm4moe", &|_, specs| specs.retain(|spec| !spec.name.starts_with("blk.2.")));
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = changed(directory.path(), "qwen3", |_, _| {});
    let mut bytes = std::fs::read(&path).unwrap();
    let header = gguf::read(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
    let tensor = header.tensors.iter().find(|tensor| tensor.name == "blk.1.attn_v.weight").unwrap();
    let at = (header.data_offset_bytes + tensor.offset_bytes) as usize;
    // NaN in 16 bits.
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let model = Opened::open(&path).unwrap();
    let result = model::forward(model.store().unwrap(), &ids("qwen3"), 64, &Storage::Memory, &mut Unobserved);
    let error = result.err().unwrap().to_string();
    assert!(error.contains("blk.1.attn_v.weight") && error.contains("NaN"), "{error}");
}

/// The estimate that `--memory` goes by, against what the system says of a process, for a model whose states are most of it.
#[test]
fn memory_is_what_was_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let (hidden, query, key, inner) = (512, 768, 384, 1024);
    let path = changed(directory.path(), "gemma2", |metadata, specs| {
        for (key, count) in [
            ("block_count", 2u32),
            ("embedding_length", hidden),
            ("feed_forward_length", inner),
            ("attention.head_count", 12),
            ("attention.head_count_kv", 6),
            ("attention.key_length", query / 12),
            ("attention.value_length", query / 12),
        ] {
            metadata.set(format!("gemma2.{key}"), count);
        }
        specs.retain(|spec| !spec.name.starts_with("blk.2.") && !spec.name.starts_with("blk.3."));
        for spec in specs {
            let suffix = spec.name.rsplit_once('.').unwrap().0.rsplit('.').next().unwrap().to_owned();
            let (cols, rows) = match suffix.as_str() {
                "token_embd" => (hidden, spec.shape[1] as u32),
                "attn_q" => (hidden, query),
                "attn_k" | "attn_v" => (hidden, key),
                "attn_output" => (query, hidden),
                "ffn_gate" | "ffn_up" => (hidden, inner),
                "ffn_down" => (inner, hidden),
                _ => (hidden, 0),
            };
            spec.shape = if rows == 0 { vec![cols.into()] } else { vec![cols.into(), rows.into()] };
        }
    });
    let tokens = directory.path().join("tokens.json");
    let ids: Vec<u32> = (0..40 * 512).map(|i: u32| i * 7919 % 352).collect();
    std::fs::write(&tokens, serde_json::to_vec(&ids).unwrap()).unwrap();
    let model = Opened::open(&path).unwrap();
    let spec = model.store().unwrap().spec();
    let load = Workload { tokens: ids.len(), context: 512, scored: 40 * 255, models: 2, predictions: 0 };
    let mut peaks = Vec::new();
    for storage in [Storage::Memory, Storage::Scratch(directory.path().to_owned())] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let allowed = pool.install(|| peak_ram_bytes(spec, &load, &storage));
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        command.arg("perplexity").arg(&path).arg("--against").arg(&path).arg("--tokens").arg(&tokens);
        command.args(["--threads", "2", "--json", "-q", "--memory", &allowed.to_string()]);
        command.arg("--scratch").arg(directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        let disk = if storage == Storage::Memory { 0 } else { scratch_bytes(spec, &load) };
        assert_eq!(report["scratch_bytes"], disk);
        let peak = report["peak_rss_bytes"].as_u64().unwrap();
        println!("{storage:?}: {peak} of {allowed}");
        assert!(peak <= allowed, "{storage:?}: {peak} of {allowed}");
        peaks.push((peak, allowed));
    }
    let [(most, allowed), (least, least_allowed)] = peaks[..] else { unreachable!() };
    assert!(2 * (most - least) > allowed - least_allowed, "{peaks:?}");
}
