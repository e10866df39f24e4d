//! The text model of Gemma 3: five of six layers have a sliding window.

use super::gguf::{Architecture, Windows};
use super::{Activation, Family, NAMING, Presence};

/// The `gemma3_text` family.
pub(super) const FAMILY: Family =
    Family { model_type: "gemma3_text", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture {
    activation: Activation::GeluTanh,
    head_norms: Presence::Always,
    windows: Windows::AllBut(6, None),
    gemma: Some(62),
    ..Architecture::plain("gemma3")
};
