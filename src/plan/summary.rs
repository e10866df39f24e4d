//! What a plan amounts to: the numbers of `requant plan`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Blueprint;
use crate::checkpoint::Catalogue;

/// Totals of one output type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TypeTotals {
    /// Tensors of this type.
    pub tensors: u64,
    /// Weights in them.
    pub parameters: u64,
    /// Bytes they take, all parts together.
    pub bytes: u64,
}

/// Totals of what is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DroppedTotals {
    /// Source tensors, scales included.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why, one line each.
    pub reasons: Vec<String>,
}

/// The numbers of a plan. Serialized as `requant plan --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Tensors of the checkpoint, scales and dropped ones included.
    pub tensors_in: u64,
    /// Weights of the result.
    pub parameters: u64,
    /// Bytes of the checkpoint's tensors, dropped ones included.
    pub bytes_in: u64,
    /// Tensors of the result; a quantized matrix counts as one whatever its parts.
    pub tensors_out: u64,
    /// Bytes of the result's files, headers and side files included, manifest excluded.
    pub bytes_out: u64,
    /// `8 *` tensor bytes of the result `/ parameters`.
    pub bits_per_weight: f64,
    /// Files with weights that are not on this machine and would be downloaded.
    pub download_files: u64,
    /// Their bytes.
    pub download_bytes: u64,
    /// Most disk space in use at any time: the result and, for a source on the hub, the spool. A
    /// source on this machine is not counted.
    pub peak_disk_bytes: u64,
    /// Upper bound on resident memory.
    pub peak_ram_bytes: u64,
    /// Totals by type name.
    pub types: BTreeMap<String, TypeTotals>,
    /// What is left out.
    pub dropped: DroppedTotals,
    /// Linear layers that are not quantized, as the result's configuration lists them.
    pub kept: Vec<String>,
}

/// Source files that hold what `blueprint` is made of, scales included; ascending.
pub fn files_read(source: &Catalogue, blueprint: &Blueprint) -> BTreeSet<usize> {
    let tensors = source.tensors();
    let used = blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces).map(|piece| &tensors[piece.source]);
    used.flat_map(|tensor| {
        let companions = tensor.companions().iter().map(|&other| tensors[other].file);
        companions.chain([tensor.file])
    })
    .collect()
}

/// Adds up `blueprint`, for a source on this machine. `peak_ram_bytes` is the executor's own bound.
pub fn summary(source: &Catalogue, blueprint: &Blueprint, peak_ram_bytes: u64) -> Summary {
    let mut types: BTreeMap<String, TypeTotals> = BTreeMap::new();
    for tensor in &blueprint.tensors {
        let totals = types.entry(tensor.type_name.clone()).or_default();
        totals.tensors += 1;
        totals.parameters += tensor.parameters();
        totals.bytes += tensor.stored_bytes();
    }
    let (parameters, tensor_bytes) = (blueprint.parameters(), blueprint.tensor_bytes());
    let bytes_out = blueprint.len_bytes();
    let dropped_ids = blueprint.dropped.iter().flat_map(|dropped| &dropped.tensors);
    Summary {
        tensors_in: source.tensors().len() as u64,
        parameters,
        bytes_in: source.tensors().iter().map(|tensor| tensor.len_bytes).sum(),
        tensors_out: blueprint.tensors.len() as u64,
        bytes_out,
        bits_per_weight: 8.0 * tensor_bytes as f64 / parameters.max(1) as f64,
        download_files: 0,
        download_bytes: 0,
        peak_disk_bytes: bytes_out,
        peak_ram_bytes,
        types,
        kept: blueprint.kept.clone(),
        dropped: DroppedTotals {
            tensors: dropped_ids.clone().count() as u64,
            bytes: dropped_ids.map(|&id| source.tensors()[id].len_bytes).sum(),
            reasons: blueprint.dropped.iter().map(|dropped| dropped.reason.clone()).collect(),
        },
    }
}
