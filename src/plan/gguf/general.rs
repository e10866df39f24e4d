//! The `general.*` keys: what the model is called, where it comes from, how to sample from it.
//!
//! The model card speaks first, then `_name_or_path` of config.json, then the directory's name.
//! Source: llama.cpp `gguf-py/gguf/metadata.py` (`Metadata.load`, `apply_metadata_heuristic`,
//! `set_gguf_meta_model`).

use requant_formats::container::gguf::{Metadata, Value as GgufValue};
use serde_json::{Map, Value};

use super::model_card::MODEL_CARD;
use super::model_id::{self, ModelId};
use super::origins;
use super::size_label::Counts;
use crate::error::{Error, Result};
use crate::small;

/// File with the recommended sampling parameters.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// What the keys are worked out from.
pub(super) struct Inputs<'a> {
    /// Front matter of the model card.
    pub(super) card: &'a Map<String, Value>,
    /// config.json.
    pub(super) config: &'a Value,
    /// generation_config.json; empty without one.
    pub(super) generation: &'a Value,
    /// Last component of the checkpoint's path.
    pub(super) directory: &'a str,
    /// Weights of the result.
    pub(super) counts: Counts,
}

/// Key in GGUF, keys of generation_config.json (the first that is there counts), whether GGUF wants
/// a float.
const SAMPLING: &[(&str, &[&str], bool)] = &[
    ("top_k", &["top_k"], false),
    ("top_p", &["top_p"], true),
    ("min_p", &["min_p"], true),
    ("xtc_probability", &["xtc_probability"], true),
    ("xtc_threshold", &["xtc_threshold"], true),
    ("temp", &["temperature"], true),
    ("penalty_last_n", &["penalty_last_n"], false),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], true),
    ("mirostat", &["mirostat"], false),
    ("mirostat_tau", &["mirostat_tau"], true),
    ("mirostat_eta", &["mirostat_eta"], true),
];

/// Appends the keys to `metadata`.
///
/// # Errors
/// Names the file and key whose value has a type that GGUF's key does not take.
pub(super) fn add(metadata: &mut Metadata, inputs: &Inputs) -> Result<()> {
    add_sampling(metadata, inputs.generation)?;
    let card = Card(inputs.card);
    let ids = identities(inputs);
    let own = |pick: fn(&ModelId) -> Option<String>| ids.iter().find_map(pick);

    let name = card.text(&["name", "model_name"])?;
    let name = name.or_else(|| ids.first().map(|id| model_id::title(&id.name)));
    put(metadata, "general.name", name);
    put(metadata, "general.author", card.text(&["author", "model_author", "model_creator"])?);
    let version = card.text(&["version", "model_version"])?;
    put(metadata, "general.version", version.or_else(|| own(|id| id.version.clone())));
    let organization = card.text(&["organization", "model_organization"])?;
    let from_id = || own(|id| id.organization.as_deref().map(model_id::title));
    put(metadata, "general.organization", organization.or_else(from_id));
    let fine_tune = card.text(&["finetune", "model_finetune"])?;
    put(metadata, "general.finetune", fine_tune.or_else(|| own(|id| id.fine_tune.clone())));
    let base_name = card.text(&["basename", "model_basename", "model_type"])?;
    put(metadata, "general.basename", base_name.or_else(|| own(|id| id.base_name.clone())));
    put(metadata, "general.description", card.text(&["description", "model_description"])?);
    let size = card.text(&["size_label", "model_size_label"])?;
    let size = size.or_else(|| own(|id| id.size_label.clone()));
    put(metadata, "general.size_label", size.or_else(|| Some(inputs.counts.label())));

    put(metadata, "general.license", card.joined("license")?);
    put(metadata, "general.license.name", card.text(&["license_name"])?);
    put(metadata, "general.license.link", card.text(&["license_link"])?);
    put(metadata, "general.source.url", card.text(&["url", "model_url"])?);
    put(metadata, "general.source.doi", card.text(&["doi", "model_doi"])?);
    put(metadata, "general.source.uuid", card.text(&["uuid", "model_uuid"])?);
    put(metadata, "general.source.repo_url", card.text(&["repo_url", "model_repo_url"])?);

    origins::add(metadata, inputs.card, inputs.counts.total)?;
    put_list(metadata, "general.tags", card.list(&["tags", "pipeline_tag"])?);
    put_list(metadata, "general.languages", card.list(&["languages", "language"])?);
    Ok(())
}

/// What the names say, the one with precedence first.
fn identities(inputs: &Inputs) -> Vec<ModelId> {
    let hub = inputs.config.get("_name_or_path").and_then(Value::as_str);
    // With more slashes it is a path on somebody's computer.
    let hub = hub.filter(|path| path.matches('/').count() <= 1);
    let names = hub.into_iter().chain(std::iter::once(inputs.directory));
    names.map(|name| model_id::parse(name, inputs.counts.total)).collect()
}

/// GGUF writers leave out empty strings.
pub(super) fn put(metadata: &mut Metadata, key: &str, value: Option<String>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        metadata.set(key, value);
    }
}

fn put_list(metadata: &mut Metadata, key: &str, values: Vec<String>) {
    if !values.is_empty() {
        metadata.set(key, values);
    }
}

fn add_sampling(metadata: &mut Metadata, generation: &Value) -> Result<()> {
    let wrong = |key: &str, found: &Value, expected: &str| {
        let found = found.to_string();
        Error::checkpoint(
            GENERATION_CONFIG,
            format!("key {key}: found {}, expected {expected}", small::brief(&found)),
        )
    };
    if let Some(sequence) = generation.get("sequence").filter(|value| !value.is_null()) {
        let text = sequence.as_str().ok_or_else(|| wrong("sequence", sequence, "a string"))?;
        put(metadata, "general.sampling.sequence", Some(text.to_owned()));
    }
    for &(name, keys, is_float) in SAMPLING {
        let found = keys.iter().find_map(|key| Some((*key, generation.get(key)?)));
        let Some((key, value)) = found.filter(|(_, value)| !value.is_null()) else { continue };
        let value: GgufValue = if is_float {
            let number = value.as_f64().ok_or_else(|| wrong(key, value, "a number"))?;
            (number as f32).into()
        } else {
            let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
            number.ok_or_else(|| wrong(key, value, "an integer"))?.into()
        };
        metadata.set(format!("general.sampling.{name}"), value);
    }
    Ok(())
}

/// Typed access to the model card.
struct Card<'a>(&'a Map<String, Value>);

impl Card<'_> {
    /// The first of `keys` that is there and not null.
    fn text(&self, keys: &[&str]) -> Result<Option<String>> {
        let found =
            keys.iter().find_map(|key| Some((*key, self.0.get(*key).filter(|value| !value.is_null())?)));
        let Some((key, value)) = found else { return Ok(None) };
        value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| not_text(key, value))
    }

    /// A string, or strings joined by commas.
    fn joined(&self, key: &str) -> Result<Option<String>> {
        match self.0.get(key) {
            Some(Value::Array(_)) => Ok(Some(self.list(&[key])?.join(","))),
            _ => self.text(&[key]),
        }
    }

    /// The strings of all `keys`, one after the other.
    fn list(&self, keys: &[&str]) -> Result<Vec<String>> {
        let mut list = Vec::new();
        for key in keys {
            match self.0.get(*key) {
                Some(Value::String(text)) => list.push(text.clone()),
                Some(Value::Array(items)) => {
                    for item in items {
                        list.push(item.as_str().ok_or_else(|| not_text(key, item))?.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(list)
    }
}

/// The error for a value of the model card that is no text.
pub(super) fn not_text(key: &str, found: &Value) -> Error {
    let found = found.to_string();
    Error::checkpoint(
        MODEL_CARD,
        format!("key {key}: found {}, expected text (put it in quotes)", small::brief(&found)),
    )
}
