//! Files that go along with the weights of a directory: tokenizer, chat template, generation settings, code, licence.
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
/// Beginnings of the names of files with terms that whoever hands the model on has to hand on too, in any case and with any
/// ending: `LICENSE`, `LICENSE-MODEL`, `License.txt`, `NOTICE`, `USE_POLICY.md`.
const TERMS: &[&str] = &["license", "licence", "notice", "copying", "use_policy"];

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
    let is_ours = NAMES.contains(&name) || ENDINGS.iter().any(|ending| name.ends_with(ending));
    is_top_level && (is_ours || has_terms(name))
}

/// Whether a file of this name has terms of use; weights and code never do.
fn has_terms(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    TERMS.iter().any(|term| {
        lower.strip_prefix(term).is_some_and(|rest| {
            let is_word = !rest.starts_with(|c: char| c.is_alphanumeric());
            is_word && !rest.ends_with(".safetensors") && !rest.ends_with(".json")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_go_along_and_weights_do_not() {
        for name in
            ["LICENSE", "LICENSE-MODEL", "License.txt", "LICENCE.md", "NOTICE", "USE_POLICY.md", "COPYING"]
        {
            assert!(is_carried(name), "{name}");
        }
        for name in
            ["licensed.bin", "notices.txt", "docs/LICENSE", "license.safetensors", "notice.json", "README.md"]
        {
            assert!(!is_carried(name), "{name}");
        }
    }
}
