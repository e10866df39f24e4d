//! Files that go along with the weights of a directory: tokenizer, chat template, generation settings, code.
//!
//! They are the source's own, unchanged.

use super::Sidecar;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Files carried when they are there.
const NAMES: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// Endings of files carried from the top of the checkpoint: its code, and token tables.
const ENDINGS: &[&str] = &[".py", ".tiktoken"];
/// Far above any tokenizer.
const MAX_LEN_BYTES: u64 = 256 << 20;

/// The files, complete.
///
/// # Errors
/// When one cannot be read or is absurdly large.
pub(super) fn sidecars(source: &Checkpoint) -> Result<Vec<Sidecar>> {
    let mut sidecars = Vec::new();
    for file in source.source().files().iter().filter(|file| is_carried(&file.name)) {
        if file.len_bytes > MAX_LEN_BYTES {
            let message = format!("found {} bytes, expected at most {MAX_LEN_BYTES}", file.len_bytes);
            return Err(Error::checkpoint(&file.name, message));
        }
        if let Some(bytes) = source.source().read_small(&file.name)? {
            sidecars.push(Sidecar { name: file.name.clone(), bytes });
        }
    }
    Ok(sidecars)
}

fn is_carried(name: &str) -> bool {
    let is_top_level = !name.contains(['/', '\\']);
    is_top_level && (NAMES.contains(&name) || ENDINGS.iter().any(|ending| name.ends_with(ending)))
}
