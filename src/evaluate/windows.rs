//! Cuts a text into windows as llama-perplexity does.
//!
//! The whole text is tokenized once and cut every `context` tokens; what is left over is dropped. When the
//! tokenizer begins a sequence with BOS, the text does, and the first token of every window is replaced
//! by BOS. One newline at the end of the text is dropped, as llama.cpp does with files.

use std::str::FromStr;

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

/// Tokens of whole windows, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// `[windows, context]`.
    pub tokens: Vec<u32>,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens of the whole text.
    pub text_tokens: usize,
}

impl Windows {
    /// Tokenizes and cuts `text`.
    ///
    /// # Errors
    /// When the text is shorter than one window, the context is too short to score anything, or BOS is wanted
    /// and the tokenizer has none.
    pub fn new(tokenizer: &Tokenizer, text: &str, context: usize, bos: Bos) -> Result<Self> {
        if context < MIN_CONTEXT {
            let message = format!("a context of {context} tokens is too short; use at least {MIN_CONTEXT}");
            return Err(Error::Request(message));
        }
        let text = text.strip_suffix('\n').unwrap_or(text);
        let bos = match bos {
            Bos::Never => None,
            Bos::Always => Some(named_bos(tokenizer)?),
            Bos::Auto => added_bos(tokenizer)?,
        };
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        tokens.extend(tokenizer.encode(text, false)?);
        let text_tokens = tokens.len();
        if text_tokens < context {
            let message = format!(
                "the text has {text_tokens} tokens, fewer than one window of {context}; \
                 give a longer text or a shorter context"
            );
            return Err(Error::Request(message));
        }
        tokens.truncate(text_tokens / context * context);
        if let Some(bos) = bos {
            tokens.iter_mut().step_by(context).for_each(|first| *first = bos);
        }
        Ok(Self { tokens, context, text_tokens })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// Whether there is no window. There always is one.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
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
