//! Phi-3 and Phi-4: matrices that other families have one by one are one.

use super::gguf::{Architecture, Windows};
use super::{Family, NAMING, Naming};

/// The `phi3` family.
pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    checkpoint: None,
    gguf: &GGUF,
    naming: Naming { gate_is_in_up: true, ..NAMING },
    renamed: None,
};

const GGUF: Architecture =
    Architecture { windows: Windows::Every, has_divisors: true, ..Architecture::plain("phi3") };
