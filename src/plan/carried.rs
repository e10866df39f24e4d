//! Files that go along with the weights of a directory: tokenizer, chat template, generation settings, code.
//!
//! They are the source's own, unchanged.

use super::Sidecar;
use crate::checkpoint::Checkpoint;
use crate::error::Result;

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
/// The files, complete.
///
/// # Errors
/// When one cannot be read or is longer than such files are.
pub(super) fn sidecars(source: &Checkpoint) -> Result<Vec<Sidecar>> {
    for name in NAMES.iter().filter(|name| source.source().find(name).is_none()) {
        // Nothing, unless something else than a file is called so.
        source.source().read_small(name)?;
    }
    let mut sidecars = Vec::new();
    for file in source.source().files().iter().filter(|file| is_carried(&file.name)) {
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
