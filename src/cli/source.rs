//! What a conversion reads: a checkpoint, or a GGUF file.

use std::path::Path;

use crate::checkpoint::{Catalogue, Checkpoint, GgufModel};
use crate::plan::Original;

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
        self.original().catalogue()
    }

    /// What a plan is made from.
    pub(super) fn original(&self) -> Original<'_> {
        match self {
            Self::Checkpoint(checkpoint) => Original::Checkpoint(checkpoint),
            Self::Gguf(model) => Original::Gguf(model),
        }
    }
}

/// Whether MODEL is a GGUF file, there or not: no repository has such a name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf") && !path.is_dir()
}
