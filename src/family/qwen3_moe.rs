//! Qwen3 with experts.

use super::gguf::{Architecture, Experts};
use super::{Family, NAMING, Presence};

/// The `qwen3_moe` family.
pub(super) const FAMILY: Family =
    Family { model_type: "qwen3_moe", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture {
    head_norms: Presence::Always,
    experts: Experts::Normalized,
    ..Architecture::plain("qwen3moe")
};
