//! What a tokenizer's definition may ask for.
//!
//! A few kilobytes of tokenizer.json can make gigabytes of a short text: replacements that are replaced again, templates
//! in templates, a byte mapping applied over and over. Limits are far above what published tokenizers have.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::definition::{Definition, Merge, Model};
use super::{TOKENIZER_FILE, invalid};
use crate::error::{Error, Result};
use crate::small::shown;

/// Deepest nesting of normalizers, pre-tokenizers, decoders, post-processors.
const MAX_DEPTH: usize = 16;
/// Most values in one of these parts.
const MAX_VALUES: usize = 100_000;
/// Most steps in one of these parts: objects with a `type`.
const MAX_STEPS: usize = 256;
/// Longest pattern or other string in one of these parts.
const MAX_STRING_BYTES: usize = 64 << 10;
/// Longest table of SentencePiece's normalizer.
const MAX_TABLE_BYTES: usize = 4 << 20;
/// Longest text that a pattern is replaced by, or that is put before a text.
const MAX_CONTENT_BYTES: usize = 256;
/// Most byte mappings one after the other: each can double a text.
const MAX_BYTE_LEVELS: usize = 4;
/// How often templates may repeat a text.
const MAX_REPETITIONS: usize = 8;
/// Most tokens outside the model's vocabulary, and most bytes of all of them.
const MAX_ADDED: usize = 300_000;
const MAX_ADDED_BYTES: usize = 4 << 20;
/// Longest token of any kind.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Most tokens.
const MAX_TOKENS: usize = 1 << 22;
/// How much longer a text may become by normalization, plus this many bytes.
const MAX_GROWTH: usize = 32;
const FREE_GROWTH_BYTES: usize = 4096;
/// Growth that needs no look at the text: what normalization forms and visible spaces can do.
const USUAL_GROWTH: usize = 32;

fn refused(part: &str, why: &str) -> Error {
    Error::checkpoint(TOKENIZER_FILE, format!("cannot be used: {part}: {why}"))
}

/// Holds a definition against the limits.
///
/// # Errors
/// Names the part that asks for too much, or a merge that leads nowhere.
pub(super) fn check(definition: &Definition) -> Result<()> {
    for (name, value) in [
        ("normalizer", &definition.normalizer),
        ("pre_tokenizer", &definition.pre_tokenizer),
        ("post_processor", &definition.post_processor),
        ("decoder", &definition.decoder),
    ] {
        let mut part = Part { name, values: 0, steps: 0, byte_levels: 0, repetitions: 1 };
        part.walk(value, "", 0)?;
    }
    check_added(definition.added_tokens.iter().map(|token| token.content.as_str()))?;
    check_model(&definition.model)
}

/// Holds added tokens against the limits.
///
/// # Errors
/// Too many of them, or too long ones.
pub(super) fn check_added<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for token in tokens {
        count += 1;
        bytes += token.len();
        if count > MAX_ADDED || bytes > MAX_ADDED_BYTES {
            let why = format!("more than {MAX_ADDED} tokens or {MAX_ADDED_BYTES} bytes of them");
            return Err(refused("added_tokens", &why));
        }
    }
    Ok(())
}

/// What the crate would panic on, or take for a token that is not there.
fn check_model(model: &Model) -> Result<()> {
    let vocabulary = &model.vocab;
    if vocabulary.len > MAX_TOKENS || vocabulary.longest_bytes > MAX_TOKEN_BYTES {
        let why = format!(
            "{} tokens, the longest with {} bytes; expected at most {MAX_TOKENS} and {MAX_TOKEN_BYTES}",
            vocabulary.len, vocabulary.longest_bytes
        );
        return Err(refused("model.vocab", &why));
    }
    let prefix_bytes = model.continuing_subword_prefix.as_deref().map_or(0, str::len);
    for merge in &model.merges {
        if matches!(merge, Merge::Joined(line) if line.starts_with("#version")) {
            continue;
        }
        let Some((left, right)) = merge.parts() else {
            let merge = shown(&format!("{merge:?}"));
            return Err(refused("model.merges", &format!("{merge} is not two tokens with a space between")));
        };
        let joined = right.get(prefix_bytes..).map(|rest| left.len() + rest.len());
        if joined.is_none_or(|len_bytes| len_bytes > vocabulary.longest_bytes) {
            let (left, right) = (shown(left), shown(right));
            return Err(refused(
                "model.merges",
                &format!("{left} and {right} give no token of the vocabulary"),
            ));
        }
    }
    Ok(())
}

/// A part of a definition, being looked at.
struct Part {
    name: &'static str,
    values: usize,
    steps: usize,
    byte_levels: usize,
    repetitions: usize,
}

impl Part {
    fn walk(&mut self, value: &Value, key: &str, depth: usize) -> Result<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return self.refuse(format!("more than {MAX_VALUES} values"));
        }
        if depth > MAX_DEPTH {
            return self.refuse(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        match value {
            Value::String(text) => self.string(text, key),
            Value::Array(items) => items.iter().try_for_each(|item| self.walk(item, key, depth + 1)),
            Value::Object(entries) => {
                if let Some(kind) = entries.get("type") {
                    self.step(kind.as_str().unwrap_or_default())?;
                }
                if let Some(pieces) = entries.get("single").and_then(Value::as_array) {
                    self.template(pieces)?;
                }
                if kind_is(value, "FixedLength") && entries.get("length").and_then(Value::as_u64) == Some(0) {
                    return self.refuse("FixedLength with length 0".to_owned());
                }
                entries.iter().try_for_each(|(key, value)| {
                    self.string(key, "")?;
                    self.walk(value, key, depth + 1)
                })
            }
            _ => Ok(()),
        }
    }

    fn string(&self, text: &str, key: &str) -> Result<()> {
        let max_bytes = match key {
            "precompiled_charsmap" => MAX_TABLE_BYTES,
            "content" | "prepend" => MAX_CONTENT_BYTES,
            _ => MAX_STRING_BYTES,
        };
        if text.len() <= max_bytes {
            return Ok(());
        }
        self.refuse(format!("{key:?} has {} bytes, expected at most {max_bytes}", text.len()))
    }

    fn step(&mut self, kind: &str) -> Result<()> {
        self.steps += 1;
        self.byte_levels += usize::from(kind == "ByteLevel");
        if self.steps > MAX_STEPS || self.byte_levels > MAX_BYTE_LEVELS {
            return self
                .refuse(format!("more than {MAX_STEPS} steps, or {MAX_BYTE_LEVELS} of kind ByteLevel"));
        }
        Ok(())
    }

    /// Pieces of a template: the text itself, and special tokens.
    fn template(&mut self, pieces: &[Value]) -> Result<()> {
        let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
        self.repetitions = self.repetitions.saturating_mul(texts.max(1));
        if self.repetitions > MAX_REPETITIONS || pieces.len() > MAX_STEPS {
            return self.refuse(format!("templates repeat a text more than {MAX_REPETITIONS} times"));
        }
        Ok(())
    }

    fn refuse(&self, why: String) -> Result<()> {
        Err(refused(self.name, &why))
    }
}

fn kind_is(value: &Value, kind: &str) -> bool {
    value.get("type").and_then(Value::as_str) == Some(kind)
}

/// A normalizer that can make a text much longer, step by step.
pub(super) struct Growth {
    steps: Vec<(NormalizerWrapper, bool)>,
}

impl Growth {
    /// `None` for a normalizer that cannot.
    ///
    /// # Errors
    /// A step that Hugging Face's crate does not know.
    pub(super) fn of(normalizer: &Value) -> Result<Option<Self>> {
        let mut leaves = Vec::new();
        collect(normalizer, &mut leaves);
        let usual = leaves.iter().fold(1usize, |all, leaf| all.saturating_mul(growth_of(leaf)));
        if usual <= USUAL_GROWTH {
            return Ok(None);
        }
        let step = |leaf: &&Value| {
            let step =
                NormalizerWrapper::deserialize(*leaf).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
            Ok((step, kind_is(leaf, "Precompiled")))
        };
        Ok(Some(Self { steps: leaves.iter().map(step).collect::<Result<_>>()? }))
    }

    /// Whether `text` stays within bounds.
    ///
    /// # Errors
    /// When a step makes it too long.
    pub(super) fn check(&self, text: &str) -> Result<()> {
        let limit_bytes = text.len().saturating_mul(MAX_GROWTH).saturating_add(FREE_GROWTH_BYTES);
        let mut current = text.to_owned();
        for (step, is_table) in &self.steps {
            let apply = |text: &str| {
                let mut text = NormalizedString::from(text);
                step.normalize(&mut text).map_err(|error| invalid(TOKENIZER_FILE, &error))?;
                Ok(text.get().to_owned())
            };
            let mut next = String::new();
            if *is_table {
                // An entry of the table can be as long as the table: one character at a time.
                for char in current.chars() {
                    next.push_str(&apply(char.encode_utf8(&mut [0; 4]))?);
                    if next.len() > limit_bytes {
                        break;
                    }
                }
            } else {
                next = apply(&current)?;
            }
            if next.len() > limit_bytes {
                let why = format!("makes a text of {} bytes longer than {limit_bytes}", text.len());
                return Err(refused("normalizer", &why));
            }
            current = next;
        }
        Ok(())
    }
}

/// The steps of nested sequences, in order.
fn collect<'a>(normalizer: &'a Value, leaves: &mut Vec<&'a Value>) {
    match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().for_each(|step| collect(step, leaves)),
        None if normalizer.is_null() => {}
        None => leaves.push(normalizer),
    }
}

/// By how much a step can multiply the length of a text, at most.
fn growth_of(step: &Value) -> usize {
    match step.get("type").and_then(Value::as_str).unwrap_or_default() {
        "Replace" => {
            let content = step.get("content").and_then(Value::as_str).map_or(MAX_CONTENT_BYTES, str::len);
            match step.pointer("/pattern/String").and_then(Value::as_str) {
                Some(text) if !text.is_empty() => content.div_ceil(text.len()).max(1),
                // Between any two characters.
                _ => 1 + content,
            }
        }
        "Prepend" | "Strip" | "StripAccents" | "Nmt" => 1,
        "ByteLevel" | "Lowercase" => 2,
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "BertNormalizer" => 9,
        _ => USUAL_GROWTH + 1,
    }
}

#[cfg(test)]
mod tests;
