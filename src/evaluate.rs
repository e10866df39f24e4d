//! Measures of a model's quality on a text.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

mod perplexity;
mod windows;

pub use perplexity::{Perplexity, perplexity};
pub use windows::{Bos, Windows};

/// The tokenizer of a checkpoint.
///
/// # Errors
/// When there is none, or one of its files cannot be used; the file is named.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let source = checkpoint.source();
    let Some(json) = source.read_small(TOKENIZER_FILE)? else {
        let message = format!("not found in {}: text cannot be turned into tokens", source.location());
        return Err(Error::checkpoint(TOKENIZER_FILE, message));
    };
    let config = source.read_small(TOKENIZER_CONFIG_FILE)?;
    let special_tokens = source.read_small(SPECIAL_TOKENS_FILE)?;
    Tokenizer::new(&json, config.as_deref(), special_tokens.as_deref())
}
