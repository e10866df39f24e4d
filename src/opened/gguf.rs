//! A GGUF, one file or a split set, as a weight store.

use std::collections::HashSet;

use requant_formats::codec;

use super::gguf_aside;
use super::packed::{PackedStore, Stored, Stream};
use crate::checkpoint::{GgufModel, SourceTensor};
use crate::error::Result;
use crate::family::{self, Contents, Ecosystem};

/// Name of its (first) file.
pub(super) fn name(model: &GgufModel) -> String {
    model.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Its weights.
///
/// # Errors
/// When the architecture is not one of ours, or what a forward pass needs is missing or unknown.
pub(super) fn store(model: &GgufModel) -> Result<PackedStore> {
    let (name, metadata, source) = (name(model), model.metadata(), model.catalogue().shared_source());
    let stored: Vec<Stored> = model.catalogue().tensors().iter().filter_map(stored_tensor).collect();
    let stored = gguf_aside::resolve(&*source, stored)?;
    let family = family::architecture_of(metadata, &name)?;
    let names: HashSet<&str> = stored.iter().map(|tensor| tensor.name.as_str()).collect();
    let contents = Contents { vocab: vocab(&stored), names: &names };
    let spec = family.gguf.spec(metadata, &name, &contents)?;
    spec.check_size(&name)?;
    PackedStore::new(source, family, spec, Ecosystem::Gguf, stored)
}

/// Rows of the token embedding.
fn vocab(stored: &[Stored]) -> usize {
    let embedding = stored.iter().find(|tensor| tensor.name == "token_embd.weight");
    embedding.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0)
}

/// As packed tensors are kept; every tensor of a GGUF file is one part.
fn stored_tensor(tensor: &SourceTensor) -> Option<Stored> {
    let codec = tensor.row_major()?;
    let row_bytes = codec::part_len_bytes(codec, 0, tensor.matrix().1 as u64) as usize;
    let streams = vec![Stream { file: tensor.file, offset_bytes: tensor.offset_bytes, row_bytes }];
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    Some(Stored { name, shape, codec, streams, factors: Vec::new() })
}
