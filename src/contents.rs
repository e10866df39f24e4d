//! What a manifest says of a result, tensor by tensor: what each is for, its layer, its weights and bits.
//!
//! A manifest lists stored tensors under the names that GGUF, MLX or Hugging Face give them, each part of a quantized matrix on
//! its own. [`tensors`] puts the parts together again. What a tensor is for follows from its name alone: the source may be gone.

use std::collections::BTreeMap;

use crate::pipeline::{Manifest, TensorRecord};

mod kind;

pub(crate) use kind::{Kind, layer_of};

/// What follows the last dot of a name that begins a tensor of its own, whatever stands before it.
const OF_ITS_OWN: [&str; 2] = ["weight", "bias"];

/// A logical tensor of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor<'a> {
    /// Name of its first part.
    pub(crate) name: &'a str,
    /// What it is for.
    pub(crate) kind: Kind,
    /// Decoder layer that it belongs to.
    pub(crate) layer: Option<usize>,
    /// Type, as `requant plan` names it.
    pub(crate) type_name: &'a str,
    /// Weights of the model in it: none in scales that are stored as tensors of their own.
    pub(crate) parameters: u64,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
}

/// Sums over some tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Tensors.
    pub(crate) tensors: u64,
    /// Weights in them.
    pub(crate) parameters: u64,
    /// Bytes they take.
    pub(crate) bytes: u64,
}

impl Totals {
    /// `8 * bytes / parameters`.
    pub(crate) fn bits_per_weight(self) -> f64 {
        8.0 * self.bytes as f64 / self.parameters.max(1) as f64
    }

    /// Adds a tensor.
    pub(crate) fn add(&mut self, tensor: &Tensor<'_>) {
        self.tensors += 1;
        self.parameters += tensor.parameters;
        self.bytes += tensor.bytes;
    }

    /// Over all of `tensors`.
    pub(crate) fn of(tensors: &[Tensor<'_>]) -> Self {
        let mut totals = Self::default();
        tensors.iter().for_each(|tensor| totals.add(tensor));
        totals
    }
}

/// The logical tensors of a result, in the order of the manifest.
pub(crate) fn tensors(manifest: &Manifest) -> Vec<Tensor<'_>> {
    let mut tensors: Vec<Tensor<'_>> = Vec::new();
    let mut before: Option<&TensorRecord> = None;
    for record in &manifest.tensors {
        match (before, tensors.last_mut()) {
            (Some(before), Some(tensor)) if is_part(before, record) => tensor.bytes += record.bytes,
            _ => tensors.push(Tensor {
                name: &record.name,
                kind: Kind::of(&record.name),
                layer: layer_of(&record.name),
                type_name: &record.type_name,
                parameters: parameters(record),
                bytes: record.bytes,
            }),
        }
        before = Some(record);
    }
    tensors
}

/// Totals of each kind, and of each type in it, in the order of [`Kind::ALL`].
pub(crate) fn by_kind<'a>(tensors: &[Tensor<'a>]) -> Vec<(Kind, BTreeMap<&'a str, Totals>)> {
    let of = |kind: Kind| {
        let mut types: BTreeMap<&str, Totals> = BTreeMap::new();
        for tensor in tensors.iter().filter(|tensor| tensor.kind == kind) {
            types.entry(tensor.type_name).or_default().add(tensor);
        }
        (kind, types)
    };
    Kind::ALL.into_iter().map(of).filter(|(_, types)| !types.is_empty()).collect()
}

/// Whether `record` is one more part of the tensor that `before` is a part of.
fn is_part(before: &TensorRecord, record: &TensorRecord) -> bool {
    let (stem, suffix) = split(&record.name);
    !OF_ITS_OWN.contains(&suffix)
        && split(&before.name).0 == stem
        && (&before.type_name, &before.shape) == (&record.type_name, &record.shape)
}

/// Scales of FP8 weights are stored beside them, as tensors that hold no weights.
fn parameters(record: &TensorRecord) -> u64 {
    let (_, suffix) = split(&record.name);
    if suffix.contains("scale") { 0 } else { record.shape.iter().map(|&len| len as u64).product() }
}

/// A name in front of its last dot, and behind it.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, type_name: &str, shape: &[usize], bytes: u64) -> TensorRecord {
        TensorRecord {
            name: name.into(),
            type_name: type_name.into(),
            shape: shape.to_vec(),
            file: "model.safetensors".into(),
            offset: 0,
            bytes,
            sha256: "0".repeat(64),
        }
    }

    #[test]
    fn parts_are_one_tensor_and_biases_are_not() {
        let records = [
            record("m.layers.0.q_proj.weight", "affine4_g64", &[8, 64], 256),
            record("m.layers.0.q_proj.scales", "affine4_g64", &[8, 64], 16),
            record("m.layers.0.q_proj.biases", "affine4_g64", &[8, 64], 16),
            record("m.layers.0.norm.weight", "F32", &[64], 256),
            record("m.layers.0.norm.bias", "F32", &[64], 256),
            record("m.layers.0.o_proj.weight", "F8_E4M3", &[8, 64], 512),
            record("m.layers.0.o_proj.weight_scale_inv", "F32", &[1, 1], 4),
            record("m.layers.1.o_proj.qweight", "gptq4", &[8, 64], 256),
            record("m.layers.1.o_proj.qzeros", "gptq4", &[8, 64], 8),
            record("m.layers.1.o_proj.g_idx", "gptq4", &[8, 64], 8),
        ];
        let manifest = Manifest {
            manifest_version: 1,
            requant_version: String::new(),
            command: Vec::new(),
            format: String::new(),
            recipe: None,
            imatrix: None,
            calibration: None,
            damped: Vec::new(),
            source: String::new(),
            model: None,
            source_files: Vec::new(),
            is_directory: true,
            files: Vec::new(),
            tensors: records.to_vec(),
            error_report: None,
            validation: None,
        };
        let found = tensors(&manifest);
        let found: Vec<(&str, u64, u64)> =
            found.iter().map(|tensor| (tensor.name, tensor.parameters, tensor.bytes)).collect();
        assert_eq!(
            found,
            [
                ("m.layers.0.q_proj.weight", 512, 288),
                ("m.layers.0.norm.weight", 64, 256),
                ("m.layers.0.norm.bias", 64, 256),
                ("m.layers.0.o_proj.weight", 512, 512),
                ("m.layers.0.o_proj.weight_scale_inv", 0, 4),
                ("m.layers.1.o_proj.qweight", 512, 272),
            ]
        );
    }
}
