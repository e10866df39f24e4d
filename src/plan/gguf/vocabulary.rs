//! `tokenizer.ggml.*`: tokens, their types, merges.
//!
//! Source: llama.cpp `conversion/base.py` (`_set_vocab_gpt2`, `get_vocab_base`,
//! `does_token_look_special`) and `gguf-py/gguf/vocab.py` (`SpecialVocab`). Odd, and kept:
//! a token that is added but not "normalized" is stored as what decoding its encoding gives.

use requant_formats::container::gguf::Metadata;

use crate::error::{Error, Result};
use crate::tokenizer::{Fingerprint, Merge, TOKENIZER_FILE, Tokenizer};

/// A byte-level vocabulary's token.
pub(super) const NORMAL: i32 = 1;
/// A token that must not come out of text.
pub(super) const CONTROL: i32 = 3;
/// An added token that is ordinary text.
pub(super) const USER_DEFINED: i32 = 4;
/// A row of the embedding without a token.
pub(super) const UNUSED: i32 = 5;

/// What is written beside the tokenizer itself.
pub(super) struct Inputs<'a> {
    /// Of the model.
    pub(super) architecture: &'a str,
    /// Rows of the token embedding.
    pub(super) vocab: usize,
    /// `tokenizer.ggml.pre`, if the user says it.
    pub(super) pre: Option<&'a str>,
}

/// Appends model, pre-tokenizer, tokens, types and merges.
///
/// # Errors
/// A tokenizer that is not byte-level BPE, one that llama.cpp has no name for (unless `pre` gives
/// one), more tokens than `vocab` rows.
pub(super) fn add(metadata: &mut Metadata, tokenizer: &Tokenizer, inputs: &Inputs) -> Result<()> {
    let &Inputs { architecture, vocab, pre } = inputs;
    let definition = tokenizer.definition();
    let is_byte_level = definition.decoder.to_string().contains("\"ByteLevel\"");
    if definition.model.kind != "BPE" || !is_byte_level {
        return Err(Error::Unsupported {
            what: format!("{TOKENIZER_FILE}: model {:?} of this kind", definition.model.kind),
            hint: format!("{architecture} GGUF files need a byte-level BPE tokenizer"),
        });
    }
    let pre = match pre {
        Some(pre) => pre.to_owned(),
        None => recognize(tokenizer)?.to_owned(),
    };
    let (tokens, types) = tokens(tokenizer, vocab)?;
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", pre);
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
    let merges: Vec<String> = definition.model.merges.iter().map(merge).collect();
    if !merges.is_empty() {
        metadata.set("tokenizer.ggml.merges", merges);
    }
    Ok(())
}

fn recognize(tokenizer: &Tokenizer) -> Result<&'static str> {
    let Fingerprint { sha256, pre } = Fingerprint::of(tokenizer)?;
    pre.ok_or_else(|| Error::Unsupported {
        what: format!("{TOKENIZER_FILE}: a tokenizer llama.cpp has no name for (fingerprint {sha256})"),
        hint: "if it cuts text as a known one does, name that with --tokenizer-pre NAME (deepseek-v3, for \
               instance)"
            .into(),
    })
}

/// Text and type of every row of the embedding.
fn tokens(tokenizer: &Tokenizer, vocab: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut texts: Vec<Option<String>> = vec![None; vocab];
    let mut vocabulary: Vec<(String, u32)> = tokenizer.vocabulary().into_iter().collect();
    // In order of ids, so that the same file gives the same message.
    vocabulary.sort_unstable_by_key(|&(_, id)| id);
    for (text, id) in vocabulary {
        let Some(row) = texts.get_mut(id as usize) else {
            let message = format!("token {text:?} has id {id}, but config.json's vocab_size is {vocab}");
            return Err(Error::checkpoint(TOKENIZER_FILE, message));
        };
        *row = Some(text);
    }
    let added = tokenizer.added_tokens();
    let is_decoded = |id: u32| added.get(&id).is_some_and(|entry| !entry.normalized);
    let texts_of = |texts: &[Option<String>]| -> Vec<String> {
        (0u32..).zip(texts).filter(|&(id, _)| is_decoded(id)).filter_map(|(_, text)| text.clone()).collect()
    };
    let mut decoded = tokenizer.round_trips(texts_of(&texts))?.into_iter();
    let mut tokens = Vec::with_capacity(vocab);
    let mut types = Vec::with_capacity(vocab);
    for (id, text) in (0u32..).zip(texts) {
        let (text, kind) = match (text, added.get(&id)) {
            (None, _) => (format!("[PAD{id}]"), UNUSED),
            (Some(text), None) => (text, NORMAL),
            (Some(text), Some(entry)) => {
                let text = if is_decoded(id) { decoded.next().unwrap_or(text) } else { text };
                if entry.special || looks_special(&text) {
                    (text, CONTROL)
                } else {
                    // SentencePiece's mark for a space.
                    (text.replace('\u{2581}', " "), USER_DEFINED)
                }
            }
        };
        tokens.push(text);
        types.push(kind);
    }
    Ok((tokens, types))
}

/// Tokens that some models forgot to mark as special.
pub(super) fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// One string for both spellings; a space inside a token is written as byte-level vocabularies do.
fn merge(merge: &Merge) -> String {
    match merge {
        Merge::Joined(text) => text.clone(),
        Merge::Pair(left, right) => {
            format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_have_one_space() {
        assert_eq!(merge(&Merge::Joined("a b".into())), "a b");
        assert_eq!(merge(&Merge::Pair(" a".into(), "b ".into())), "Ġa bĠ");
    }

    #[test]
    fn some_texts_look_special() {
        for (text, expected) in
            [("<pad>", true), ("<|x|>", true), ("<｜User｜>", true), ("<unused9>", true), ("<think>", false)]
        {
            assert_eq!(looks_special(text), expected, "{text}");
        }
    }
}
