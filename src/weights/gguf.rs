//! A GGUF, one file or a split set, as a weight store.

use std::collections::HashSet;
use std::path::Path;

use requant_formats::codec;
use requant_formats::container::gguf::Metadata;

use super::gguf_aside;
use super::packed::{PackedStore, Stored, Stream};
use crate::checkpoint::{GgufModel, SourceTensor};
use crate::error::Result;
use crate::family::{self, Contents, Ecosystem};

/// A GGUF model.
pub(super) struct Gguf {
    pub(super) store: PackedStore,
    pub(super) metadata: Metadata,
    /// Name of its (first) file.
    pub(super) name: String,
}

/// Opens the file at `path`, and the other files of its set.
///
/// # Errors
/// When a file is missing, damaged or cut off, or the architecture is not one of ours.
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (source, tensors, metadata) = GgufModel::open(path)?.into_parts();
    let stored: Vec<Stored> = tensors.into_iter().filter_map(stored_tensor).collect();
    let stored = gguf_aside::resolve(&*source, stored)?;

    let family = family::architecture_of(&metadata, &name)?;
    let names: HashSet<&str> = stored.iter().map(|tensor| tensor.name.as_str()).collect();
    let contents = Contents { vocab: vocab(&stored), names: &names };
    let spec = family.gguf.spec(&metadata, &name, &contents)?;
    let store = PackedStore::new(source, family, spec, Ecosystem::Gguf, stored)?;
    Ok(Gguf { store, metadata, name })
}

/// Rows of the token embedding.
fn vocab(stored: &[Stored]) -> usize {
    let embedding = stored.iter().find(|tensor| tensor.name == "token_embd.weight");
    embedding.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0)
}

/// As packed tensors are kept; every tensor of a GGUF file is one part.
fn stored_tensor(tensor: SourceTensor) -> Option<Stored> {
    let codec = tensor.row_major()?;
    let row_bytes = codec::part_len_bytes(codec, 0, tensor.matrix().1 as u64) as usize;
    let streams = vec![Stream { file: tensor.file, offset_bytes: tensor.offset_bytes, row_bytes }];
    Some(Stored { name: tensor.name, shape: tensor.shape, codec, streams, factors: Vec::new() })
}
