//! tokenizer.json as data: the parts that other formats copy.
//!
//! Source: the serialization of Hugging Face's `tokenizers` crate.

use serde::Deserialize;
use serde_json::Value;

/// tokenizer.json without its vocabulary (which [`super::Tokenizer::vocabulary`] has).
#[derive(Debug, Clone, Deserialize)]
pub struct Definition {
    /// The model.
    pub model: Model,
    /// Tokens outside the model's vocabulary, or with a role of their own.
    #[serde(default)]
    pub added_tokens: Vec<AddedEntry>,
    /// Text normalizer, as it is.
    #[serde(default)]
    pub normalizer: Value,
    /// What adds special tokens, as it is.
    #[serde(default)]
    pub post_processor: Value,
    /// What joins tokens, as it is.
    #[serde(default)]
    pub decoder: Value,
}

/// The model of tokenizer.json.
#[derive(Debug, Clone, Deserialize)]
pub struct Model {
    /// `BPE`, `Unigram`, `WordPiece`, ...; missing in very old files.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// BPE merges in rank order.
    #[serde(default)]
    pub merges: Vec<Merge>,
}

/// A merge of two tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Merge {
    /// The older spelling: both with one space between.
    Joined(String),
    /// The newer spelling, which allows tokens with spaces.
    Pair(String, String),
}

/// An entry of `added_tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AddedEntry {
    /// Token id.
    pub id: u32,
    /// Text.
    pub content: String,
}
