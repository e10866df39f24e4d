//! Qwen2-MoE and Qwen1.5-MoE: a shared expert with a gate.

use super::gguf::{Architecture, Experts};
use super::{Family, NAMING};

/// The `qwen2_moe` family.
pub(super) const FAMILY: Family =
    Family { model_type: "qwen2_moe", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture { experts: Experts::GatedShared, ..Architecture::plain("qwen2moe") };
