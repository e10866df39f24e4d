//! `tokenizer.chat_template`: one template, or a default and others with a name.
//!
//! tokenizer_config.json wins over chat_template.jinja, which wins over chat_template.json.
//! Source: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`) and `gguf_writer.py`
//! (`add_chat_template`). The list of names is in the order of a Python set there, which changes
//! from run to run when there are two or more; here it is the order of the file.
//! A directory `additional_chat_templates` is not looked into.

use requant_formats::container::gguf::Metadata;
use serde_json::Value;

use super::general::put;
use crate::error::{Error, Result};
use crate::small;

/// A template in a file of its own.
pub(super) const JINJA_FILE: &str = "chat_template.jinja";
/// An older file with the key `chat_template`.
pub(super) const JSON_FILE: &str = "chat_template.json";

const KEY: &str = "tokenizer.chat_template";

/// Finds the template: a string or a list of objects with `name` and `template`.
///
/// # Errors
/// A template file that is not UTF-8 or not JSON.
pub(super) fn find(config: Option<&Value>, jinja: Option<&[u8]>, json: Option<&[u8]>) -> Result<Value> {
    let Some(config) = config else { return Ok(Value::Null) };
    if let Some(own) = config.get("chat_template") {
        return Ok(own.clone());
    }
    if let Some(bytes) = jinja {
        let text =
            std::str::from_utf8(bytes).map_err(|error| Error::checkpoint(JINJA_FILE, error.to_string()))?;
        // Python's text files have \n for every kind of line end.
        return Ok(text.replace("\r\n", "\n").replace('\r', "\n").into());
    }
    let Some(bytes) = json else { return Ok(Value::Null) };
    let mut value: Value = small::json(JSON_FILE, bytes)?;
    Ok(value.get_mut("chat_template").map_or(Value::Null, Value::take))
}

/// Appends the template to `metadata`.
pub(super) fn add(metadata: &mut Metadata, template: &Value) {
    if let Some(text) = template.as_str() {
        put(metadata, KEY, Some(text.to_owned()));
    }
    let Some(choices) = template.as_array() else { return };
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for choice in choices {
        let field = |key: &str| choice.get(key).and_then(Value::as_str);
        let Some(text) = field("template") else { continue };
        let keep = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = field("name").unwrap_or_default().chars().map(keep).collect();
        match name.as_str() {
            "" => {}
            "default" => default = Some(text.to_owned()),
            _ => {
                put(metadata, &format!("{KEY}.{name}"), Some(text.to_owned()));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    if !names.is_empty() {
        metadata.set("tokenizer.chat_templates", names);
    }
    put(metadata, KEY, default);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_wins_over_files() {
        let config = serde_json::json!({"chat_template": "a"});
        let other = serde_json::json!({});
        let (jinja, json): (&[u8], &[u8]) = (b"b\r\nc", br#"{"chat_template":"d"}"#);
        assert_eq!(find(Some(&config), Some(jinja), Some(json)).unwrap(), "a");
        assert_eq!(find(Some(&other), Some(jinja), Some(json)).unwrap(), "b\nc");
        assert_eq!(find(Some(&other), None, Some(json)).unwrap(), "d");
        assert_eq!(find(None, Some(jinja), Some(json)).unwrap(), Value::Null);
    }

    #[test]
    fn named_templates_come_before_the_default() {
        let list =
            serde_json::json!([{"name": "default", "template": "x"}, {"name": "tool use", "template": "y"}]);
        let mut metadata = Metadata::new();
        add(&mut metadata, &list);
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            ["tokenizer.chat_template.tool_use", "tokenizer.chat_templates", "tokenizer.chat_template"]
        );
    }
}
