//! Qwen2 and Qwen2.5: biases in attention.

use super::gguf::Architecture;
use super::{Family, NAMING};

/// The `qwen2` family.
pub(super) const FAMILY: Family =
    Family { model_type: "qwen2", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture =
    Architecture { has_output_bias: true, is_70b: |_| true, ..Architecture::plain("qwen2") };
