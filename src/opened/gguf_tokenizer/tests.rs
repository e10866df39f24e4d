//! Ids against those of llama-tokenize, for every name of a way to cut.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;

fn golden() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/goldens/forward/cuts.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Metadata of one of the vocabularies, with more tokens.
fn metadata(golden: &serde_json::Value, vocabulary: &str, more: &serde_json::Value) -> Metadata {
    let vocabulary = &golden["vocabularies"][vocabulary];
    let mut tokens: Vec<String> = list(&vocabulary["tokens"]);
    let mut types: Vec<i32> = list(&vocabulary["types"]);
    if more.is_object() {
        tokens.extend(list(&more["tokens"]));
        types.extend(list::<i32>(&more["types"]));
    }
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(list(&vocabulary["merges"]))));
    metadata.set("tokenizer.ggml.bos_token_id", 0u32);
    metadata.set("tokenizer.ggml.eos_token_id", 1u32);
    metadata
}

/// With merges that know no words, so that every cut shows.
#[test]
fn every_way_to_cut_text_is_that_of_llama_tokenize() {
    let golden = golden();
    let texts: Vec<String> = list(&golden["texts"]);
    let mut seen = BTreeSet::new();
    for cut in golden["cuts"].as_array().unwrap() {
        for name in list::<String>(&cut["names"]) {
            let mut metadata = metadata(&golden, cut["vocabulary"].as_str().unwrap(), &json!(null));
            metadata.set("tokenizer.ggml.pre", name.as_str());
            let tokenizer = rebuild(&metadata, "m.gguf").unwrap();
            for (text, expected) in texts.iter().zip(cut["ids"].as_array().unwrap()) {
                let ids = tokenizer.encode(text, true).unwrap();
                if !expected.is_null() {
                    assert_eq!(json!(ids), *expected, "{name}: {text:?}");
                }
                let begins = usize::from(name != "whitespace" && ids.first() == Some(&0));
                // Characters come back; what llama-tokenize sees as one is one.
                assert_eq!(tokenizer.decode(&ids[begins..]).unwrap(), *text, "{name}");
            }
            seen.insert(name);
        }
    }
    let known: BTreeSet<String> = gguf_cuts::names().map(str::to_owned).collect();
    assert_eq!(seen, known);
    assert_eq!(gguf_cuts::names().count(), known.len(), "a name stands twice");
}

/// What is control, what is stripped, and where a text begins, by metadata.
#[test]
fn special_tokens_are_found_as_llama_tokenize_finds_them() {
    let golden = golden();
    let special = &golden["special"];
    let text = special["text"].as_str().unwrap();
    for case in special["cases"].as_array().unwrap() {
        let mut metadata = metadata(&golden, "bytes", special);
        let changes = case["metadata"].as_object().unwrap();
        for (key, value) in changes {
            match value {
                serde_json::Value::Null => drop(metadata.remove(key)),
                serde_json::Value::Bool(value) => metadata.set(key.as_str(), *value),
                serde_json::Value::Number(id) => metadata.set(key.as_str(), id.as_u64().unwrap() as u32),
                other => metadata.set(key.as_str(), other.as_str().unwrap()),
            }
        }
        let mut tokenizer = rebuild(&metadata, "m.gguf").unwrap();
        for (parses, key) in [(false, "plain"), (true, "parsed")] {
            tokenizer.set_parses_special(parses);
            assert_eq!(tokenizer.parses_special(), parses);
            let mut expected: Vec<u32> = list(&case[key]);
            if changes.get("tokenizer.ggml.add_eos_token").is_some() {
                expected.truncate(expected.len() - 1);
            }
            assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{key}: {changes:?}");
        }
    }
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let golden = golden();
    let fails = |key: &str, value: Option<&str>, pre: &str| {
        let mut metadata = metadata(&golden, "bytes", &json!(null));
        metadata.set("tokenizer.ggml.pre", pre);
        match value {
            Some(value) => metadata.set(format!("tokenizer.ggml.{key}"), value),
            None => drop(metadata.remove(&format!("tokenizer.ggml.{key}"))),
        }
        rebuild(&metadata, "m.gguf").err().map(|error| error.to_string())
    };
    let message = fails("pre", Some("qwen9"), "").unwrap();
    assert!(
        message.contains("m.gguf") && message.contains("\"qwen9\"") && message.contains("kimi-k2"),
        "{message}"
    );
    assert!(fails("model", Some("rwkv"), "gpt-2").unwrap().contains("\"rwkv\""));
    assert!(fails("merges", None, "gpt-2").unwrap().contains("tokenizer.ggml.merges"));
    // Its vocabulary is said to need none.
    assert_eq!(fails("merges", None, "kimi-k2"), None);
}

/// Time must not grow with the square of anything that text has much of.
#[test]
fn long_texts_take_seconds() {
    let golden = golden();
    let texts: Vec<String> = list(&golden["texts"]);
    let mixed = texts.concat();
    let long = [
        mixed.repeat((100 << 10) / mixed.len()),
        "a1 ".repeat(10_000),
        " ".repeat(50_000),
        "7".repeat(2_000),
    ];
    for cut in golden["cuts"].as_array().unwrap() {
        let mut metadata = metadata(&golden, cut["vocabulary"].as_str().unwrap(), &json!(null));
        let name = cut["names"][0].as_str().unwrap();
        metadata.set("tokenizer.ggml.pre", name);
        let tokenizer = rebuild(&metadata, "m.gguf").unwrap();
        for text in &long {
            let start = Instant::now();
            tokenizer.encode(text, false).unwrap();
            assert!(start.elapsed() < Duration::from_secs(20), "{name}: {:?}", start.elapsed());
        }
    }
}
