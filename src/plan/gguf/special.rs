//! `tokenizer.ggml.*_token_id`, `add_*_token`, normalizer flags.
//!
//! Source: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`). What adds a token is read off
//! tokenizer.json's post-processor first; `add_bos_token` of tokenizer_config.json counts only
//! where that says nothing. Ids come from tokenizer_config.json by way of the added tokens, then
//! from config.json. Odd, and kept: a byte-level post-processor means "adds nothing", so
//! DeepSeek-V3 gets `add_bos_token` false although its tokenizer_config.json says true.

use requant_formats::container::gguf::Metadata;
use serde_json::Value;

use super::template_processing;
use crate::error::{Error, Result};
use crate::tokenizer::{AddedEntry, Definition, TOKENIZER_FILE, special_token};

/// Kinds of special tokens, in the order in which ids are looked for.
const KINDS: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
/// Kinds with a key for their id, and that key's spelling (`seperator` is GGUF's).
const ID_KEYS: &[(&str, &str)] = &[
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];
/// Kinds with a key for whether they are added.
const ADD_KINDS: [&str; 3] = ["bos", "eos", "sep"];

/// Where they come from.
pub(super) struct Sources<'a> {
    /// tokenizer.json, when there is one.
    pub(super) definition: Option<&'a Definition>,
    /// tokenizer_config.json, when there is one.
    pub(super) tokenizer_config: Option<&'a Value>,
    /// config.json.
    pub(super) config: &'a Value,
    /// Ids from here on are passed over.
    pub(super) end: Option<usize>,
    /// Kinds that the converter finds by the text of an added token.
    pub(super) named: &'static [(&'static str, &'static str)],
}

/// Appends ids and flags.
///
/// # Errors
/// A negative token id in config.json; a tokenizer without a token that the family's has.
pub(super) fn add(metadata: &mut Metadata, sources: &Sources) -> Result<()> {
    let mut found = Found::new(sources.tokenizer_config);
    found.end = sources.end.unwrap_or(usize::MAX);
    if let Some(definition) = sources.definition {
        found.read_post_processor(&definition.post_processor);
    }
    let added = sources.definition.map_or(&[][..], |definition| &definition.added_tokens);
    found.read_tokenizer_config(added);
    found.read_config(sources.config)?;

    for &(kind, text) in sources.named {
        let token = added.iter().find(|token| token.content == text);
        let id = token.map(|token| token.id).ok_or_else(|| Error::Unsupported {
            what: format!("{TOKENIZER_FILE}: no added token {text}"),
            hint: "llama.cpp writes models of this family only with it".into(),
        })?;
        // The first that is found counts.
        found.set_id(kind, id);
    }
    for (kind, id) in &found.ids {
        if let Some((_, name)) = ID_KEYS.iter().find(|row| row.0 == *kind) {
            metadata.set(format!("tokenizer.ggml.{name}_token_id"), *id);
        }
    }
    for (kind, adds) in found.adds.iter().filter(|entry| ADD_KINDS.contains(&entry.0)) {
        metadata.set(format!("tokenizer.ggml.add_{kind}_token"), *adds);
    }
    Ok(())
}

/// Appends the normalizer's flags; they come after the chat template.
pub(super) fn add_normalizer(metadata: &mut Metadata, normalizer: &Value) {
    let (mut lowercase, mut strip_accents) = (None, None);
    read_normalizer(normalizer, &mut lowercase, &mut strip_accents);
    for (name, value) in [("lowercase", lowercase), ("strip_accents", strip_accents)] {
        if let Some(value) = value {
            metadata.set(format!("tokenizer.ggml.normalizer.{name}"), value);
        }
    }
}

fn read_normalizer(normalizer: &Value, lowercase: &mut Option<bool>, strip_accents: &mut Option<bool>) {
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Lowercase") => *lowercase = Some(true),
        Some("StripAccents") => *strip_accents = Some(true),
        Some("BertNormalizer") => {
            for (key, flag) in [("lowercase", lowercase), ("strip_accents", strip_accents)] {
                if let Some(value) = normalizer.get(key) {
                    *flag = value.as_bool();
                }
            }
        }
        Some("Sequence") => {
            for part in normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
                read_normalizer(part, lowercase, strip_accents);
            }
        }
        _ => {}
    }
}

/// What has been found so far, in the order in which it was.
pub(super) struct Found {
    /// Kinds that tokenizer_config.json is asked for.
    pub(super) kinds: Vec<&'static str>,
    /// tokenizer_config.json, with tokens filled in on the way.
    pub(super) config: Option<Value>,
    adds: Vec<(&'static str, bool)>,
    ids: Vec<(&'static str, u32)>,
    end: usize,
}

impl Found {
    fn new(config: Option<&Value>) -> Self {
        let config = config.filter(|config| config.as_object().is_some_and(|map| !map.is_empty()));
        Self {
            kinds: KINDS.to_vec(),
            config: config.cloned(),
            adds: Vec::new(),
            ids: Vec::new(),
            end: usize::MAX,
        }
    }

    /// Sets whether `kind` is added; the last word counts, the first place.
    pub(super) fn set_adds(&mut self, kind: &'static str, adds: bool) {
        match self.adds.iter_mut().find(|entry| entry.0 == kind) {
            Some(entry) => entry.1 = adds,
            None => self.adds.push((kind, adds)),
        }
    }

    /// Token of a kind, spelled as in the file: a string or an object, which never count as equal.
    pub(super) fn token(&self, kind: &str) -> Option<Value> {
        let token = self.config.as_ref()?.get(format!("{kind}_token"))?;
        let is_empty = token.is_null() || token.as_str() == Some("");
        (!is_empty).then(|| token.clone())
    }

    /// Names the token of a kind in tokenizer_config.json, when there is one.
    pub(super) fn set_token(&mut self, kind: &str, token: Option<Value>) {
        if let Some(config) = &mut self.config {
            config[format!("{kind}_token")] = token.into();
        }
    }

    fn read_post_processor(&mut self, processor: &Value) {
        for (kind, stand_in) in [("bos", "cls"), ("eos", "sep")] {
            if self.token(kind).is_none()
                && let Some(token) = self.token(stand_in)
            {
                self.set_token(kind, Some(token));
            }
        }
        if processor.is_null() {
            return;
        }
        let parts = processor.get("processors").and_then(Value::as_array);
        for part in parts.map_or(std::slice::from_ref(processor), Vec::as_slice) {
            match part.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    for kind in ["bos", "eos"] {
                        if !self.adds.iter().any(|entry| entry.0 == kind) {
                            self.adds.push((kind, false));
                        }
                    }
                }
                Some("RobertaProcessing") => {
                    for (kind, stand_in) in [("cls", "bos"), ("sep", "eos")] {
                        if self.token(kind).is_none() {
                            let token = part.get(kind).and_then(|pair| pair.get(0)).cloned();
                            self.set_token(kind, token.or_else(|| self.token(stand_in)));
                        }
                    }
                    for kind in ADD_KINDS {
                        self.set_adds(kind, true);
                    }
                }
                Some("TemplateProcessing") => template_processing::read(part, self),
                _ => {}
            }
        }
    }

    fn read_tokenizer_config(&mut self, added: &[AddedEntry]) {
        let Some(config) = self.config.take() else { return };
        for kind in self.kinds.clone() {
            let adds = config.get(format!("add_{kind}_token")).and_then(Value::as_bool);
            if let Some(adds) = adds.filter(|_| !self.adds.iter().any(|entry| entry.0 == kind)) {
                self.adds.push((kind, adds));
            }
            let Some(token) = special_token(&config, &format!("{kind}_token")) else { continue };
            if let Some(entry) = added.iter().find(|entry| entry.content == token) {
                self.set_id(kind, entry.id);
            }
        }
    }

    fn read_config(&mut self, config: &Value) -> Result<()> {
        for kind in self.kinds.clone() {
            let key = format!("{kind}_token_id");
            // A list of ids, as newer exports have for `eos`, counts as none.
            let Some(id) = config.get(&key).filter(|id| id.is_i64() || id.is_u64()) else { continue };
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                Error::checkpoint("config.json", format!("key {key}: found {id}, expected a token id"))
            })?;
            self.set_id(kind, number);
        }
        Ok(())
    }

    fn set_id(&mut self, kind: &'static str, id: u32) {
        if (id as usize) < self.end && !self.ids.iter().any(|entry| entry.0 == kind) {
            self.ids.push((kind, id));
        }
    }
}
