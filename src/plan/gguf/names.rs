//! The tensors of a GGUF file: names, order, shapes, and the rows they are made of.
//!
//! Source: llama.cpp `src/llama-model-loader.h` (order: `weight_name_comparer`); names and rows are the family's.

use requant_formats::Dtype;

use super::mix;
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::Result;
use crate::family::{Computed, Ecosystem, Family, Role, Spec, Turn};
use crate::plan::pieces::{Arranged, arranged};
use crate::plan::{Dropped, Piece, Rounding};

/// A tensor of the result, without its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
    /// Precision before encoding.
    pub(super) rounding: Rounding,
    /// What it holds, when it follows from the hyper-parameters and has no pieces.
    pub(super) content: Option<Vec<u8>>,
}

impl Planned {
    /// Extents as GGUF states them: fastest first.
    pub(super) fn ne(&self) -> Vec<u64> {
        self.shape.iter().rev().map(|&extent| extent as u64).collect()
    }

    /// Number of elements.
    pub(super) fn len_elems(&self) -> u64 {
        self.shape.iter().map(|&extent| extent as u64).product()
    }

    /// Whether the outermost dimension counts routed experts.
    pub(super) fn is_experts(&self) -> bool {
        self.name.contains("_exps.")
    }
}

/// Every tensor, in the order in which llama-quantize writes them: those outside the layers,
/// then layer by layer, each group by name.
///
/// # Errors
/// A tensor that the family requires and the checkpoint lacks.
pub(super) fn tensors(source: &Checkpoint) -> Result<Vec<Planned>> {
    let is_written = |role| role != Role::Output || !source.spec().embedding.tied;
    let arranged = arranged(source, Ecosystem::Gguf, is_written)?.into_iter();
    let of_arranged = |Arranged { name, shape, pieces, .. }| {
        let rounding = rounding(source, &pieces);
        Planned { name, shape, pieces, rounding, content: None }
    };
    let computed = source.family().computed(source.spec()).map(|Computed { name, values }| Planned {
        name: name.to_owned(),
        shape: vec![values.len()],
        pieces: Vec::new(),
        rounding: Rounding::Exact,
        content: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    });
    let mut planned: Vec<Planned> = arranged.map(of_arranged).chain(computed).collect();
    planned.sort_by(|a, b| (mix::layer(&a.name), &a.name).cmp(&(mix::layer(&b.name), &b.name)));
    Ok(planned)
}

/// The converter adds 1 to norms in F16 where that is what they are stored as; all else it works on in F32.
fn rounding(source: &Checkpoint, pieces: &[Piece]) -> Rounding {
    let is_f16_sum =
        |piece: &Piece| piece.turn == Turn::Raised && source.tensors()[piece.source].dtype == Dtype::F16;
    if pieces.iter().any(is_f16_sum) { Rounding::F16 } else { Rounding::Exact }
}

/// What the target leaves out.
pub(super) fn dropped(source: &Checkpoint) -> Vec<Dropped> {
    let spec = source.spec();
    let mut groups: Vec<Dropped> = Vec::new();
    for (position, tensor) in source.tensors().iter().enumerate() {
        let Some(reason) = drop_reason(source.family(), spec, tensor) else { continue };
        let tensors = std::iter::once(position).chain(tensor.companions().iter().copied());
        match groups.iter_mut().find(|group| group.reason == reason) {
            Some(group) => group.tensors.extend(tensors),
            None => groups.push(Dropped { tensors: tensors.collect(), reason }),
        }
    }
    groups
}

fn drop_reason(family: &Family, spec: &Spec, tensor: &SourceTensor) -> Option<String> {
    match tensor.role {
        Some(Role::Layer(layer, _)) if layer >= spec.layers && !family.gguf.keeps_predictors() => {
            Some(format!("multi-token prediction layer {layer}: llama.cpp does not read it"))
        }
        Some(Role::Output) if spec.embedding.tied => {
            Some("output head: config.json says it is the token embedding".into())
        }
        None if tensor.name.ends_with(".rotary_emb.inv_freq") => {
            Some("rotary frequencies: llama.cpp computes them".into())
        }
        None => family.aside(&tensor.name).map(|what| format!("{what}: the file is of the text model alone")),
        _ => None,
    }
}
