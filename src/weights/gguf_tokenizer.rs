//! The tokenizer of a GGUF: tokenizer.json put together again from `tokenizer.ggml.*`.
//!
//! A GGUF does not hold the patterns that cut text before merging, only their name; the patterns here are
//! those that llama.cpp uses for it. Control and user-defined tokens become added tokens, unused rows
//! nothing.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (patterns), `gguf-py/gguf/constants.py` (token types).

use requant_formats::container::gguf::{Metadata, Value};
use serde_json::{Map, json};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

const DEEPSEEK_V3: &[&str] = &[
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];
const DEEPSEEK_LLM: &[&str] = &[
    "[\r\n]",
    "\\s?[\
     A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\
     \u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\
     \u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\
     \u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\
     \u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\
     \u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\
     \u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\
     \u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
     \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\
     \u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\
     \u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\
     \u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\
     \u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
     \u{1e900}-\u{1e943}]+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    "\\p{N}+",
];

/// Names of `tokenizer.ggml.pre` and what they cut at.
const PATTERNS: &[(&str, &[&str])] =
    &[("deepseek-v3", DEEPSEEK_V3), ("joyai-llm", DEEPSEEK_V3), ("deepseek-llm", DEEPSEEK_LLM)];

/// Rebuilds the tokenizer of `file`.
///
/// # Errors
/// When a key is missing, or the tokenizer is not one of those whose patterns are known.
pub(super) fn rebuild(metadata: &Metadata, file: &str) -> Result<Tokenizer> {
    let missing = |key: &str| {
        Error::checkpoint(file, format!("metadata key {key} is missing: text cannot be turned into tokens"))
    };
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).ok_or_else(|| missing(key));
    let model = text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(Error::Unsupported {
            what: format!("{file}: tokenizer.ggml.model {model:?}"),
            hint: "this version rebuilds byte-level BPE (\"gpt2\"); token ids can be given with --tokens"
                .into(),
        });
    }
    let pre = text("tokenizer.ggml.pre")?;
    let (_, patterns) = PATTERNS.iter().find(|row| row.0 == pre).ok_or_else(|| Error::Unsupported {
        what: format!("{file}: tokenizer.ggml.pre {pre:?}"),
        hint: format!(
            "this version rebuilds {}; token ids can be given with --tokens",
            PATTERNS.iter().map(|row| row.0).collect::<Vec<_>>().join(", ")
        ),
    })?;
    let strings =
        |key: &str| metadata.get(key).and_then(Value::as_array).and_then(|array| array.as_strings());
    let key = "tokenizer.ggml.tokens";
    let tokens = strings(key).ok_or_else(|| missing(key))?;
    let key = "tokenizer.ggml.token_type";
    let types = metadata.get(key).and_then(Value::as_array).and_then(|array| array.as_i32s());
    let types = types.filter(|types| types.len() == tokens.len()).ok_or_else(|| missing(key))?;
    let merges = strings("tokenizer.ggml.merges").unwrap_or(&[]);

    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, (token, &kind)) in tokens.iter().zip(types).enumerate() {
        match kind {
            UNUSED => {}
            CONTROL | USER_DEFINED => {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == CONTROL,
                }));
                vocabulary.insert(token.clone(), id.into());
            }
            _ => {
                vocabulary.insert(token.clone(), id.into());
            }
        }
    }
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let cuts: Vec<serde_json::Value> = patterns.iter().map(split).chain([bytes.clone()]).collect();
    let special = |key: &str| {
        let id = metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_u64);
        id.and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?)))
    };
    let adds_bos = metadata.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool) == Some(true);
    let post_processor = match special("bos").filter(|_| adds_bos) {
        None => bytes,
        Some((id, token)) => {
            let bos = json!({"SpecialToken": {"id": token, "type_id": 0}});
            let named =
                Map::from_iter([(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}))]);
            json!({
                "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": named,
            })
        }
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    let named = |key: &str| special(key).map(|(_, token)| token.clone());
    let config = json!({"bos_token": named("bos"), "eos_token": named("eos")});
    Tokenizer::new(tokenizer.to_string().as_bytes(), Some(config.to_string().as_bytes()), None)
        .map_err(|error| Error::checkpoint(file, format!("tokenizer.ggml.*: {error}")))
}
