//! `tokenizer.ggml.*` of SentencePiece: tokens, scores, types.
//!
//! Source: llama.cpp `conversion/base.py` (`_set_vocab_sentencepiece`, `_create_vocab_sentencepiece`). Odd, and kept: a piece
//! that the model's user defined is a normal token; the text of an added token takes the place of a piece's; tokens beyond the
//! rows of the embedding are left out, since no model can have learnt them.

use requant_formats::container::gguf::Metadata;
use serde_json::Value;

use super::vocabulary::{CONTROL, NORMAL, UNUSED, USER_DEFINED, looks_special};
use crate::error::{Error, Result};
use crate::tokenizer::TOKENIZER_CONFIG_FILE;
use crate::tokenizer::sentence_piece::{self, Piece, PieceKind, SENTENCE_PIECE_FILE};

/// Added tokens of older exports, ids by text.
pub(super) const ADDED_TOKENS_FILE: &str = "added_tokens.json";
/// Rows by which the converter knows a vocabulary with tokens for infilling, and writes more about it.
const INFILLING_VOCAB: usize = 32016;
/// The token for what has none.
const UNKNOWN: i32 = 2;
/// A token for a byte.
const BYTE: i32 = 6;
/// Score of a row without a token.
const SCORE_OF_NOTHING: f32 = -10000.0;
/// Score of a token that was added.
const SCORE_OF_ADDED: f32 = -1000.0;

/// What is written.
pub(super) struct Inputs<'a> {
    /// Rows of the token embedding.
    pub(super) vocab: usize,
    /// tokenizer.model.
    pub(super) pieces: &'a [u8],
    /// added_tokens.json, when there is one.
    pub(super) added: Option<&'a Value>,
    /// tokenizer_config.json, when there is one.
    pub(super) config: Option<&'a Value>,
    /// `tokenizer.ggml.pre`, if the user says it.
    pub(super) pre: Option<&'a str>,
}

/// A row of the vocabulary.
#[derive(Clone)]
struct Row {
    text: String,
    score: f32,
    kind: i32,
}

/// Appends model, pre-tokenizer, tokens, scores and types.
///
/// # Errors
/// A tokenizer.model that is none, or not of byte pairs; a vocabulary with tokens for infilling; added tokens that are not texts with ids.
pub(super) fn add(metadata: &mut Metadata, inputs: &Inputs) -> Result<()> {
    if let Some(pre) = inputs.pre {
        return Err(Error::Request(format!(
            "--tokenizer-pre {pre}: this model has SentencePiece's {SENTENCE_PIECE_FILE}, which cuts no text before it \
             merges; leave the option out"
        )));
    }
    if inputs.vocab == INFILLING_VOCAB {
        return Err(Error::Unsupported {
            what: format!("{SENTENCE_PIECE_FILE}: the vocabulary of {INFILLING_VOCAB} tokens, which fills in the middle of code"),
            hint: "the metadata of its tokens for that is not written yet; convert it with llama.cpp's converter".into(),
        });
    }
    let rows = rows(inputs)?;
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.pre", "default");
    let scores: Vec<f32> = rows.iter().map(|row| row.score).collect();
    let types: Vec<i32> = rows.iter().map(|row| row.kind).collect();
    let texts: Vec<String> = rows.into_iter().map(|row| row.text).collect();
    metadata.set("tokenizer.ggml.tokens", texts);
    metadata.set("tokenizer.ggml.scores", scores);
    metadata.set("tokenizer.ggml.token_type", types);
    Ok(())
}

fn rows(inputs: &Inputs) -> Result<Vec<Row>> {
    let nothing = |id| Row { text: format!("[PAD{id}]"), score: SCORE_OF_NOTHING, kind: UNUSED };
    let mut rows: Vec<Row> = (0..inputs.vocab).map(nothing).collect();
    for (row, Piece { text, score, kind }) in rows.iter_mut().zip(sentence_piece::pieces(inputs.pieces)?) {
        let kind = match kind {
            PieceKind::Normal | PieceKind::UserDefined => NORMAL,
            PieceKind::Unknown => UNKNOWN,
            PieceKind::Control => CONTROL,
            PieceKind::Unused => UNUSED,
            PieceKind::Byte => BYTE,
        };
        *row = Row { text, score, kind };
    }
    for (text, id) in entries(ADDED_TOKENS_FILE, inputs.added)? {
        let id = id.as_u64().ok_or_else(|| invalid(ADDED_TOKENS_FILE, text, "a text with an id"))?;
        if let Some(row) = row_of(&mut rows, id) {
            *row = Row { text: text.clone(), score: SCORE_OF_ADDED, kind: USER_DEFINED };
        }
    }
    let decoder = inputs.config.and_then(|config| config.get("added_tokens_decoder"));
    for (id, token) in entries(TOKENIZER_CONFIG_FILE, decoder)? {
        let bad = || invalid(TOKENIZER_CONFIG_FILE, id, "an id with the content of an added token");
        let number = id.parse().map_err(|_| bad())?;
        let text = token.get("content").and_then(Value::as_str).ok_or_else(bad)?;
        let is_special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let Some(row) = row_of(&mut rows, number) else { continue };
        *row = if is_special || looks_special(text) {
            Row { text: text.to_owned(), score: SCORE_OF_ADDED, kind: CONTROL }
        } else {
            // SentencePiece's mark for a space.
            Row { text: text.replace('\u{2581}', " "), score: SCORE_OF_ADDED, kind: USER_DEFINED }
        };
    }
    Ok(rows)
}

/// Entries of an object that may be absent.
fn entries<'a>(
    file: &str,
    object: Option<&'a Value>,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>> {
    let entries = match object {
        None | Some(Value::Null) => None,
        Some(object) => Some(object.as_object().ok_or_else(|| invalid(file, "added tokens", "an object"))?),
    };
    Ok(entries.into_iter().flatten())
}

fn row_of(rows: &mut [Row], id: u64) -> Option<&mut Row> {
    rows.get_mut(usize::try_from(id).unwrap_or(usize::MAX))
}

fn invalid(file: &str, found: &str, expected: &str) -> Error {
    Error::checkpoint(file, format!("found {}, expected {expected}", crate::small::shown(found)))
}
