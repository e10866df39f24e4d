//! Layers that rules keep as they are.
//!
//! A quantized checkpoint of this shape has one type, so `ignore = true` is all that a rule can say. Layers that
//! engines fuse are stored alike, so rules take all of such a set or nothing of it.

use std::collections::BTreeMap;

use super::{FusedSet, Stored, whole};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::rules::{Candidate, Choice, Rules};
use crate::plan::Piece;

/// Takes what rules are for out of `fitting`; returns the rule of each such tensor.
///
/// # Errors
/// Rules that give a type, match nothing, or match a part of a fused set.
pub(super) fn take_out(
    rules: &Rules,
    family: &str,
    source: &Checkpoint,
    sets: &BTreeMap<FusedSet, Vec<usize>>,
    fitting: &mut BTreeMap<usize, Stored>,
) -> Result<BTreeMap<usize, usize>> {
    if let Some(rule) = rules.iter().find(|rule| rule.choice != Choice::Ignore) {
        return Err(Error::Request(format!(
            "{}: {} for one tensor of a {family} checkpoint is not supported: its layers have one type, and a rule can \
             only keep some as they are (ignore = true in a recipe)",
            rule.origin, rule.choice
        )));
    }
    let tensors: Vec<(usize, Vec<Piece>)> = (source.tensors().iter().enumerate())
        .filter(|(_, tensor)| tensor.role.is_some())
        .map(|(id, tensor)| (id, whole(tensor, id)))
        .collect();
    let candidates: Vec<Candidate<'_>> = tensors
        .iter()
        .map(|(id, pieces)| Candidate {
            name: &source.tensors()[*id].name,
            pieces,
            can_be_quantized: fitting.contains_key(id),
        })
        .collect();
    let assigned = rules.assign(source, &candidates)?;
    let taken: BTreeMap<usize, usize> =
        tensors.iter().zip(assigned).filter_map(|((id, _), rule)| Some((*id, rule?))).collect();
    for set in sets.values() {
        let taken_one = set.iter().find(|id| taken.contains_key(id));
        let left_one = set.iter().find(|id| !taken.contains_key(id));
        if let (Some(taken_one), Some(left_one)) = (taken_one, left_one) {
            let origin = rules.get(taken[taken_one]).map_or("", |rule| &rule.origin);
            let name = |id: &usize| &source.tensors()[*id].name;
            return Err(Error::Request(format!(
                "{origin}: matches {} but not {}; engines fuse them, so both are quantized or neither is",
                name(taken_one),
                name(left_one)
            )));
        }
    }
    taken.keys().for_each(|id| drop(fitting.remove(id)));
    Ok(taken)
}
