//! The tokenizer of a GGUF: tokenizer.json put together again from `tokenizer.ggml.*`.
//!
//! Byte-pair vocabularies (`gpt2`): a GGUF does not hold the patterns that cut text before merging, only their name.
//! SentencePiece (`llama`): it has scores instead of merges, and a token merges where its parts are tokens, those of the
//! best score first, as transformers builds its own. Control and user-defined tokens become added tokens; the former are
//! text like any other, as llama-perplexity has it, until [`Tokenizer::set_parses_special`] says otherwise. EOS at the end
//! of a text is left out: llama-perplexity refuses files that ask for it.
//!
//! Source: llama.cpp `src/llama-vocab.cpp` (defaults, `llm_tokenizer_bpe`, `llm_tokenizer_spm`),
//! `gguf-py/gguf/constants.py` (token types); transformers `tokenization_utils_sentencepiece.py` (`generate_merges`).

use std::collections::HashMap;

use requant_formats::container::gguf::{Array, Metadata, Value};
use serde_json::{Map, json};

use super::gguf_cuts::{self, Bos, Units};
use super::gguf_special::{Mark, Marks, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Most bytes that are compared to find the halves of all tokens; published vocabularies need 30 MB.
const MAX_HALVING_BYTES: u64 = 1 << 32;
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
    bos: Bos,
    /// Where the file does not name it.
    default_bos: Option<u64>,
    /// Line ends that are tokens are never cut.
    keeps_line_ends: bool,
    /// Rows that no text should have can come out of merges all the same.
    has_unused: bool,
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
        "gpt2" => byte_pairs(&keys)?,
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
    let (vocabulary, added) = stored.vocabulary(&Marks::new(metadata, tokens), &kind);
    let named = |id: u64| Some((id, tokens.get(usize::try_from(id).ok()?)?));
    let special = |key: &str| keys.value(&format!("{key}_token_id")).and_then(Value::as_u64).and_then(named);
    let said = keys.value("add_bos_token").and_then(Value::as_bool);
    let adds_bos = kind.bos == Bos::Always || said.unwrap_or(kind.bos == Bos::On);
    let bos = special("bos").or_else(|| kind.default_bos.filter(|_| adds_bos).and_then(named));
    let post_processor = match bos.filter(|_| adds_bos) {
        Some((id, token)) => begins_with(id, token),
        None if adds_bos => return Err(keys.missing("bos_token_id")),
        None => kind.post_processor,
    };
    let mut model = kind.model;
    model["vocab"] = vocabulary.into();
    model["merges"] = kind.merges;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": kind.normalizer, "pre_tokenizer": kind.pre_tokenizer, "post_processor": post_processor,
        "decoder": kind.decoder, "model": model,
    });
    let text = |token: Option<(u64, &String)>| token.map(|(_, token)| token.clone());
    let config = json!({"bos_token": text(bos), "eos_token": text(special("eos"))});
    let mut tokenizer =
        Tokenizer::new(tokenizer.to_string().as_bytes(), Some(config.to_string().as_bytes()), None)
            .map_err(|error| Error::checkpoint(file, format!("tokenizer.ggml.*: {error}")))?;
    tokenizer.set_parses_special(false);
    Ok(tokenizer)
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
    fn vocabulary(
        &self,
        marks: &Marks,
        kind: &Kind,
    ) -> (Map<String, serde_json::Value>, Vec<serde_json::Value>) {
        let mut vocabulary = Map::new();
        let mut added = Vec::new();
        let mut add = |id: usize, token: &str, mark: Mark| {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": mark.strips_left,
                "rstrip": mark.strips_right, "normalized": false, "special": mark.is_control,
            }));
        };
        for (id, (token, &token_type)) in self.tokens.iter().zip(self.types).enumerate() {
            if token_type == UNUSED && !kind.has_unused || token.is_empty() {
                continue;
            }
            if let Some(mark) = marks.of(token, token_type) {
                add(id, token, mark);
            } else if kind.keeps_line_ends && token.bytes().all(|byte| byte == b'\n') {
                add(id, token, Mark::default());
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

/// BPE with merges, on text that is cut before.
fn byte_pairs(keys: &Keys) -> Result<Kind> {
    // llama.cpp takes "default" where a file, an old one, does not say.
    let pre = keys.value("pre").and_then(Value::as_str).filter(|pre| !pre.is_empty()).unwrap_or("default");
    let cut = gguf_cuts::find(pre).ok_or_else(|| Error::Unsupported {
        what: format!("{}: tokenizer.ggml.pre {pre:?}", keys.file),
        hint: format!(
            "this version rebuilds {}; token ids can be given with --tokens",
            gguf_cuts::names().collect::<Vec<_>>().join(", ")
        ),
    })?;
    let merges = match keys.strings("merges") {
        Some(merges) => merges,
        None if pre == "kimi-k2" => &[],
        None => return Err(keys.missing("merges")),
    };
    // As llama.cpp: the first part has a character at least.
    let pair = |merge: &String| {
        let at = merge.char_indices().skip(1).find(|(_, char)| *char == ' ').map(|(at, _)| at)?;
        Some(json!([merge[..at], merge[at + 1..]]))
    };
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let is_bytes = cut.units == Units::Bytes;
    let cuts: Vec<serde_json::Value> =
        cut.patterns.iter().map(split).chain(is_bytes.then(|| bytes.clone())).collect();
    let shows_spaces = matches!(cut.units, Units::VisibleSpaces | Units::VisibleSpacesAndLineEnds);
    Ok(Kind {
        normalizer: if shows_spaces { visible_spaces() } else { json!(null) },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": cuts}),
        decoder: match cut.units {
            Units::Bytes => {
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
            }
            Units::Characters => fused(&[]),
            Units::VisibleSpaces | Units::VisibleSpacesAndLineEnds => fused(&[spaces()]),
        },
        post_processor: if is_bytes { bytes } else { json!(null) },
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": !is_bytes,
            "ignore_merges": cut.ignores_merges,
        }),
        merges: merges.iter().filter_map(pair).collect(),
        bos: cut.bos,
        default_bos: cut.default_bos,
        keeps_line_ends: cut.units == Units::VisibleSpacesAndLineEnds,
        has_unused: true,
    })
}

/// Spaces as tokens have them.
fn visible_spaces() -> serde_json::Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
}

/// The way back.
fn spaces() -> serde_json::Value {
    json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
}

/// Decoders, then tokens of bytes as text.
fn fused(first: &[serde_json::Value]) -> serde_json::Value {
    let last = [json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let decoders = [first, &last[..]].concat();
    json!({"type": "Sequence", "decoders": decoders})
}

/// SentencePiece's BPE: text as it is, spaces made visible, one before it unless the file says otherwise, and bytes for
/// what no token has.
fn sentence_piece(keys: &Keys, stored: &Stored) -> Result<Kind> {
    let scores = match keys.value("scores").and_then(Value::as_array) {
        Some(Array::F32(scores)) if scores.len() == stored.tokens.len() => scores,
        _ => return Err(keys.missing("scores")),
    };
    let has_prefix = keys.value("add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let prepend = has_prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let normalizers: Vec<serde_json::Value> = prepend.into_iter().chain([visible_spaces()]).collect();
    // Every way to halve a token is tried, which takes the square of its length.
    let work = stored.tokens.iter().fold(0u64, |all, token| all.saturating_add((token.len() as u64).pow(2)));
    if work > MAX_HALVING_BYTES {
        let longest = stored.tokens.iter().map(String::len).max().unwrap_or_default();
        let message = format!(
            "tokenizer.ggml.tokens: found tokens of up to {longest} bytes, expected some of a few bytes"
        );
        return Err(Error::checkpoint(keys.file, message));
    }
    let unknown = stored.types.iter().position(|&kind| kind == UNKNOWN);
    Ok(Kind {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: json!(null),
        decoder: fused(&[spaces()]),
        post_processor: json!(null),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &stored.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
        }),
        merges: merges(stored, scores).into(),
        bos: Bos::On,
        default_bos: Some(1),
        keeps_line_ends: false,
        has_unused: false,
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

#[cfg(test)]
mod tests;
