//! The tokenizer of a GGUF: tokenizer.json put together again from `tokenizer.ggml.*`.
//!
//! Byte-level BPE (`gpt2`): a GGUF does not hold the patterns that cut text before merging, only their name. SentencePiece
//! (`llama`): it has scores instead of merges, and a token merges where its parts are tokens, those of the best score
//! first, as transformers builds its own. Control and user-defined tokens become added tokens, unused rows nothing.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (defaults, `llm_tokenizer_spm`), `gguf-py/gguf/constants.py` (token types);
//! transformers `tokenization_utils_sentencepiece.py` (`generate_merges`).

use std::collections::HashMap;

use requant_formats::container::gguf::{Array, Metadata, Value};
use serde_json::{Map, json};

use super::gguf_cuts;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What stands for a space in SentencePiece's tokens.
const SPACE: &str = "\u{2581}";

/// Looks things up in the metadata of a file.
struct Keys<'a> {
    metadata: &'a Metadata,
    file: &'a str,
}

/// The vocabulary as it is stored.
struct Stored<'a> {
    tokens: &'a [String],
    types: &'a [i32],
}

/// What the two kinds of tokenizer do not have in common.
struct Kind {
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    decoder: serde_json::Value,
    /// When no BOS is added.
    post_processor: serde_json::Value,
    /// The model's parameters; vocabulary and merges come on top.
    model: serde_json::Value,
    merges: serde_json::Value,
    /// Where the file does not say.
    adds_bos: bool,
}

/// Rebuilds the tokenizer of `file`.
///
/// # Errors
/// When a key is missing, or the tokenizer is not one of those that are known.
pub(super) fn rebuild(metadata: &Metadata, file: &str) -> Result<Tokenizer> {
    let keys = Keys { metadata, file };
    let tokens = keys.strings("tokens").ok_or_else(|| keys.missing("tokens"))?;
    let types = keys.value("token_type").and_then(Value::as_array).and_then(|array| array.as_i32s());
    let types =
        types.filter(|types| types.len() == tokens.len()).ok_or_else(|| keys.missing("token_type"))?;
    let stored = Stored { tokens, types };
    let kind = match keys.text("model")? {
        "gpt2" => byte_level(&keys)?,
        "llama" => sentence_piece(&keys, &stored)?,
        other => {
            return Err(Error::Unsupported {
                what: format!("{file}: tokenizer.ggml.model {other:?}"),
                hint: "this version rebuilds byte-level BPE (\"gpt2\") and SentencePiece's BPE (\"llama\"); token ids \
                       can be given with --tokens"
                    .into(),
            });
        }
    };
    let (vocabulary, added) = stored.vocabulary();
    let special = |key: &str| {
        let id = keys.value(&format!("{key}_token_id")).and_then(Value::as_u64);
        id.and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?)))
    };
    let adds_bos = keys.value("add_bos_token").and_then(Value::as_bool).unwrap_or(kind.adds_bos);
    let post_processor = match special("bos").filter(|_| adds_bos) {
        None => kind.post_processor,
        Some((id, token)) => begins_with(id, token),
    };
    let mut model = kind.model;
    model["vocab"] = vocabulary.into();
    model["merges"] = kind.merges;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": kind.normalizer, "pre_tokenizer": kind.pre_tokenizer, "post_processor": post_processor,
        "decoder": kind.decoder, "model": model,
    });
    let named = |key: &str| special(key).map(|(_, token)| token.clone());
    let config = json!({"bos_token": named("bos"), "eos_token": named("eos")});
    Tokenizer::new(tokenizer.to_string().as_bytes(), Some(config.to_string().as_bytes()), None)
        .map_err(|error| Error::checkpoint(file, format!("tokenizer.ggml.*: {error}")))
}

impl<'a> Keys<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        self.value(key).and_then(Value::as_str).ok_or_else(|| self.missing(key))
    }

    fn strings(&self, key: &str) -> Option<&'a [String]> {
        self.value(key).and_then(Value::as_array).and_then(|array| array.as_strings())
    }

    fn missing(&self, key: &str) -> Error {
        let message =
            format!("metadata key tokenizer.ggml.{key} is missing: text cannot be turned into tokens");
        Error::checkpoint(self.file, message)
    }
}

impl Stored<'_> {
    /// Ids by token, and the added ones.
    fn vocabulary(&self) -> (Map<String, serde_json::Value>, Vec<serde_json::Value>) {
        let mut vocabulary = Map::new();
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(self.types).enumerate() {
            if kind == UNUSED {
                continue;
            }
            if kind == CONTROL || kind == USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == CONTROL,
                }));
            }
            vocabulary.insert(token.clone(), id.into());
        }
        (vocabulary, added)
    }
}

/// A post-processor that puts a token before every text.
fn begins_with(id: u64, token: &str) -> serde_json::Value {
    let bos = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let named = Map::from_iter([(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))]);
    json!({
        "type": "TemplateProcessing", "single": [bos, text("A", 0)], "pair": [bos, text("A", 0), text("B", 1)],
        "special_tokens": named,
    })
}

/// Byte-level BPE.
fn byte_level(keys: &Keys) -> Result<Kind> {
    // llama.cpp takes "default" where a file, an old one, does not say.
    let pre = keys.value("pre").and_then(Value::as_str).unwrap_or("default");
    let cut = gguf_cuts::find(pre).ok_or_else(|| Error::Unsupported {
        what: format!("{}: tokenizer.ggml.pre {pre:?}", keys.file),
        hint: format!(
            "this version rebuilds {}; token ids can be given with --tokens",
            gguf_cuts::names().collect::<Vec<_>>().join(", ")
        ),
    })?;
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let cuts: Vec<serde_json::Value> = cut.patterns.iter().map(split).chain([bytes.clone()]).collect();
    Ok(Kind {
        normalizer: json!(null),
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": cuts}),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        post_processor: bytes,
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": cut.ignores_merges,
        }),
        merges: keys.strings("merges").unwrap_or(&[]).into(),
        adds_bos: cut.adds_bos,
    })
}

/// SentencePiece's BPE: text as it is, spaces made visible, one before it unless the file says otherwise, and bytes for
/// what no token has.
fn sentence_piece(keys: &Keys, stored: &Stored) -> Result<Kind> {
    let scores = match keys.value("scores").and_then(Value::as_array) {
        Some(Array::F32(scores)) if scores.len() == stored.tokens.len() => scores,
        _ => return Err(keys.missing("scores")),
    };
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let has_prefix = keys.value("add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let prepend = has_prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<serde_json::Value> = prepend.into_iter().chain([replace]).collect();
    let unknown = stored.types.iter().position(|&kind| kind == UNKNOWN);
    Ok(Kind {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: json!(null),
        decoder: json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]}),
        post_processor: json!(null),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &stored.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
        }),
        merges: merges(stored, scores).into(),
        adds_bos: true,
    })
}

/// The merges that scores mean: for every token its halves that are tokens, best token first, and of the halves of a
/// token those with the smaller numbers.
fn merges(stored: &Stored, scores: &[f32]) -> Vec<serde_json::Value> {
    let pieces = stored.tokens.iter().zip(stored.types).enumerate();
    let pieces = pieces.filter(|(_, (_, kind))| matches!(**kind, NORMAL | USER_DEFINED));
    let ids: HashMap<&str, usize> = pieces.map(|(id, (token, _))| (token.as_str(), id)).collect();
    let mut found = Vec::new();
    for (&token, &id) in &ids {
        let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        found.extend(halves.filter_map(|(left, right)| Some((id, *ids.get(left)?, *ids.get(right)?))));
    }
    found.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    let text = |id: usize| stored.tokens[id].as_str();
    found.into_iter().map(|(_, left, right)| json!([text(left), text(right)])).collect()
}
