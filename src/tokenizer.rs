//! The tokenizer of a checkpoint: text to token ids as Hugging Face's own crate does it, and the
//! parts of `tokenizer.json` and `tokenizer_config.json` that other formats want to carry over.
//!
//! No I/O: whoever owns the files passes their bytes.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::error::{Error, Result};
use crate::small;

mod added;
mod definition;
mod fingerprint;
mod guarded;
mod limits;
mod pre_names;
pub mod sentence_piece;

pub use definition::{AddedEntry, Definition, Merge};
pub use fingerprint::Fingerprint;

/// File with the tokenizer itself.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// File with what surrounds it: special tokens, chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// File of older exports with the special tokens alone.
pub const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// How long a definition may take to load, and texts of its own to be cut: seconds in the worst case.
const PATIENCE: Duration = Duration::from_secs(120);

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    growth: Option<Arc<limits::Growth>>,
    definition: Definition,
    config: Option<Value>,
}

impl Tokenizer {
    /// Builds the tokenizer from the contents of [`TOKENIZER_FILE`] and, when they exist,
    /// [`TOKENIZER_CONFIG_FILE`] and [`SPECIAL_TOKENS_FILE`]. Tokens that only the latter two name
    /// are added to the vocabulary, as transformers does.
    ///
    /// # Errors
    /// Names the file that is not valid or asks for too much, and what Hugging Face's crate says about it.
    pub fn new(tokenizer: &[u8], config: Option<&[u8]>, special_tokens: Option<&[u8]>) -> Result<Self> {
        small::check_json(TOKENIZER_FILE, tokenizer)?;
        let text = std::str::from_utf8(tokenizer).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
        let definition: Definition =
            serde_json::from_str(text).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
        limits::check(&definition)?;
        let config = config.map(|bytes| object(TOKENIZER_CONFIG_FILE, bytes)).transpose()?;
        let special_tokens = special_tokens.map(|bytes| object(SPECIAL_TOKENS_FILE, bytes)).transpose()?;

        let load = || {
            let mut inner =
                tokenizers::Tokenizer::from_str(text).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
            inner.with_truncation(None).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
            inner.with_padding(None);
            if let Some(config) = &config {
                added::add_missing(&mut inner, config, special_tokens.as_ref())?;
            }
            Ok((inner, limits::Growth::of(&definition.normalizer)?))
        };
        let (inner, growth) = guarded::caught(TOKENIZER_FILE, load)?;
        Ok(Self { inner: Arc::new(inner), growth: growth.map(Arc::new), definition, config })
    }

    /// Whether tokens that have a meaning to the model only are found in text too; a new tokenizer finds them, as
    /// transformers' do.
    pub fn set_parses_special(&mut self, parses: bool) {
        Arc::make_mut(&mut self.inner).set_encode_special_tokens(!parses);
    }

    /// What [`Tokenizer::set_parses_special`] said.
    pub fn parses_special(&self) -> bool {
        !self.inner.get_encode_special_tokens()
    }

    /// What tokenizer.json says, in parts.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// tokenizer_config.json, when there is one.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// Token ids of `text`; with `special`, the post-processor of tokenizer.json adds its own.
    ///
    /// # Errors
    /// What Hugging Face's crate says; for a byte-level vocabulary any text can be encoded. Also when the normalizer
    /// makes a text many times as long.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        guarded::caught(TOKENIZER_FILE, || encode(&self.inner, self.growth.as_deref(), text, special))
    }

    /// As [`Tokenizer::encode`] for a short text, which must not take long.
    ///
    /// # Errors
    /// As there, and when it takes minutes.
    pub(crate) fn encode_short(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let (inner, growth, text) = (Arc::clone(&self.inner), self.growth.clone(), text.to_owned());
        guarded::within(TOKENIZER_FILE, PATIENCE, move || encode(&inner, growth.as_deref(), &text, special))
    }

    /// What short texts become when they are encoded, without special tokens, and decoded again.
    ///
    /// # Errors
    /// When the text cannot be tokenized, or as [`Tokenizer::decode`].
    pub(crate) fn round_trips(&self, texts: Vec<String>) -> Result<Vec<String>> {
        let (inner, growth) = (Arc::clone(&self.inner), self.growth.clone());
        guarded::within(TOKENIZER_FILE, PATIENCE, move || {
            let trip = |text: String| decode(&inner, &encode(&inner, growth.as_deref(), &text, false)?);
            texts.into_iter().map(trip).collect()
        })
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// What Hugging Face's crate says.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded::caught(TOKENIZER_FILE, || decode(&self.inner, ids))
    }

    /// Every token with its id, added ones included.
    pub fn vocabulary(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    /// The added tokens by id.
    pub fn added_tokens(&self) -> HashMap<u32, AddedToken> {
        self.inner.get_added_tokens_decoder().into_iter().collect()
    }

    /// Id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

fn encode(
    inner: &tokenizers::Tokenizer,
    growth: Option<&limits::Growth>,
    text: &str,
    special: bool,
) -> Result<Vec<u32>> {
    growth.map_or(Ok(()), |growth| growth.check(text))?;
    let encoding = inner.encode_fast(text, special).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
    Ok(encoding.get_ids().to_vec())
}

fn decode(inner: &tokenizers::Tokenizer, ids: &[u32]) -> Result<String> {
    inner.decode(ids, false).map_err(|error| invalid(TOKENIZER_FILE, &error))
}

/// Text of a special token under `key`: a string, or an object with `content`.
pub(crate) fn special_token<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    let entry = config.get(key)?;
    entry.as_str().or_else(|| entry.get("content").and_then(Value::as_str))
}

fn object(file: &str, bytes: &[u8]) -> Result<Value> {
    let value: Value = small::json(file, bytes)?;
    if value.is_object() { Ok(value) } else { Err(Error::checkpoint(file, "is not a JSON object")) }
}

fn invalid(file: &str, error: &dyn std::fmt::Display) -> Error {
    // It may repeat a megabyte of the file.
    Error::checkpoint(file, format!("cannot be used: {}", small::brief(&error.to_string())))
}

#[cfg(test)]
mod tests;
