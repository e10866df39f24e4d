//! Which type each linear layer gets: the format's own, what a rule says, or none; the same for all that
//! engines fuse.

use std::collections::{BTreeMap, BTreeSet};

use super::{Packing, Stored, linear};
use crate::checkpoint::{Checkpoint, SourceTensor};
use crate::error::{Error, Result};
use crate::family::{Ffn, LayerRole, Role};
use crate::plan::rules::Candidate;
use crate::plan::{Choice, Piece, Rule, Rules};

/// Layers that engines fuse: layer, and the first role of the set.
type FusedSet = (usize, LayerRole);

/// What every tensor becomes.
pub(super) struct Choices {
    /// Quantized tensors, by position in the catalogue.
    quantized: BTreeMap<usize, (&'static str, Stored)>,
    /// The rule that decided, by position in the catalogue.
    rules: Vec<Option<usize>>,
    /// Members of each fused set.
    sets: BTreeMap<FusedSet, Vec<usize>>,
}

impl Choices {
    /// Gives `default` to every linear layer that it fits, and what rules say to those they are for.
    ///
    /// # Errors
    /// A rule with a type that the family does not have or that does not fit, or that takes a fused set apart;
    /// when nothing at all would be quantized.
    pub(super) fn new(
        source: &Checkpoint,
        packing: &dyn Packing,
        default: &'static str,
        rules: &Rules,
    ) -> Result<Self> {
        let spec = source.spec();
        let meanings = rules.iter().map(|rule| meaning(rule, packing)).collect::<Result<Vec<_>>>()?;
        let is_quantizable = |tensor: &SourceTensor| {
            linear(tensor.role)
                .is_some_and(|(layer, _)| layer < spec.layers || packing.takes_prediction_layers())
        };
        let rules_of = assigned(source, rules, is_quantizable)?;

        let mut quantized = BTreeMap::new();
        let mut sets: BTreeMap<FusedSet, Vec<usize>> = BTreeMap::new();
        let mut misfits = BTreeSet::new();
        for (id, tensor) in source.tensors().iter().enumerate().filter(|(_, tensor)| is_quantizable(tensor)) {
            let Some((layer, role)) = linear(tensor.role) else { continue };
            let set = fused_set(source, layer, role);
            sets.entry(set).or_default().push(id);
            let rule = rules_of[id];
            let type_name = match rule.map(|number| meanings[number]) {
                None => default,
                Some(Some(name)) => name,
                Some(None) => continue,
            };
            match (packing.stored(type_name, tensor)?, rule.and_then(|number| rules.get(number))) {
                (Some(stored), _) => drop(quantized.insert(id, (type_name, stored))),
                (None, None) => drop(misfits.insert(set)),
                (None, Some(rule)) => {
                    return Err(Error::Request(format!(
                        "{}: {}: its rows of {} weights are no whole groups of {type_name}; choose a type with \
                         smaller groups, or ignore it",
                        rule.origin,
                        tensor.name,
                        tensor.matrix().1
                    )));
                }
            }
        }
        let choices = Self { quantized, rules: rules_of, sets };
        choices.without(&misfits).checked(source, rules, default)
    }

    /// Type and storage of a tensor; `None` when it is not quantized.
    pub(super) fn of(&self, id: usize) -> Option<&(&'static str, Stored)> {
        self.quantized.get(&id)
    }

    /// Number of the rule that decided about a tensor.
    pub(super) fn rule(&self, id: usize) -> Option<usize> {
        self.rules[id]
    }

    /// Tensors whose scales share a factor with those of `id`: its fused set; of routed experts, gate and up
    /// projection of the same expert.
    pub(super) fn sharing(&self, source: &Checkpoint, id: usize) -> Vec<usize> {
        let Some((layer, role)) = linear(source.tensors()[id].role) else { return Vec::new() };
        match role {
            LayerRole::Expert(_, Ffn::Down) => vec![id],
            LayerRole::Expert(expert, _) => [Ffn::Gate, Ffn::Up]
                .into_iter()
                .filter_map(|ffn| source.by_role(Role::Layer(layer, LayerRole::Expert(expert, ffn))))
                .collect(),
            role => self.sets.get(&fused_set(source, layer, role)).cloned().unwrap_or_default(),
        }
    }

    /// Takes the default type from whole sets of which one member does not fit.
    fn without(mut self, misfits: &BTreeSet<FusedSet>) -> Self {
        for id in misfits.iter().flat_map(|set| &self.sets[set]) {
            if self.rules[*id].is_none() {
                self.quantized.remove(id);
            }
        }
        self
    }

    fn checked(self, source: &Checkpoint, rules: &Rules, default: &str) -> Result<Self> {
        let name = |id: usize| source.tensors()[id].name.as_str();
        for members in self.sets.values() {
            let type_of = |id: usize| self.quantized.get(&id).map(|(type_name, _)| *type_name);
            let first = members[0];
            if let Some(&other) = members.iter().find(|&&id| type_of(id) != type_of(first)) {
                let rule = [other, first].into_iter().find_map(|id| rules.get(self.rules[id]?));
                let origin = rule.map_or(default, |rule| rule.origin.as_str());
                let said = |id| type_of(id).unwrap_or("not quantized");
                return Err(Error::Request(format!(
                    "{origin}: {} would be {} and {} {}, but serving engines fuse them and want one type: give \
                     them the same",
                    name(first),
                    said(first),
                    name(other),
                    said(other)
                )));
            }
        }
        if self.quantized.is_empty() {
            let widths: BTreeSet<usize> =
                self.sets.values().flatten().map(|&id| source.tensors()[id].matrix().1).collect();
            return Err(Error::Unsupported {
                what: format!("{default} of this model: its rows of {widths:?} weights are no whole groups"),
                hint: "nothing would be quantized; choose smaller groups".into(),
            });
        }
        Ok(self)
    }
}

/// For each tensor of the catalogue the rule that is for it.
fn assigned(
    source: &Checkpoint,
    rules: &Rules,
    is_quantizable: impl Fn(&SourceTensor) -> bool,
) -> Result<Vec<Option<usize>>> {
    let ids: Vec<usize> =
        (0..source.tensors().len()).filter(|&id| source.tensors()[id].role.is_some()).collect();
    let pieces: Vec<Piece> = ids.iter().map(|&id| super::whole(&source.tensors()[id], id)).collect();
    let candidates: Vec<Candidate<'_>> = ids
        .iter()
        .zip(&pieces)
        .map(|(&id, piece)| Candidate {
            name: &source.tensors()[id].name,
            pieces: std::slice::from_ref(piece),
            can_be_quantized: is_quantizable(&source.tensors()[id]),
        })
        .collect();
    let mut of_tensor = vec![None; source.tensors().len()];
    for (&id, rule) in ids.iter().zip(rules.assign(source, &candidates)?) {
        of_tensor[id] = rule;
    }
    Ok(of_tensor)
}

/// The type that a rule gives; `None` for none.
fn meaning(rule: &Rule, packing: &dyn Packing) -> Result<Option<&'static str>> {
    let Choice::Type { name, group_size } = &rule.choice else { return Ok(None) };
    let types = packing.target().types();
    let wanted = match group_size {
        None => name.clone(),
        Some(len) => packing.with_groups(name, *len),
    };
    match types.iter().find(|known| known.eq_ignore_ascii_case(&wanted)) {
        Some(known) => Ok(Some(known)),
        None => Err(rule.unknown_type(packing.target().family(), &types)),
    }
}

fn fused_set(source: &Checkpoint, layer: usize, role: LayerRole) -> FusedSet {
    let fused = source.family().fused(source.spec(), role);
    (layer, fused.map_or(role, |fused| fused.first))
}
