//! What a conversion reads: a checkpoint, or a GGUF file.

use std::path::Path;

use crate::checkpoint::{Catalogue, Checkpoint, GgufModel};
use crate::error::{Error, Result};
use crate::plan::{self, Blueprint, Options};

/// A source whose headers have been read.
pub(super) enum Source {
    /// A checkpoint, here or on the hub.
    Checkpoint(Box<Checkpoint>),
    /// A GGUF file or split set.
    Gguf(GgufModel),
}

impl Source {
    /// Its tensors.
    pub(super) fn catalogue(&self) -> &Catalogue {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint,
            Self::Gguf(model) => model.catalogue(),
        }
    }

    /// The checkpoint that a budget's types are tried on.
    pub(super) fn checkpoint(&self) -> Result<&Checkpoint> {
        match self {
            Self::Checkpoint(checkpoint) => Ok(checkpoint),
            Self::Gguf(model) => Err(Error::Unsupported {
                what: format!(
                    "{}: a budget (--target-size, --target-bpw) for a GGUF file",
                    model.path().display()
                ),
                hint: "choose types with --tensor-type, or fit the checkpoint it was made from".into(),
            }),
        }
    }

    /// What converting it to `format` would write.
    pub(super) fn blueprint(&self, format: &str, options: &Options) -> Result<Blueprint> {
        match self {
            Self::Checkpoint(checkpoint) => plan::blueprint(checkpoint, format, options),
            Self::Gguf(model) => plan::requantize(model, format, options),
        }
    }
}

/// Whether MODEL is a GGUF file, there or not: no repository has such a name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf") && !path.is_dir()
}
