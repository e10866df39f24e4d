//! Definitions that ask for too much, and those of published tokenizers, which do not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::tokenizer::{Fingerprint, Tokenizer};

/// A byte-level tokenizer, changed.
fn tokenizer(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, String> {
    let mut definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    });
    change(&mut definition);
    Tokenizer::new(definition.to_string().as_bytes(), None, None).map_err(|error| error.to_string())
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// The error of loading, or else of taking the fingerprint.
#[track_caller]
fn error_of(change: impl FnOnce(&mut Value)) -> String {
    let started = Instant::now();
    let result = tokenizer(change)
        .and_then(|tokenizer| Fingerprint::of(&tokenizer).map_err(|error| error.to_string()));
    assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
    let error = result.expect_err("it asks for too much");
    assert!(error.starts_with("tokenizer.json: cannot be used: ") && error.len() < 600, "{error}");
    error
}

#[test]
fn normalizers_that_explode() {
    let doubling: Vec<Value> = (0..40).map(|_| replace(json!({"String": "a"}), "aa")).collect();
    let anywhere: Vec<Value> = (0..10).map(|_| replace(json!({"Regex": ""}), "aaaaaaaa")).collect();
    let mut nested = replace(json!({"String": "a"}), "aa");
    for _ in 0..30 {
        nested = json!({"type": "Sequence", "normalizers": [nested.clone()]});
    }
    for (normalizer, why) in [
        (replace(json!({"Regex": "."}), &"x".repeat(10_000_000)), "content"),
        (json!({"type": "Prepend", "prepend": "x".repeat(1000)}), "prepend"),
        (json!({"type": "Sequence", "normalizers": doubling}), "longer"),
        (json!({"type": "Sequence", "normalizers": anywhere}), "longer"),
        (json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFKC"}); 1000]}), "steps"),
        (nested, "levels"),
        (json!({"type": "Sequence", "normalizers": vec![json!({"type": "ByteLevel"}); 30]}), "ByteLevel"),
    ] {
        let error = error_of(|definition| definition["normalizer"] = normalizer);
        assert!(error.contains("normalizer") && error.contains(why), "{error}");
    }
}

#[test]
fn other_parts_that_explode() {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let cuts = json!({"type": "Sequence", "pretokenizers": vec![byte_level; 30]});
    assert!(error_of(|definition| definition["pre_tokenizer"] = cuts).contains("ByteLevel"));

    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = json!({"type": "TemplateProcessing", "single": vec![text.clone(); 8], "pair": [text], "special_tokens": {}});
    let templates = json!({"type": "Sequence", "processors": vec![template; 20]});
    assert!(error_of(|definition| definition["post_processor"] = templates).contains("repeat"));

    let added: Vec<Value> = (0..400_000)
        .map(|id| {
            json!({"id": id + 3, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": false})
        })
        .collect();
    assert!(error_of(|definition| definition["added_tokens"] = added.into()).contains("added_tokens"));
    let decoder = replace(json!({"String": "a"}), &"x".repeat(1 << 20));
    assert!(error_of(|definition| definition["decoder"] = decoder).contains("decoder"));
}

/// What Hugging Face's crate panics on.
#[test]
fn broken_parts_are_errors() {
    for merge in [json!(["ab", "ab"]), json!(["a", "x"]), json!("a b c"), json!("ab"), json!(["a", ""])] {
        error_of(|definition| definition["model"]["merges"] = json!([merge]));
    }
    for prefix in ["##", "\u{e9}"] {
        error_of(|definition| {
            definition["model"]["continuing_subword_prefix"] = json!(prefix);
            definition["model"]["vocab"]["\u{20ac}"] = json!(3);
            definition["model"]["merges"] = json!([["a", "\u{20ac}"]]);
        });
    }
    error_of(|definition| definition["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    error_of(|definition| {
        definition["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    });
    error_of(|definition| definition["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}}));
}

/// A regular expression that backtracks without end is left off, or is an error: it does not take hours.
#[test]
fn patterns_that_backtrack_end() {
    let started = Instant::now();
    let pattern = json!({"Regex": r"(?:(\p{L}+)*\1)+(?!.)#"});
    let split = json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    let cuts = json!({"type": "Sequence", "pretokenizers": vec![split; 20]});
    let result = tokenizer(|definition| definition["pre_tokenizer"] = cuts)
        .and_then(|tokenizer| Fingerprint::of(&tokenizer).map_err(|error| error.to_string()));
    if let Err(error) = result {
        assert!(error.contains("cannot be used"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(150), "{:?}", started.elapsed());
}

/// As large as the largest vocabularies that are published: 262,144 tokens, some of them added, and as many merges.
#[test]
fn large_tokenizers_are_read() {
    let result = tokenizer(|definition| {
        let bytes = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut vocab: Vec<String> = bytes.iter().map(|&byte| byte.to_owned()).collect();
        let mut merges = Vec::new();
        for first in 0.. {
            for byte in bytes {
                merges.push(json!([vocab[first], byte]));
                vocab.push(format!("{}{byte}", vocab[first]));
            }
            if vocab.len() > 250_000 {
                break;
            }
        }
        let added = (vocab.len()..262_144).map(|id| {
            json!({"id": id, "content": format!("<unused{id}>"), "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        });
        definition["added_tokens"] = added.collect();
        definition["model"]["merges"] = merges.into();
        definition["model"]["vocab"] =
            vocab.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    });
    let tokenizer = result.unwrap();
    assert_eq!(tokenizer.vocabulary().len(), 262_144);
    let ids = tokenizer.encode("abcdefgh<unused262143>abab", false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "abcdefgh<unused262143>abab");
    Fingerprint::of(&tokenizer).unwrap();
}

#[test]
fn what_published_tokenizers_have_is_read() {
    for normalizer in [
        json!({"type": "Sequence", "normalizers": []}),
        json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, replace(json!({"String": " "}), "\u{2581}"),
        ]}),
        json!({"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Lowercase"}, replace(json!({"Regex": " {2,}"}), " "),
            replace(json!({"Regex": "``"}), "\""), replace(json!({"Regex": "''"}), "\""),
        ]}),
    ] {
        let tokenizer = tokenizer(|definition| definition["normalizer"] = normalizer).unwrap();
        tokenizer.encode("ab ab", true).unwrap();
        Fingerprint::of(&tokenizer).unwrap();
    }
}
