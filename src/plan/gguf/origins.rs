//! `general.base_model.*` and `general.dataset.*`: what the model card says it was made from.
//!
//! Source: llama.cpp `gguf-py/gguf/metadata.py` (`apply_metadata_heuristic`,
//! `set_gguf_meta_model`).

use requant_formats::container::gguf::Metadata;
use serde_json::{Map, Value};

use super::general::{not_text, put};
use super::model_id;
use crate::error::Result;

/// Fields of an entry, in the order in which they are written.
const FIELDS: [&str; 9] =
    ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];
/// GGUF's prefix, the model card's keys (the first that is there counts).
const KINDS: [(&str, [&str; 3]); 2] = [
    ("base_model", ["base_model", "base_models", "base_model_sources"]),
    ("dataset", ["datasets", "dataset", "dataset_sources"]),
];
const HUB: &str = "https://huggingface.co/";

/// Appends both groups.
///
/// # Errors
/// A field of an entry that is no text.
pub(super) fn add(metadata: &mut Metadata, card: &Map<String, Value>, total_weights: u64) -> Result<()> {
    for (kind, keys) in KINDS {
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, card.get(*key)?))) else { continue };
        let items = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(items) => items.as_slice(),
            _ => &[],
        };
        metadata.set(format!("general.{kind}.count"), items.len() as u32);
        for (number, item) in items.iter().enumerate() {
            let entry = match item {
                Value::String(id) => from_id(id, total_weights),
                Value::Object(entry) => entry.clone(),
                _ => Map::new(),
            };
            for field in FIELDS {
                let Some(value) = entry.get(field) else { continue };
                let text = value.as_str().ok_or_else(|| not_text(key, value))?;
                put(metadata, &format!("general.{kind}.{number}.{field}"), Some(text.to_owned()));
            }
        }
    }
    Ok(())
}

/// What an address or a hub id says.
fn from_id(id: &str, total_weights: u64) -> Map<String, Value> {
    let mut entry = Map::new();
    let is_address = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let hub_id = if is_address {
        entry.insert("repo_url".into(), id.into());
        // Exactly an organization and a name behind the hub's address.
        let path = id.replacen("http://", "https://", 1);
        path.strip_prefix(HUB)
            .filter(|path| path.split('/').count() == 2 && path.split('/').all(|part| !part.is_empty()))
            .map(str::to_owned)
    } else {
        Some(id.to_owned())
    };
    let Some(hub_id) = hub_id else { return entry };
    let parsed = model_id::parse(&hub_id, total_weights);
    if !is_address && let Some(organization) = &parsed.organization {
        entry.insert("repo_url".into(), format!("{HUB}{organization}/{}", parsed.name).into());
    }
    entry.insert("name".into(), model_id::title(&parsed.name).into());
    if let Some(organization) = &parsed.organization {
        entry.insert("organization".into(), model_id::title(organization).into());
    }
    if let Some(version) = parsed.version {
        entry.insert("version".into(), version.into());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_addresses_and_objects() {
        let card = serde_json::json!({
            "base_model": ["deepseek-ai/DeepSeek-V3", "https://huggingface.co/a/b-2", "https://example.org/x",
                           {"name": "N", "url": "u"}],
            "dataset": "plain"});
        let mut metadata = Metadata::new();
        add(&mut metadata, card.as_object().unwrap(), 0).unwrap();
        let found: Vec<(String, String)> = metadata
            .iter()
            .map(|(key, value)| {
                let text = value.as_str().map(str::to_owned);
                (key.replace("general.", ""), text.unwrap_or_else(|| format!("{:?}", value.as_u64())))
            })
            .collect();
        let expected = [
            ("base_model.count", "Some(4)"),
            ("base_model.0.name", "DeepSeek V3"),
            ("base_model.0.version", "V3"),
            ("base_model.0.organization", "Deepseek Ai"),
            ("base_model.0.repo_url", "https://huggingface.co/deepseek-ai/DeepSeek-V3"),
            ("base_model.1.name", "B 2"),
            ("base_model.1.version", "2"),
            ("base_model.1.organization", "A"),
            ("base_model.1.repo_url", "https://huggingface.co/a/b-2"),
            ("base_model.2.repo_url", "https://example.org/x"),
            ("base_model.3.name", "N"),
            ("base_model.3.url", "u"),
            ("dataset.count", "Some(1)"),
            ("dataset.0.name", "Plain"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(found, expected);
    }
}
