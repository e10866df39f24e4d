//! Types that a budget may choose from, for each linear layer, and what has to have one with it.

use std::collections::{BTreeMap, BTreeSet};

use requant_formats::Dtype;
use requant_formats::layout::StoredTensor;

use super::modules::escaped;
use super::{Packing, Stored, carried_over, encoded, linear};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::family::{Ffn, LayerRole};
use crate::plan::Blueprint;
use crate::plan::budget::{Candidate, Choices, Set};

/// Members of a set that are alike: the set, the role without the number of an expert, dtype and shape.
type Kind = (Set, Option<Ffn>, Dtype, Vec<usize>);

/// The types that fit each linear layer of the decoder, prediction layers left out. Members of a set that are alike
/// are measured as one matrix.
///
/// # Errors
/// As [`Packing::stored`].
pub(in crate::plan) fn alternatives(
    source: &Checkpoint,
    packing: &dyn Packing,
    default: &str,
    blueprint: &Blueprint,
) -> Result<Vec<Choices>> {
    let mut kinds: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
    for (position, output) in blueprint.tensors.iter().enumerate().filter(|(_, output)| output.is_weight) {
        let [piece] = output.pieces.as_slice() else { continue };
        let tensor = &source.tensors()[piece.source];
        let Some((layer, role)) = linear(tensor.role).filter(|(layer, _)| *layer < source.spec().layers)
        else {
            continue;
        };
        let set = set_of(source, layer, role, &tensor.name);
        let kind = (set, role.ffn(), tensor.dtype, tensor.shape.clone());
        kinds.entry(kind).or_default().push(position);
    }
    let mut all = Vec::with_capacity(kinds.len());
    for ((set, ..), tensors) in kinds {
        let id = blueprint.tensors[tensors[0]].pieces[0].source;
        let candidates = candidates(source, packing, default, id)?;
        all.push(Choices { tensors, set: Some(set), candidates });
    }
    // A set of which one member fits nothing stays as it is.
    let misfits: BTreeSet<Option<Set>> = all
        .iter()
        .filter(|choices| choices.candidates.is_empty())
        .map(|choices| choices.set.clone())
        .collect();
    all.retain(|choices| !misfits.contains(&choices.set));
    all.sort_by_key(|choices| choices.tensors[0]);
    Ok(all)
}

/// What tensor `id` of the source could be.
fn candidates(
    source: &Checkpoint,
    packing: &dyn Packing,
    default: &str,
    id: usize,
) -> Result<Vec<Candidate>> {
    let tensor = &source.tensors()[id];
    let Some((_, role)) = linear(tensor.role) else { return Ok(Vec::new()) };
    let mut candidates = Vec::new();
    for type_name in packing.alternatives(default, role) {
        let (outputs, is_copied) = match packing.stored(type_name, tensor)? {
            Some(Stored::Encoded(scheme)) => (vec![encoded(tensor, id, scheme, Vec::new())?], false),
            Some(Stored::Carried { scale_suffix }) => (carried_over(source, id, scale_suffix)?, true),
            None => continue,
        };
        let mut len_bytes = 0;
        for output in &outputs {
            len_bytes += output.stored()?.iter().map(StoredTensor::len_bytes).sum::<u64>();
        }
        let (codec, rounding) = (outputs[0].codec, outputs[0].rounding);
        let candidate = Candidate::encoded(type_name, codec, rounding, tensor.len_elems());
        candidates.push(Candidate { len_bytes, is_copied, ..candidate });
    }
    Ok(candidates)
}

/// What the set of a tensor of this role is: what the family says that engines fuse, or the tensor alone.
fn set_of(source: &Checkpoint, layer: usize, role: LayerRole, name: &str) -> Set {
    let prefix = source.family().layers_prefix();
    let after = match source.family().fused(source.spec(), role) {
        Some(fused) => format!(r"\.{}\.weight", fused.names),
        None => {
            let prefix = format!("{prefix}{layer}");
            escaped(name.strip_prefix(&prefix).unwrap_or(name))
        }
    };
    Set { before: escaped(&prefix), layer, after }
}
