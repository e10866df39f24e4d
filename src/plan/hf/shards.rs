//! Deals tensors out to files of at most 5 GB, in the order of the source, and writes the index.

use std::collections::BTreeMap;

use requant_formats::container::safetensors::{TensorSpec, write_header};
use serde_json::{Value, json};

use super::json_file;
use crate::error::{Error, Result};
use crate::plan::{OutputFile, OutputTensor, Placement, Sidecar};

/// A file is closed before the tensor that would take it past this: `max_shard_size` of `transformers`.
const MAX_FILE_BYTES: u64 = 5_000_000_000;

/// Writes every file's header and tells each tensor where its parts go. What belongs to one weight stays
/// in one file.
///
/// # Errors
/// Tensors that cannot be stored: two of one name, without elements.
pub(super) fn lay_out(tensors: &mut [OutputTensor]) -> Result<Vec<OutputFile>> {
    lay_out_within(tensors, MAX_FILE_BYTES)
}

fn lay_out_within(tensors: &mut [OutputTensor], max_bytes: u64) -> Result<Vec<OutputFile>> {
    let mut dealt: Vec<Vec<(usize, usize, TensorSpec)>> = vec![Vec::new()];
    let mut len_bytes = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        let stored = tensor.stored()?;
        let tensor_bytes: u64 = stored.iter().map(|stored| stored.len_bytes()).sum();
        if len_bytes > 0 && len_bytes + tensor_bytes > max_bytes {
            dealt.push(Vec::new());
            len_bytes = 0;
        }
        len_bytes += tensor_bytes;
        if let Some(file) = dealt.last_mut() {
            file.extend(stored.into_iter().zip(&tensor.names).enumerate().map(|(part, (stored, name))| {
                (number, part, TensorSpec { name: name.clone(), dtype: stored.dtype, shape: stored.shape })
            }));
        }
    }

    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut places: BTreeMap<(usize, usize), Placement> = BTreeMap::new();
    let mut files = Vec::with_capacity(dealt.len());
    for (file, members) in dealt.iter().enumerate() {
        let name = file_name(file, dealt.len());
        let specs: Vec<TensorSpec> = members.iter().map(|(_, _, spec)| spec.clone()).collect();
        let owners: BTreeMap<&str, (usize, usize)> =
            members.iter().map(|(tensor, part, spec)| (spec.name.as_str(), (*tensor, *part))).collect();
        let (header, bytes) = write_header(&specs, &metadata).map_err(Error::format(&name))?;
        for entry in &header.tensors {
            if let Some(&owner) = owners.get(entry.name.as_str()) {
                let offset_bytes = header.data_offset_bytes + entry.begin_bytes;
                places.insert(owner, Placement { file, offset_bytes, len_bytes: entry.len_bytes() });
            }
        }
        files.push(OutputFile { name, header: bytes, len_bytes: header.file_len_bytes() });
    }
    for ((tensor, _), placement) in places {
        tensors[tensor].placements.push(placement);
    }
    Ok(files)
}

/// `model.safetensors.index.json`.
pub(super) fn index(tensors: &[OutputTensor], files: &[OutputFile]) -> Sidecar {
    let mut total_bytes = 0u64;
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for tensor in tensors {
        for (name, placement) in tensor.names.iter().zip(&tensor.placements) {
            total_bytes += placement.len_bytes;
            names.insert(name, &files[placement.file].name);
        }
    }
    let index: Value = json!({"metadata": {"total_size": total_bytes}, "weight_map": names});
    Sidecar { name: "model.safetensors.index.json".into(), bytes: json_file(&index) }
}

fn file_name(file: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".into();
    }
    format!("model-{:05}-of-{count:05}.safetensors", file + 1)
}
