//! What a source says of itself, as far as the card of a result repeats it.
//!
//! A checkpoint says it in the front matter of its README.md, a GGUF file in its `general.*` keys, which
//! llama.cpp's converter takes from the same place.

use requant_formats::container::gguf::{Metadata, Value as GgufValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CARD;
use crate::error::{Error, Result};
use crate::opened::Opened;
use crate::plan;

/// A model that a result is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What it is called: `DeepSeek-V3-0324`.
    pub name: String,
    /// Its id on the Hugging Face hub, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// The hub's name of its license: `mit`, `apache-2.0`, `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// With license `other`: what it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_name: Option<String>,
    /// Where its text is: an address, or a file beside the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_link: Option<String>,
    /// Languages that it speaks, as codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// What the hub lists it under: `text-generation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_tag: Option<String>,
}

impl ModelRecord {
    /// What `source` says; `base_model` is its id on the hub. The second value says why its model card could not be
    /// read, if it is damaged: all that follows is a card that says less.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(source: &Opened, base_model: Option<String>) -> Result<(Self, Option<String>)> {
        let files = source.catalogue().source();
        if let Some(gguf) = source.gguf() {
            let name = gguf.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            return Ok((Self { base_model, ..Self::of_gguf(name, gguf.metadata()) }, None));
        }
        let (card, damage) = match files.read_small(CARD)?.map(|bytes| plan::front_matter(&bytes)) {
            None => (Map::new(), None),
            Some(Ok(card)) => (card, None),
            Some(Err(error @ Error::Checkpoint { .. })) => (Map::new(), Some(error.to_string())),
            Some(Err(error)) => return Err(error),
        };
        Ok((Self { base_model, ..Self::of_card(files.model_name(), &card) }, damage))
    }

    fn of_card(name: String, card: &Map<String, Value>) -> Self {
        let list = |key: &str| -> Vec<String> {
            match card.get(key) {
                Some(Value::String(text)) => vec![text.clone()],
                Some(Value::Array(items)) => {
                    items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
                }
                _ => Vec::new(),
            }
        };
        let text = |key: &str| list(key).into_iter().find(|text| !text.is_empty());
        Self {
            name,
            base_model: None,
            license: text("license"),
            license_name: text("license_name"),
            license_link: text("license_link"),
            languages: list("language"),
            pipeline_tag: text("pipeline_tag"),
        }
    }

    fn of_gguf(name: String, metadata: &Metadata) -> Self {
        let text = |key: &str| {
            metadata.get(&format!("general.{key}")).and_then(GgufValue::as_str).map(str::to_owned)
        };
        let strings = metadata.get("general.languages").and_then(GgufValue::as_array);
        let languages = strings.and_then(|array| array.as_strings()).map(<[String]>::to_vec);
        Self {
            name: text("name").filter(|name| !name.trim().is_empty()).unwrap_or(name),
            base_model: None,
            license: text("license"),
            license_name: text("license.name"),
            license_link: text("license.link"),
            languages: languages.unwrap_or_default(),
            pipeline_tag: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_and_gguf_keys_say_the_same() {
        let card = serde_json::json!({"license": "other", "license_name": "deepseek", "license_link": "LICENSE-MODEL",
            "language": ["en", "no", 3], "pipeline_tag": "text-generation", "tags": ["x"]});
        let of_card = ModelRecord::of_card("M".into(), card.as_object().unwrap());
        let mut metadata = Metadata::new();
        metadata.set("general.license", "other");
        metadata.set("general.license.name", "deepseek");
        metadata.set("general.license.link", "LICENSE-MODEL");
        metadata.set("general.languages", vec!["en".to_owned(), "no".to_owned()]);
        let of_gguf = ModelRecord::of_gguf("M".into(), &metadata);
        assert_eq!(of_card, ModelRecord { pipeline_tag: Some("text-generation".into()), ..of_gguf });
        assert_eq!(of_card.languages, ["en", "no"]);
        metadata.set("general.name", "Other");
        assert_eq!(ModelRecord::of_gguf("M".into(), &metadata).name, "Other");
    }

    #[test]
    fn what_is_of_another_kind_is_not_said() {
        let card = serde_json::json!({"license": 1.5, "language": {"a": 1}, "pipeline_tag": null, "license_name": ""});
        let found = ModelRecord::of_card("M".into(), card.as_object().unwrap());
        assert_eq!(found, ModelRecord { name: "M".into(), ..ModelRecord::default() });
    }
}
