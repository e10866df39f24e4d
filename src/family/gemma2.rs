//! Gemma 2: capped scores and logits, every other layer with a sliding window.

use super::gguf::{Architecture, Windows};
use super::{Activation, Family, NAMING};

/// The `gemma2` family.
pub(super) const FAMILY: Family =
    Family { model_type: "gemma2", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture {
    activation: Activation::GeluTanh,
    windows: Windows::AllBut(2, Some(4096)),
    gemma: Some(46),
    caps: Some((50.0, 30.0)),
    ..Architecture::plain("gemma2")
};
