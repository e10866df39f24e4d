//! Llama and what llama.cpp takes for it: Mistral, Mixtral, SmolLM.

use super::gguf::{Architecture, Experts};
use super::{Family, NAMING, Pairing, Presence};

/// The `llama` family.
pub(super) const FAMILY: Family =
    Family { model_type: "llama", checkpoint: None, gguf: &GGUF, naming: NAMING };

const GGUF: Architecture = Architecture {
    pairing: Pairing::Adjacent,
    experts: Experts::Perhaps,
    has_divisors: true,
    dense_biases: Presence::Perhaps,
    is_70b: |size| size.experts != 8 && size.heads != size.kv_heads,
    ..Architecture::plain("llama")
};
