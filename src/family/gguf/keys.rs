//! Typed access to the hyper-parameters of a GGUF, with errors that name the key.
//!
//! Which keys were asked for is remembered, so that a family reads what it knows and [`Keys::check_all_known`] names
//! what is left.

use std::cell::RefCell;
use std::collections::HashSet;

use requant_formats::container::gguf::{Array, Metadata, Value};

use crate::error::{Error, Result};
use crate::family::ByLayer;

/// Largest count or dimension accepted; far above any real model, low enough that products of two fit in 64 bits.
const MAX_COUNT: u64 = 1 << 24;
/// Keys that change nothing about what a model computes.
const NEUTRAL: &[&str] = &[
    "context_length",
    "vocab_size",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "pooling_type",
    "attention.layer_norm_epsilon",
    // Of YaRN, where it is not used. Neither llama.cpp nor transformers has a meaning for the factor of extrapolation.
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    // Of heads beside that of the vocabulary: classes, embeddings.
    "classifier.output_labels",
    "classifier.pooling_type",
    "dense_2_feat_in",
    "dense_2_feat_out",
    "dense_3_feat_in",
    "dense_3_feat_out",
];

/// What is in a file beside its metadata.
pub struct Contents<'a> {
    /// Rows of its token embedding.
    pub vocab: usize,
    /// Names of its tensors.
    pub names: &'a HashSet<&'a str>,
}

/// Hyper-parameters of one architecture.
pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    /// The file, for messages.
    file: &'a str,
    architecture: &'a str,
    asked: RefCell<HashSet<String>>,
}

/// A count, or an array of counts; `None` for anything else.
pub(super) fn counts_of(value: &Value) -> Option<Vec<usize>> {
    let counts: Vec<Option<u64>> = match value {
        Value::Array(Array::U32(counts)) => counts.iter().map(|&count| Some(count.into())).collect(),
        Value::Array(Array::I32(counts)) => counts.iter().map(|&count| count.try_into().ok()).collect(),
        other => vec![other.as_u64()],
    };
    let count = |count: Option<u64>| count.filter(|&count| count <= MAX_COUNT).map(|count| count as usize);
    counts.into_iter().map(count).collect()
}

impl<'a> Keys<'a> {
    pub(super) fn new(metadata: &'a Metadata, file: &'a str, architecture: &'a str) -> Self {
        Self { metadata, file, architecture, asked: RefCell::default() }
    }

    /// The whole name of a key.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The value of a key, as it is.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        let full = self.full(key);
        let value = self.metadata.get(&full);
        self.asked.borrow_mut().insert(full);
        value
    }

    /// A count, or an array with the same count for every layer.
    ///
    /// # Errors
    /// Something else; layers that differ.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>> {
        let Some(counts) = self.counts(key, 0)? else { return Ok(None) };
        let first = *counts.of(0);
        if counts.iter().any(|&count| count != first) {
            return Err(Error::Unsupported {
                what: format!("{}: {}: layers with different counts", self.file, self.full(key)),
                hint: "this version evaluates models with the same one in every layer".into(),
            });
        }
        Ok(Some(first as u64))
    }

    /// A count of all layers, or an array with one for each of `layers` at least.
    ///
    /// # Errors
    /// Something else.
    pub(super) fn counts(&self, key: &str, layers: usize) -> Result<Option<ByLayer<usize>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let counts = counts_of(value).ok_or_else(|| self.invalid(key, value, "a count"))?;
        if matches!(value, Value::Array(_)) && counts.len() < layers {
            return Err(self.invalid(key, value, &format!("a count, or {layers}, one for each layer")));
        }
        ByLayer::each(counts).map(Some).ok_or_else(|| self.invalid(key, value, "a count"))
    }

    /// A count that must be there and not zero.
    ///
    /// # Errors
    /// When it is not, and as [`Keys::count`].
    pub(super) fn required_count(&self, key: &str) -> Result<usize> {
        let count = self.count(key)?.ok_or_else(|| self.missing(key))?;
        if count == 0 {
            return Err(self.invalid(key, &Value::from(0u32), "more than 0"));
        }
        Ok(count as usize)
    }

    /// A float, as the shortest decimal that its 32 bits stand for: 1e-6, not 9.99999997e-7.
    ///
    /// # Errors
    /// Something else.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.invalid(key, value, "a number"))?;
        Ok(Some((number as f32).to_string().parse().unwrap_or(number)))
    }

    /// A number that must be positive and finite where it is given.
    ///
    /// # Errors
    /// When it is not, and as [`Keys::number`].
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let number = self.number(key)?;
        match number.filter(|number| !(*number > 0.0 && number.is_finite())) {
            None => Ok(number),
            Some(found) => Err(self.invalid(key, &Value::from(found as f32), "a positive number")),
        }
    }

    /// A flag; false when it is absent.
    ///
    /// # Errors
    /// Something else.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.value(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.invalid(key, value, "true or false"))
    }

    /// Refuses hyper-parameters that nobody asked for and that do change what a model computes: all but the few of every
    /// architecture, and `neutral`.
    ///
    /// # Errors
    /// Names the first.
    pub(super) fn check_all_known(&self, neutral: &[&str]) -> Result<()> {
        let asked = self.asked.borrow();
        let prefix = self.full("");
        let is_known = |key: &str| {
            key.strip_prefix(&prefix).is_none_or(|short| {
                asked.contains(key) || NEUTRAL.contains(&short) || neutral.contains(&short)
            })
        };
        match self.metadata.iter().find(|(key, _)| !is_known(key)) {
            None => Ok(()),
            Some((key, value)) => Err(Error::Unsupported {
                what: format!("{}: metadata key {key} ({value:?})", self.file),
                hint: "this version does not know what it means, and an evaluation without it might be of another model"
                    .into(),
            }),
        }
    }

    /// A value that has a meaning, but not for this version.
    pub(super) fn unsupported(&self, key: &str, found: &str, hint: &str) -> Error {
        Error::Unsupported {
            what: format!("{}: {} {found}", self.file, self.full(key)),
            hint: format!("this version evaluates {hint}"),
        }
    }

    /// A key that is not there.
    pub(super) fn missing(&self, key: &str) -> Error {
        Error::checkpoint(self.file, format!("metadata key {} is missing", self.full(key)))
    }

    /// A value that cannot be.
    pub(super) fn invalid(&self, key: &str, found: &Value, expected: &str) -> Error {
        let message = format!("metadata key {}: found {found:?}, expected {expected}", self.full(key));
        Error::checkpoint(self.file, message)
    }
}
