//! Typed access to config.json, with errors that name the key.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::small::brief;

/// Largest count or dimension accepted from config.json; far above any real model, low
/// enough that products of two fit in 64 bits.
const MAX_DIMENSION: u64 = 1 << 24;

/// A parsed config.json.
#[derive(Debug, Clone)]
pub struct Config<'a> {
    value: &'a Value,
    path: &'static str,
}

impl<'a> Config<'a> {
    /// Wraps the top level of config.json.
    pub fn new(value: &'a Value) -> Self {
        Self { value, path: "" }
    }

    /// The object itself.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// The object under `key`, when it is there and not null.
    pub fn section(&self, key: &'static str) -> Option<Self> {
        self.value.get(key).filter(|value| value.is_object()).map(|value| Self { value, path: key })
    }

    /// The raw value under `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// Keys that say something.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        let object = self.value.as_object().into_iter().flatten();
        object.filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str())
    }

    /// Whether `key` is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// Whether `key` is there and says nothing.
    pub fn is_null(&self, key: &str) -> bool {
        self.value.get(key).is_some_and(Value::is_null)
    }

    /// A count or dimension.
    ///
    /// # Errors
    /// When it is missing, not an integer, zero or absurdly large.
    pub fn dimension(&self, key: &str) -> Result<usize> {
        match self.count_or(key, u64::MAX)? {
            u64::MAX => Err(self.missing(key)),
            0 => Err(self.invalid(key, "0", "a positive integer")),
            count => Ok(count as usize),
        }
    }

    /// A count, or `default` when the key is absent.
    ///
    /// # Errors
    /// When it is there but not an integer in range.
    pub fn count_or(&self, key: &str, default: u64) -> Result<u64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_u64() {
            Some(count) if count <= MAX_DIMENSION => Ok(count),
            _ => Err(self.invalid(key, &value.to_string(), &format!("an integer up to {MAX_DIMENSION}"))),
        }
    }

    /// A number, or `default` when the key is absent.
    ///
    /// # Errors
    /// When it is there but not a number.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.invalid(key, &value.to_string(), "a number"))
    }

    /// A flag, or `default` when the key is absent.
    ///
    /// # Errors
    /// When it is there but not a boolean.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.invalid(key, &value.to_string(), "true or false"))
    }

    /// A string, when the key is there.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The error for a required key that is absent.
    pub fn missing(&self, key: &str) -> Error {
        Error::checkpoint("config.json", format!("key {} is missing", self.full(key)))
    }

    /// The error for a key with an unusable value.
    pub fn invalid(&self, key: &str, found: &str, expected: &str) -> Error {
        let found = brief(found);
        Error::checkpoint(
            "config.json",
            format!("key {}: found {found}, expected {expected}", self.full(key)),
        )
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
