//! What a result is made from: a checkpoint, or a GGUF file.

use super::{Blueprint, Choices, Format, Options, Target};
use crate::checkpoint::{Catalogue, Checkpoint, GgufModel};
use crate::error::Result;

/// A source whose headers have been read.
#[derive(Clone, Copy)]
pub enum Original<'a> {
    /// A checkpoint, here or on a hub.
    Checkpoint(&'a Checkpoint),
    /// A GGUF file or split set.
    Gguf(&'a GgufModel),
}

impl<'a> From<&'a Checkpoint> for Original<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self::Checkpoint(checkpoint)
    }
}

impl<'a> From<&'a GgufModel> for Original<'a> {
    fn from(model: &'a GgufModel) -> Self {
        Self::Gguf(model)
    }
}

impl<'a> Original<'a> {
    /// Its tensors.
    pub fn catalogue(self) -> &'a Catalogue {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint,
            Self::Gguf(model) => model.catalogue(),
        }
    }

    /// What converting it to `format` would write.
    ///
    /// # Errors
    /// As [`super::blueprint`] and [`super::requantize`].
    pub fn blueprint(self, format: &str, options: &Options) -> Result<Blueprint> {
        match self {
            Self::Checkpoint(checkpoint) => super::blueprint(checkpoint, format, options),
            Self::Gguf(model) => super::requantize(model, format, options),
        }
    }

    /// Tensors of `blueprint` whose type a budget may choose, and from what.
    pub(super) fn choices(
        self,
        target: &dyn Target,
        format: &Format,
        options: &Options,
        blueprint: &Blueprint,
    ) -> Result<Vec<Choices>> {
        match self {
            Self::Checkpoint(checkpoint) => target.choices(format, checkpoint, blueprint),
            Self::Gguf(model) => target.requantized_choices(format, model, options, blueprint),
        }
    }
}
