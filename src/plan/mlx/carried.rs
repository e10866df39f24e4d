//! Files that go along with the weights: tokenizer, chat template, generation settings, model card.
//!
//! mlx-lm loads the tokenizer with `transformers` and saves it again, which rewrites tokenizer.json
//! and tokenizer_config.json and moves a chat template into `chat_template.jinja`. We carry
//! the source's own files unchanged: they load to the same tokenizer. `*.py`, generation_config.json
//! and the model card are as mlx-lm's.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::Sidecar;

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

/// `README.md` of a conversion from a local directory.
const MODEL_CARD: &str =
    "---\nlanguage: en\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n";

/// The files, complete.
///
/// # Errors
/// When one cannot be read or is absurdly large.
pub(super) fn sidecars(source: &Checkpoint) -> Result<Vec<Sidecar>> {
    let mut sidecars = vec![Sidecar { name: "README.md".into(), bytes: MODEL_CARD.into() }];
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
