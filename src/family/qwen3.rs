//! Qwen3: norms of query and key heads.

use super::gguf::Architecture;
use super::{Family, NAMING, Presence};

/// The `qwen3` family.
pub(super) const FAMILY: Family =
    Family { model_type: "qwen3", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture { head_norms: Presence::Always, ..Architecture::plain("qwen3") };
