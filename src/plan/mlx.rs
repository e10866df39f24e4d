//! MLX directories as mlx-lm writes them.

use super::{Blueprint, Format, Options, Target};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// MLX.
pub(super) struct MlxTarget;

impl Target for MlxTarget {
    fn formats(&self) -> &'static [Format] {
        &[]
    }

    fn blueprint(&self, format: &Format, _: &Checkpoint, _: &Options) -> Result<Blueprint> {
        Err(Error::Unsupported { what: format.name.into(), hint: String::new() })
    }
}
