//! tokenizer.json as data: the parts that other formats copy.
//!
//! Source: the serialization of Hugging Face's `tokenizers` crate.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// tokenizer.json without its vocabulary (which [`super::Tokenizer::vocabulary`] has).
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Definition {
    /// The model.
    pub model: Model,
    /// Tokens outside the model's vocabulary, or with a role of their own.
    #[serde(default)]
    pub added_tokens: Vec<AddedEntry>,
    /// Text normalizer, as it is.
    #[serde(default)]
    pub normalizer: Value,
    /// What cuts text before the model sees it, as it is.
    #[serde(default)]
    pub pre_tokenizer: Value,
    /// What adds special tokens, as it is.
    #[serde(default)]
    pub post_processor: Value,
    /// What joins tokens, as it is.
    #[serde(default)]
    pub decoder: Value,
}

/// The model of tokenizer.json.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Model {
    /// `BPE`, `Unigram`, `WordPiece`, ...; missing in very old files.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// BPE merges in rank order.
    #[serde(default)]
    pub merges: Vec<Merge>,
    /// What tokens begin with that go on with a word.
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
    /// Size of the vocabulary.
    #[serde(default)]
    pub vocab: VocabularySize,
}

/// How large a vocabulary is, without the tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VocabularySize {
    /// Tokens.
    pub len: usize,
    /// Length of the longest.
    pub longest_bytes: usize,
}

impl VocabularySize {
    fn add(&mut self, token: &str) {
        self.len += 1;
        self.longest_bytes = self.longest_bytes.max(token.len());
    }
}

impl<'de> Deserialize<'de> for VocabularySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = VocabularySize;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a vocabulary: ids by token, or a list of tokens with their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabularySize, A::Error> {
                let mut size = VocabularySize::default();
                while let Some(token) = map.next_key::<Cow<'de, str>>()? {
                    size.add(&token);
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(size)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<VocabularySize, A::Error> {
                let mut size = VocabularySize::default();
                while let Some((token, _)) = list.next_element::<(Cow<'de, str>, IgnoredAny)>()? {
                    size.add(&token);
                }
                Ok(size)
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// A merge of two tokens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(untagged)]
pub enum Merge {
    /// The older spelling: both with one space between.
    Joined(String),
    /// The newer spelling, which allows tokens with spaces.
    Pair(String, String),
}

impl Merge {
    /// The two tokens.
    pub fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Self::Joined(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Self::Pair(left, right) => Some((left, right)),
        }
    }
}

/// An entry of `added_tokens`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct AddedEntry {
    /// Token id.
    pub id: u32,
    /// Text.
    pub content: String,
}
