//! Checkpoints of many families, two of each, against the reference tools: whole files of llama.cpp and mlx-lm, logits of
//! transformers.
//!
//! The checkpoints are not stored: `fixtures/make_checkpoint_goldens.py` and [`weights`] make every weight of its name.

use std::path::{Path, PathBuf};

use requant::model::{self, Storage, Unobserved};
use requant::opened::Opened;
use requant::plan::{self, Options};
use requant_formats::Dtype;
use serde_json::{Value, json};

use crate::conversion::{Silent, convert_with, fixtures, settings, sha256};
use crate::maker;

fn folder() -> PathBuf {
    fixtures().join("goldens/families")
}

/// The models.
fn models() -> Vec<String> {
    let names = crate::conversion::names(&folder()).into_iter();
    let stems = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()));
    let models: Vec<String> = stems.filter(|stem| !stem.ends_with(".config")).collect();
    assert!(models.len() >= 15, "{models:?}");
    models
}

pub(crate) fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap()
}

/// A tensor of a golden: name, shape, its dtype where that is not BF16, its values where these are its own.
pub(crate) fn listed(golden: &Value) -> Vec<maker::Tensor> {
    let tensor = |row: &Value| {
        let name = row[0].as_str().unwrap().to_owned();
        let shape: Vec<usize> = serde_json::from_value(row[1].clone()).unwrap();
        let dtype = Dtype::parse(row[2].as_str().unwrap_or("BF16")).unwrap();
        let bytes = match row[3].as_array() {
            Some(values) => values.iter().flat_map(|value| value.as_i64().unwrap().to_le_bytes()).collect(),
            None => weights(&name, &shape, dtype),
        };
        maker::Tensor { name, dtype, shape, bytes, shard: 0 }
    };
    golden["tensors"].as_array().unwrap().iter().map(tensor).collect()
}

/// The weights of a tensor.
fn weights(name: &str, shape: &[usize], dtype: Dtype) -> Vec<u8> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let cols = shape[shape.len() - 1];
    let shift = match shape.len() {
        1 => 2,
        _ if name.contains("embed_tokens") => 0,
        _ => u64::from((usize::BITS - cols.leading_zeros()) / 2),
    };
    let bits = |position: usize| {
        let mut z = seed.wrapping_add((position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let (sign, fraction, exponent) = (z & 1, (z >> 1) & 127, (z >> 8) & 3);
        match dtype {
            Dtype::I32 => z,
            Dtype::U8 if name.ends_with("_scales") => {
                exponent + if name.contains("gate_up") { 122 } else { 118 }
            }
            Dtype::U8 => z,
            Dtype::F8_E4M3 => sign << 7 | (5 + exponent) << 3 | (fraction & 7),
            Dtype::F32 => (121 - exponent) << 23 | fraction << 16,
            _ if name.ends_with("weight_scale") => (121 - exponent) << 7 | fraction,
            _ if name.ends_with("norm.weight") => 127 << 7 | fraction,
            _ => sign << 15 | (127 - shift - exponent) << 7 | fraction,
        }
    };
    let width = dtype.size_bytes();
    (0..shape.iter().product()).flat_map(|at| bits(at).to_le_bytes().into_iter().take(width)).collect()
}

/// Makes the checkpoint in a directory of its name, which GGUF files state.
pub(crate) fn checkpoint(directory: &Path, name: &str, golden: &Value) -> PathBuf {
    let path = directory.join(name);
    std::fs::create_dir(&path).unwrap();
    let tensors = listed(golden);
    let config = golden["config"].clone();
    maker::Checkpoint { config, tensors, indexed: false, extra_index: Vec::new() }.write(&path);
    match golden.get("sentence_piece").and_then(Value::as_array) {
        None => maker::copy_tokenizer(&path),
        Some(files) => {
            for file in files.iter().map(|file| file.as_str().unwrap()) {
                std::fs::copy(fixtures().join("goldens/sentence-piece").join(file), path.join(file)).unwrap();
            }
        }
    }
    for (old, new) in golden.get("tokens").and_then(Value::as_object).into_iter().flatten() {
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let text = std::fs::read_to_string(path.join(name)).unwrap().replace(old, new.as_str().unwrap());
            std::fs::write(path.join(name), text).unwrap();
        }
    }
    path
}

fn digests(golden: &Value) -> impl Iterator<Item = (&String, &str)> {
    golden.as_object().unwrap().iter().map(|(name, digest)| (name, digest.as_str().unwrap()))
}

#[test]
fn gguf_files_equal_those_of_llama_cpp() {
    for name in models() {
        let (directory, golden) = (tempfile::tempdir().unwrap(), golden(&name));
        let source = checkpoint(directory.path(), &name, &golden);
        for (format, expected) in digests(&golden["gguf"]) {
            let output = directory.path().join(format!("{format}.gguf"));
            convert_with(&source, &settings(format, 2), &Options::default(), &output, &Silent).unwrap();
            assert_eq!(sha256(&std::fs::read(&output).unwrap()), expected, "{name} to {format}");
        }
    }
}

#[test]
fn mlx_directories_equal_those_of_mlx_lm() {
    for name in models() {
        let (directory, golden) = (tempfile::tempdir().unwrap(), golden(&name));
        let source = checkpoint(directory.path(), &name, &golden);
        for (format, files) in golden["mlx"].as_object().unwrap() {
            let output = directory.path().join(format);
            convert_with(&source, &settings(format, 2), &Options::default(), &output, &Silent).unwrap();
            let config = std::fs::read_to_string(output.join("config.json")).unwrap();
            let expected = std::fs::read_to_string(folder().join(format!("{name}-{format}.config.json")));
            assert_eq!(config, expected.unwrap(), "{name} to {format}");
            for (file, expected) in digests(files) {
                let found = std::fs::read(output.join(file)).unwrap();
                assert_eq!(sha256(&found), expected, "{name} to {format}: {file}");
            }
        }
    }
}

/// Reference and requant sum products in another order, in f32: rows of at most 512, whose sums of roundings grow with the square
/// root of their number. The largest difference seen is half of that (1.4e-6 of the largest logit); errors of more than a few layers
/// add to each other, as the root of their number too.
#[test]
fn checkpoints_and_results_compute_what_transformers_computes() {
    for name in models() {
        let (directory, golden) = (tempfile::tempdir().unwrap(), golden(&name));
        let source = checkpoint(directory.path(), &name, &golden);
        let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        let bytes = std::fs::read(folder().join(format!("{name}.f32"))).unwrap();
        let expected: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let whole = directory.path().join("f32.gguf");
        let floats = directory.path().join("mlx");
        let mut paths = vec![&source];
        let is_quantized = golden["config"].get("quantization_config").is_some()
            || golden["config"]["text_config"].get("quantization_config").is_some();
        for (format, output) in [("f32", &whole), ("mlx-bf16", &floats)] {
            if is_quantized && format == "mlx-bf16" {
                // 16 bits do not hold what the products of codes and scales are.
                continue;
            }
            match convert_with(&source, &settings(format, 2), &Options::default(), output, &Silent) {
                Ok(_) => paths.push(output),
                // What the engine would compute otherwise.
                Err(error) => {
                    let made = &golden[if format == "f32" { "gguf" } else { "mlx" }];
                    assert!(made.as_object().unwrap().is_empty(), "{name}: {error}");
                    let is_known = ["sliding_window", "rope_parameters", "num_key_value_heads"]
                        .iter()
                        .any(|key| error.to_string().contains(key));
                    assert!(is_known, "{name}: {error}");
                }
            }
        }
        for path in paths {
            let opened = Opened::open(path).unwrap();
            let store = opened.store().unwrap();
            let hidden = model::forward(store, &ids, ids.len(), &Storage::Memory, &mut Unobserved).unwrap();
            let found = model::logits(store, &hidden, &[ids.len() - 2, ids.len() - 1]).unwrap();
            assert_eq!(found.len(), expected.len());
            let scale = expected.iter().map(|logit| logit.abs()).fold(1.0, f32::max);
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{}: largest difference of a logit {worst:e} of {scale}", path.display());
            let layers = store.spec().layers as f32;
            let bound = 512f32.sqrt() * f32::EPSILON * scale * (layers / 7.0).sqrt().max(1.0);
            assert!(worst < bound, "{}: {worst} of {scale}", path.display());
        }
    }
}

/// SentencePiece's vocabulary, from tokenizer.json and from the GGUF file that was made of tokenizer.model. A text that begins with
/// a space is cut otherwise: llama.cpp puts one more before it, transformers only before a text without.
#[test]
fn text_is_cut_alike_in_a_checkpoint_and_its_gguf_file() {
    let directory = tempfile::tempdir().unwrap();
    let source = checkpoint(directory.path(), "llama-d", &golden("llama-d"));
    let output = directory.path().join("m.gguf");
    convert_with(&source, &settings("q8_0", 2), &Options::default(), &output, &Silent).unwrap();
    let [a, b] = [&source, &output].map(|path| Opened::open(path).unwrap().tokenizer().unwrap());
    let heldout = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    // The text of a token that must not come out of text is a token there and text here.
    let heldout = heldout.replace("<unk>", "unknown");
    for text in
        ["", "The quick  brown fox", "na\u{ef}ve 1234\n\n\t\u{6771}\u{4eac} \u{1f600}", &heldout[1..20_000]]
    {
        assert_eq!(a.encode(text, true).unwrap(), b.encode(text, true).unwrap(), "{text}");
    }
}

/// What a conversion to GGUF needs of files that somebody else wrote.
#[test]
fn broken_vocabularies_of_sentencepiece_are_named() {
    let write: [(&str, &[u8], &str); 7] = [
        ("tokenizer.model", b"", "no pieces"),
        ("tokenizer.model", b"{\"not\": \"one\"}", "not a model of SentencePiece"),
        ("added_tokens.json", b"[1, 2]", "added_tokens.json"),
        ("added_tokens.json", b"{\"a\": -1}", "added_tokens.json"),
        (
            "tokenizer_config.json",
            b"{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}",
            "tokenizer_config.json",
        ),
        ("tokenizer_config.json", b"{\"added_tokens_decoder\": {\"1\": {}}}", "tokenizer_config.json"),
        ("tokenizer.json", b"{", "tokenizer.json"),
    ];
    for (file, bytes, expected) in write {
        let directory = tempfile::tempdir().unwrap();
        let source = checkpoint(directory.path(), "llama-d", &golden("llama-d"));
        std::fs::write(source.join(file), bytes).unwrap();
        let opened = Opened::open(&source).unwrap();
        let error = plan::blueprint(&opened, "q8_0", &Options::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let source = checkpoint(directory.path(), "llama-d", &golden("llama-d"));
    let options = Options { tokenizer_pre: Some("llama-bpe".into()), ..Options::default() };
    let error = plan::blueprint(&Opened::open(&source).unwrap(), "q8_0", &options).err().unwrap().to_string();
    assert!(error.contains("--tokenizer-pre"), "{error}");
}

/// Where config.json does not say, a model has a head for transformers and none for mlx-lm.
#[test]
fn a_head_that_mlx_lm_would_leave_out_is_refused_for_it() {
    for name in ["llama-a", "mistral-a", "seed_oss-a"] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden(name));
        golden["config"].as_object_mut().unwrap().remove("tie_word_embeddings").unwrap();
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden)).unwrap();
        let blueprint = |format| plan::blueprint(&opened, format, &Options::default());
        let error = blueprint("mlx-4bit").err().unwrap().to_string();
        assert!(error.contains("tie_word_embeddings"), "{name}: {error}");
        blueprint("q4_k_m").unwrap();
    }
}

/// What llama.cpp's or mlx-lm's model of Gemma would take for something else is refused for it alone, what this version does not
/// compute for all.
#[test]
fn settings_of_gemma_that_a_consumer_does_not_have_are_refused_for_it() {
    let all = &["q8_0", "mlx-4bit"][..];
    for (name, key, value, refused) in [
        ("gemma2-b", "query_pre_attn_scalar", json!(144), &["q8_0"][..]),
        ("gemma2-b", "sliding_window", json!(1024), &["mlx-4bit"]),
        ("gemma2-b", "attn_logit_softcapping", Value::Null, all),
        (
            "gemma2-b",
            "layer_types",
            json!(["full_attention", "sliding_attention", "full_attention"]),
            &["q8_0"],
        ),
        ("gemma2-b", "rope_theta", json!(500.0), &["q8_0"]),
        ("gemma3_text-a", "sliding_window_pattern", json!(2), &["q8_0"]),
        ("gemma3_text-a", "final_logit_softcapping", json!(30.0), &["mlx-4bit"]),
        ("gemma3-a", "vocab_size", json!(262_208), &["mlx-4bit"]),
    ] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden(name));
        golden["config"][key] = value;
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden)).unwrap();
        for format in all {
            match plan::blueprint(&opened, format, &Options::default()) {
                Err(error) => {
                    // Windows by layer are told by the pattern too.
                    let named =
                        error.to_string().replace("layer_types", "layer_types or sliding_window_pattern");
                    assert!(
                        refused.contains(format) && named.contains(key),
                        "{name} {key} {format}: {error}"
                    );
                }
                Ok(_) => assert!(!refused.contains(format), "{name} {key} {format}"),
            }
        }
        plan::blueprint(&opened, "gptq-4bit-32g", &Options::default()).unwrap();
    }
    for (name, key, value) in [
        ("gemma2-a", "hidden_activation", json!("gelu")),
        ("gemma2-a", "attention_bias", json!(true)),
        ("gemma2-a", "use_bidirectional_attention", json!(true)),
        ("gemma2-a", "tie_word_embeddings", json!(false)),
        ("gemma2-a", "query_pre_attn_scalar", json!(0)),
        ("gemma3_text-a", "sliding_window", Value::Null),
        ("gemma3_text-a", "attn_logit_softcapping", json!(50.0)),
        ("gemma3_text-a", "layer_types", json!(["full_attention"])),
        (
            "gemma3_text-a",
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}),
        ),
        ("gemma3-a", "architectures", json!(["Gemma3ForSequenceClassification"])),
    ] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden(name));
        golden["config"][key] = value;
        let error = Opened::open(&checkpoint(directory.path(), name, &golden)).err().unwrap().to_string();
        let named = error.replace("scaled rotary positions", "rope_scaling");
        assert!(named.contains(key), "{name} {key}: {error}");
    }
}

/// Settings of GLM that mlx-lm's model has no place for, or that this version does not compute, and a tokenizer without its tokens.
#[test]
fn settings_of_glm_that_a_consumer_does_not_have_are_refused_for_it() {
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    for (key, value, format) in [("rope_scaling", linear, "mlx-4bit"), ("tokens", Value::Null, "q8_0")] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden("glm4_moe-a"));
        if key == "tokens" {
            golden.as_object_mut().unwrap().remove(key);
        } else {
            golden["config"][key] = value;
        }
        let opened = Opened::open(&checkpoint(directory.path(), "glm4_moe-a", &golden)).unwrap();
        let error = plan::blueprint(&opened, format, &Options::default()).err().unwrap().to_string();
        assert!(error.contains(if key == "tokens" { "[gMASK]" } else { key }), "{key}: {error}");
        let other = if format == "q8_0" { "mlx-4bit" } else { "q8_0" };
        plan::blueprint(&opened, other, &Options::default()).unwrap();
    }
    for (key, value) in [
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("n_group", json!(3)),
        ("topk_group", json!(2)),
        ("num_experts_per_tok", json!(9)),
        ("partial_rotary_factor", json!(2.0)),
        ("hidden_act", json!("gelu")),
    ] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden("glm4_moe-a"));
        golden["config"][key] = value;
        let error =
            Opened::open(&checkpoint(directory.path(), "glm4_moe-a", &golden)).err().unwrap().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

/// llama.cpp's converter keeps the prediction layer of GLM, which `block_count` includes; mlx-lm leaves it out.
#[test]
fn prediction_layers_stay_where_the_converter_keeps_them() {
    for name in ["glm4_moe-b", "glm4_moe_lite-b"] {
        predictors_stay(name);
    }
}

fn predictors_stay(name: &str) {
    let (directory, golden) = (tempfile::tempdir().unwrap(), golden(name));
    let source = checkpoint(directory.path(), name, &golden);
    let opened = Opened::open(&source).unwrap();
    let gguf = plan::blueprint(&opened, "q8_0", &Options::default()).unwrap();
    assert!(
        gguf.dropped.is_empty()
            && gguf.tensors.iter().any(|tensor| tensor.names[0] == "blk.3.nextn.eh_proj.weight")
    );
    let mlx = plan::blueprint(&opened, "mlx-4bit", &Options::default()).unwrap();
    assert!(mlx.dropped.len() == 1 && mlx.dropped[0].reason.contains("prediction layer 3"));
    let output = directory.path().join("m.gguf");
    convert_with(&source, &settings("f32", 2), &Options::default(), &output, &Silent).unwrap();
    let spec = |path: &Path| Opened::open(path).unwrap().store().unwrap().spec().clone();
    let (here, there) = (spec(&source), spec(&output));
    assert_eq!((here.layers, here.mtp_layers), (there.layers, there.mtp_layers));
}

/// Only what sees images is left out, and said to be; targets that keep the checkpoint's names keep it as it is.
#[test]
fn tensors_of_what_sees_images_are_reported() {
    for name in ["gemma3-a", "gemma3-b", "kimi_k25-a", "kimi_k25-b"] {
        let (directory, golden) = (tempfile::tempdir().unwrap(), golden(name));
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden)).unwrap();
        for format in ["q8_0", "mlx-4bit"] {
            let dropped = plan::blueprint(&opened, format, &Options::default()).unwrap().dropped;
            let [dropped] = &dropped[..] else { panic!("{name} {format}: {dropped:?}") };
            let names: Vec<&str> = dropped.tensors.iter().map(|&id| &*opened.tensors()[id].name).collect();
            assert_eq!(names.len(), 4, "{names:?}");
            let marks = ["vision_tower", "multi_modal_projector", "mm_projector"];
            assert!(names.iter().all(|name| marks.iter().any(|mark| name.contains(mark))));
            assert!(dropped.reason.contains("images"), "{}", dropped.reason);
        }
        let kept = plan::blueprint(&opened, "gptq-4bit-32g", &Options::default()).unwrap();
        assert!(kept.dropped.is_empty());
        let is_kept = |tensor: &&plan::OutputTensor| tensor.names[0].contains("vision_tower");
        assert_eq!(kept.tensors.iter().filter(is_kept).count(), 2, "{name}");
    }
}

/// llama.cpp's converter takes the vocabulary of Gemma 2 from tokenizer.model alone, and cuts off rows of Gemma 3's embedding.
#[test]
fn vocabularies_that_llama_cpp_would_not_read_are_refused_for_it() {
    for (name, expected) in [("gemma2-a", "tokenizer.model"), ("gemma3_text-a", "rows of the embedding")] {
        let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden(name));
        golden.as_object_mut().unwrap().remove("sentence_piece");
        let opened = Opened::open(&checkpoint(directory.path(), name, &golden)).unwrap();
        let error = plan::blueprint(&opened, "q8_0", &Options::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// llama.cpp's model has no bias there, and neither its file nor that of others may lose one.
#[test]
fn a_bias_that_llama_cpp_does_not_have_is_refused_for_it() {
    let (directory, mut golden) = (tempfile::tempdir().unwrap(), golden("seed_oss-b"));
    golden["config"]["attention_out_bias"] = true.into();
    let hidden = golden["config"]["hidden_size"].clone();
    for layer in 0..3 {
        let name = format!("model.layers.{layer}.self_attn.o_proj.bias");
        golden["tensors"].as_array_mut().unwrap().push(json!([name, [hidden]]));
    }
    let opened = Opened::open(&checkpoint(directory.path(), "seed_oss-b", &golden)).unwrap();
    let blueprint = |format| plan::blueprint(&opened, format, &Options::default());
    let error = blueprint("q8_0").err().unwrap().to_string();
    assert!(error.contains("attention_out_bias"), "{error}");
    for format in ["mlx-4bit-g32", "gptq-4bit-32g"] {
        assert!(
            blueprint(format).unwrap().tensors.iter().any(|tensor| tensor.names[0].ends_with("o_proj.bias"))
        );
    }
}
