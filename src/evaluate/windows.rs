//! Cuts a text into windows as llama-perplexity does, or as Hugging Face's sliding window does.
//!
//! llama-perplexity: the whole text is tokenized once and cut every `context` tokens; what is left over is
//! dropped. When the tokenizer begins a sequence with BOS, the text does, and the first token of every
//! window is replaced by BOS. The second half of every window is scored. One newline at the end of the
//! text is dropped, as llama.cpp does with files.
//!
//! Sliding window, with a stride: windows begin every `stride` tokens, up to the one that reaches the end of
//! the text, which may be shorter. Each scores the tokens that no window before it has seen, the first one
//! all that have a token before them; so every token is scored once. BOS stands at the beginning of the
//! text only. Source: transformers' documentation, "Perplexity of fixed-length models"; the mean here is
//! over scored tokens, where that page takes one less in every window.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tokenizer::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, special_token};

/// Shortest context with something to score.
const MIN_CONTEXT: usize = 4;

/// Whether windows begin with the beginning-of-sequence token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bos {
    /// When the post-processor of tokenizer.json adds it.
    #[default]
    Auto,
    /// Whatever the tokenizer does.
    Always,
    /// Whatever the tokenizer does.
    Never,
}

impl FromStr for Bos {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err("expected auto, always or never".into()),
        }
    }
}

/// The tokens of a whole text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The token that the text, and every window, begins with, if any.
    pub bos: Option<u32>,
    /// All ids, BOS included.
    pub ids: Vec<u32>,
}

impl Tokens {
    /// Tokenizes `text`.
    ///
    /// # Errors
    /// When BOS is wanted and the tokenizer has none.
    pub fn encode(tokenizer: &Tokenizer, text: &str, bos: Bos) -> Result<Self> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let bos = match bos {
            Bos::Never => None,
            Bos::Always => Some(named_bos(tokenizer)?),
            Bos::Auto => added_bos(tokenizer)?,
        };
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode(text, false)?);
        Ok(Self { bos, ids })
    }

    /// Reads what [`Tokens::to_json`] wrote, or a plain JSON list of ids. `file` is for messages.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_json(json: &[u8], file: &str) -> Result<Self> {
        let list = serde_json::from_slice(json).map(|ids| Self { bos: None, ids });
        list.or_else(|_| serde_json::from_slice(json)).map_err(|error| {
            let message = format!("neither a JSON list of token ids nor {{\"bos\", \"ids\"}}: {error}");
            Error::checkpoint(file, message)
        })
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        serde_json::json!({ "bos": self.bos, "ids": self.ids }).to_string()
    }
}

/// Tokens of windows, one after the other, and which of them are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// `[windows, context]`; the last window may be shorter.
    pub tokens: Vec<u32>,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens of the whole text.
    pub text_tokens: usize,
    /// Positions in `tokens` whose next token is scored, ascending.
    scored: Vec<usize>,
}

impl Windows {
    /// Tokenizes `text` and cuts it as llama-perplexity does.
    ///
    /// # Errors
    /// As [`Tokens::encode`] and [`Windows::cut`].
    pub fn new(tokenizer: &Tokenizer, text: &str, context: usize, bos: Bos) -> Result<Self> {
        check_context(context)?;
        Self::cut(&Tokens::encode(tokenizer, text, bos)?, context, None)
    }

    /// Cuts the tokens of a text, with a stride as a sliding window.
    ///
    /// # Errors
    /// When the text is shorter than one window, the context is too short to score anything, or the stride
    /// would leave tokens out.
    pub fn cut(text: &Tokens, context: usize, stride: Option<usize>) -> Result<Self> {
        check_context(context)?;
        let text_tokens = text.ids.len();
        if text_tokens < context {
            let message = format!(
                "the text has {text_tokens} tokens, fewer than one window of {context}; \
                 give a longer text or a shorter context"
            );
            return Err(Error::Request(message));
        }
        if let Some(stride) = stride {
            return Self::slide(&text.ids, context, stride);
        }
        let mut tokens = text.ids[..text_tokens / context * context].to_vec();
        if let Some(bos) = text.bos {
            tokens.iter_mut().step_by(context).for_each(|first| *first = bos);
        }
        Ok(Self { text_tokens, ..Self::from_tokens(tokens, context) })
    }

    /// Whole windows, the second half of each scored.
    pub fn from_tokens(tokens: Vec<u32>, context: usize) -> Self {
        let scored = (0..tokens.len() / context)
            .flat_map(|window| window * context + context / 2..(window + 1) * context - 1)
            .collect();
        Self { context, text_tokens: tokens.len(), tokens, scored }
    }

    /// The windows of another text after these.
    pub fn append(&mut self, other: Self) {
        let at = self.tokens.len();
        self.tokens.extend(other.tokens);
        self.text_tokens += other.text_tokens;
        self.scored.extend(other.scored.into_iter().map(|token| at + token));
    }

    /// Keeps only so many windows from the first on.
    pub fn truncate(&mut self, windows: usize) {
        self.tokens.truncate(windows * self.context);
        let len = self.tokens.len();
        self.scored.retain(|&token| token < len);
    }

    /// The tokens of so many windows at most, evenly drawn; of whole windows alone.
    pub fn drawn(&self, most: usize) -> Vec<u32> {
        let count = self.tokens.len() / self.context;
        let drawn = most.min(count);
        (0..drawn)
            .map(|number| (2 * number + 1) * count / (2 * drawn))
            .flat_map(|window| &self.tokens[window * self.context..(window + 1) * self.context])
            .copied()
            .collect()
    }

    fn slide(ids: &[u32], context: usize, stride: usize) -> Result<Self> {
        if stride == 0 || stride > context {
            let message = format!("a stride of {stride} in windows of {context}: expected 1 to {context}");
            return Err(Error::Request(message));
        }
        let mut windows = Self { tokens: Vec::new(), context, text_tokens: ids.len(), scored: Vec::new() };
        let (mut begin, mut seen) = (0, 1);
        loop {
            let end = (begin + context).min(ids.len());
            let at = windows.tokens.len();
            windows.tokens.extend(&ids[begin..end]);
            // The token before each that is new; that of a window's first token is in the window before.
            let first = seen.max(begin + 1);
            windows.scored.extend((first..end).map(|token| at + token - 1 - begin));
            seen = end;
            if end == ids.len() {
                return Ok(windows);
            }
            begin += stride;
        }
    }

    /// Positions in `tokens` whose next token is scored, ascending.
    pub fn scored(&self) -> &[usize] {
        &self.scored
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len().div_ceil(self.context)
    }

    /// Whether there is no window. There always is one.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

fn check_context(context: usize) -> Result<()> {
    if context < MIN_CONTEXT {
        let message = format!("a context of {context} tokens is too short; use at least {MIN_CONTEXT}");
        return Err(Error::Request(message));
    }
    Ok(())
}

/// The token that the post-processor puts before every text.
fn added_bos(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    match tokenizer.encode("", true)?.as_slice() {
        [] => Ok(None),
        &[bos] => Ok(Some(bos)),
        many => Err(Error::Unsupported {
            what: format!("{TOKENIZER_FILE}: a post-processor that adds {} tokens to a text", many.len()),
            hint: "perplexity is defined with one token before a text, or none; choose with --bos".into(),
        }),
    }
}

/// The token that tokenizer_config.json names.
fn named_bos(tokenizer: &Tokenizer) -> Result<u32> {
    let name = tokenizer.config().and_then(|config| special_token(config, "bos_token"));
    name.and_then(|name| tokenizer.token_id(name))
        .ok_or_else(|| Error::checkpoint(TOKENIZER_CONFIG_FILE, "names no bos_token that the vocabulary has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sliding_window_scores_every_token_once_with_the_most_context() {
        let text = Tokens { bos: None, ids: (100..111).collect() };
        let windows = Windows::cut(&text, 4, Some(3)).unwrap();
        assert_eq!(windows.tokens, [100, 101, 102, 103, 103, 104, 105, 106, 106, 107, 108, 109, 109, 110]);
        let targets: Vec<u32> = windows.scored().iter().map(|&token| windows.tokens[token + 1]).collect();
        assert_eq!(targets, (101..111).collect::<Vec<_>>());
        assert_eq!(windows.len(), 4);

        let windows = Windows::cut(&text, 5, Some(2)).unwrap();
        let targets: Vec<u32> = windows.scored().iter().map(|&token| windows.tokens[token + 1]).collect();
        assert_eq!(targets, (101..111).collect::<Vec<_>>());
        for stride in [0, 6] {
            assert!(Windows::cut(&text, 5, Some(stride)).is_err());
        }
    }

    #[test]
    fn ids_survive_a_file() {
        let tokens = Tokens { bos: Some(0), ids: vec![0, 7, 9] };
        assert_eq!(Tokens::from_json(tokens.to_json().as_bytes(), "f").unwrap(), tokens);
        assert_eq!(Tokens::from_json(b"[7, 9]", "f").unwrap(), Tokens { bos: None, ids: vec![7, 9] });
        assert!(Tokens::from_json(b"{\"ids\": [-1]}", "f").unwrap_err().to_string().contains("f:"));
    }
}
