//! Deals arrays out to files: `make_shards` and `save_model` of `mlx_lm/utils.py`.

use std::collections::BTreeMap;

use requant_formats::container::safetensors::{TensorSpec, mlx::write_header};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::plan::{OutputFile, OutputTensor, Placement, Sidecar, python_json};

/// A shard is closed before the array that would take it past 5 GiB of tensor bytes.
const MAX_SHARD_BYTES: u64 = 5 << 30;

/// Writes every file's header and tells each tensor where its parts go.
///
/// `tensors` are in mlx-lm's order. A tensor's parts are arrays of their own: they can be dealt
/// to different shards.
///
/// # Errors
/// Tensors that MLX could not write: without elements, or too large to count.
pub(super) fn lay_out(tensors: &mut [OutputTensor]) -> Result<Vec<OutputFile>> {
    lay_out_within(tensors, MAX_SHARD_BYTES)
}

pub(super) fn lay_out_within(tensors: &mut [OutputTensor], max_bytes: u64) -> Result<Vec<OutputFile>> {
    let arrays = arrays(tensors)?;
    let shards = deal(&arrays, max_bytes);
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    let mut placements: BTreeMap<(usize, usize), Placement> = BTreeMap::new();
    let mut files = Vec::with_capacity(shards.len());
    for (file, shard) in shards.iter().enumerate() {
        let name = shard_name(file, shards.len());
        let specs: Vec<TensorSpec> = shard.iter().map(|array| array.spec.clone()).collect();
        let (header, bytes) = write_header(&specs, &metadata).map_err(Error::format(&name))?;
        let owners: BTreeMap<&str, &Array> = shard.iter().map(|array| (&*array.spec.name, array)).collect();
        for entry in &header.tensors {
            if let Some(array) = owners.get(&*entry.name) {
                let offset_bytes = header.data_offset_bytes + entry.begin_bytes;
                let placement = Placement { file, offset_bytes, len_bytes: entry.len_bytes() };
                placements.insert((array.tensor, array.part), placement);
            }
        }
        files.push(OutputFile { name, header: bytes, len_bytes: header.file_len_bytes() });
    }
    for ((tensor, _), placement) in placements {
        tensors[tensor].placements.push(placement);
    }
    Ok(files)
}

/// `model.safetensors.index.json`.
pub(super) fn index(tensors: &[OutputTensor], files: &[OutputFile], parameter_count: u64) -> Sidecar {
    let mut total_bytes = 0u64;
    let mut names = BTreeMap::new();
    for tensor in tensors {
        for (name, placement) in tensor.names.iter().zip(&tensor.placements) {
            total_bytes += placement.len_bytes;
            names.insert(name, &files[placement.file].name);
        }
    }
    let metadata = Map::from_iter([
        ("total_size".to_owned(), Value::from(total_bytes)),
        ("total_parameters".to_owned(), Value::from(parameter_count)),
    ]);
    let weight_map: Map<_, _> =
        names.into_iter().map(|(name, file)| (name.clone(), Value::from(file.as_str()))).collect();
    let index = Map::from_iter([
        ("metadata".to_owned(), Value::from(metadata)),
        ("weight_map".to_owned(), Value::from(weight_map)),
    ]);
    Sidecar {
        name: "model.safetensors.index.json".into(),
        bytes: python_json::dump(&Value::from(index)).into_bytes(),
    }
}

/// One array of the result: a part of a tensor.
struct Array {
    tensor: usize,
    part: usize,
    spec: TensorSpec,
    len_bytes: u64,
}

fn arrays(tensors: &[OutputTensor]) -> Result<Vec<Array>> {
    let mut arrays = Vec::new();
    for (number, tensor) in tensors.iter().enumerate() {
        for (part, (stored, name)) in tensor.stored()?.into_iter().zip(&tensor.names).enumerate() {
            let len_bytes = stored.len_bytes();
            let spec = TensorSpec { name: name.clone(), dtype: stored.dtype, shape: stored.shape };
            arrays.push(Array { tensor: number, part, spec, len_bytes });
        }
    }
    Ok(arrays)
}

/// Greedy, in order; an array that is larger than the limit gets a shard of its own.
fn deal(arrays: &[Array], max_bytes: u64) -> Vec<&[Array]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0u64);
    for (at, array) in arrays.iter().enumerate() {
        if at > start && size + array.len_bytes > max_bytes {
            shards.push(&arrays[start..at]);
            (start, size) = (at, 0);
        }
        size += array.len_bytes;
    }
    shards.push(&arrays[start..]);
    shards
}

fn shard_name(file: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".into();
    }
    format!("model-{:05}-of-{count:05}.safetensors", file + 1)
}
