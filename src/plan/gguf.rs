//! GGUF as llama.cpp writes it.

use super::{Blueprint, Format, Options, Target};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// GGUF.
pub(super) struct GgufTarget;

impl Target for GgufTarget {
    fn formats(&self) -> &'static [Format] {
        &[]
    }

    fn blueprint(&self, format: &Format, _: &Checkpoint, _: &Options) -> Result<Blueprint> {
        Err(Error::Unsupported { what: format.name.into(), hint: String::new() })
    }
}
