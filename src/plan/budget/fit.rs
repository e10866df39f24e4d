//! From measured errors to rules: groups of tensors that get one type, the choice among them, and the result that
//! follows.

use std::collections::{BTreeMap, BTreeSet};

use super::knapsack::{self, Item, Offer};
use super::{Budget, Choices, Fitted, Set};
use crate::error::{Error, Result};
use crate::opened::Opened;
use crate::plan::{self, Blueprint, Choice, Options, Pattern, Rule, Rules, numbered};

/// Attempts to hit a size that depends on what was chosen: lengths of headers that state it.
const MAX_ROUNDS: usize = 32;

/// Everything that the choice depends on.
pub(super) struct Fit<'a> {
    pub(super) source: &'a Opened,
    pub(super) format: &'a str,
    pub(super) options: &'a Options,
    pub(super) budget: Budget,
    pub(super) base: &'a Blueprint,
    pub(super) choices: &'a [Choices],
}

/// Tensors that get the same type.
struct Group {
    /// Positions in [`Fit::choices`].
    members: Vec<usize>,
    /// For each option, the position of its type among the candidates of each member.
    types: Vec<Vec<usize>>,
}

/// The smallest result that there is.
pub(super) struct Least {
    groups: Vec<Group>,
    fitted: Fitted,
    /// Bytes that do not depend on the choice.
    fixed: u64,
}

/// Leaves out what a rule is for, and the whole set that it belongs to.
pub(super) fn leave_to_rules(choices: &mut Vec<Choices>, base: &Blueprint) {
    let is_ruled =
        |choices: &Choices| choices.tensors.iter().any(|&tensor| base.tensors[tensor].rule.is_some());
    let sets: BTreeSet<Set> = choices
        .iter()
        .filter(|choices| is_ruled(choices))
        .filter_map(|choices| choices.set.clone())
        .collect();
    choices.retain(|choices| {
        let is_in_ruled_set = choices.set.as_ref().is_some_and(|set| sets.contains(set));
        !is_in_ruled_set && !is_ruled(choices) && !choices.candidates.is_empty()
    });
}

impl Fit<'_> {
    /// The smallest result.
    ///
    /// # Errors
    /// When it is above the budget, or what the rules of the request ask for is not possible.
    pub(super) fn least(&self) -> Result<Least> {
        let groups = self.groups()?;
        let items: Vec<Item> = groups.iter().map(|group| self.item(group, None)).collect();
        let options = knapsack::cheapest(&items);
        let fitted = self.fitted(&groups, &items, &options, None)?;
        if self.budget.spent(&fitted.blueprint) > self.budget.limit(&fitted.blueprint) {
            return Err(self.too_small(&fitted.blueprint));
        }
        let fixed = self.budget.spent(&fitted.blueprint).saturating_sub(cost(&items, &options));
        Ok(Least { groups, fitted, fixed })
    }

    /// The result with the least loss. Relative squared errors and losses of each candidate are by [`Fit::choices`].
    pub(super) fn best(&self, least: Least, errors: &[Vec<f64>], losses: &[Vec<f64>]) -> Result<Fitted> {
        let Least { groups, fitted: smallest, fixed } = least;
        let items: Vec<Item> = groups.iter().map(|group| self.item(group, Some(losses))).collect();
        let limit = self.budget.limit(&smallest.blueprint);
        let mut allowance = limit.saturating_sub(fixed);
        let mut best: Option<Fitted> = None;
        let mut tried = BTreeSet::new();
        for _ in 0..MAX_ROUNDS {
            let Some(options) = knapsack::solve(&items, allowance) else { break };
            if !tried.insert(options.clone()) {
                break;
            }
            let fitted = self.fitted(&groups, &items, &options, Some(errors))?;
            let (taken, spent) = (cost(&items, &options), self.budget.spent(&fitted.blueprint));
            // Beside what was chosen there are headers, shapes and lists of exceptions, which depend on it.
            match spent.checked_sub(limit) {
                Some(over) if over > 0 => allowance = taken.min(allowance).saturating_sub(over),
                _ => {
                    allowance = taken + (limit - spent);
                    if best.as_ref().is_none_or(|best| fitted.loss < best.loss) {
                        best = Some(fitted);
                    }
                }
            }
        }
        best.map_or_else(|| self.fitted(&groups, &items, &knapsack::cheapest(&items), Some(errors)), Ok)
    }

    fn too_small(&self, least: &Blueprint) -> Error {
        let way_out = match self.source.gguf() {
            Some(_) if !self.options.allow_requantize => {
                "; what is quantized already can get smaller with --allow-requantize only"
            }
            _ => "",
        };
        Error::Request(format!(
            "{}: too small; the least that the types of this family come to here is {} bytes, {:.4} bits per weight{way_out}",
            self.budget,
            least.len_bytes(),
            // Rounded up, so that it can be asked for.
            (8.0 * least.tensor_bytes() as f64 / least.parameters().max(1) as f64 * 1e4).ceil() / 1e4
        ))
    }

    fn groups(&self) -> Result<Vec<Group>> {
        let mut by_key: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, choices) in self.choices.iter().enumerate() {
            let tensor = &self.base.tensors[choices.tensors[0]];
            let key = match &choices.set {
                Some(set) => format!("{}{}{}", set.before, set.layer, set.after),
                // What has no choice does not bind others.
                None if choices.candidates.len() == 1 => tensor.names[0].clone(),
                None => format!("{} {}", tensor.row_len_elems(), fused_name(&tensor.names[0])),
            };
            by_key.entry(key).or_default().push(at);
        }
        let mut groups: Vec<Group> =
            by_key.into_values().flat_map(|members| self.with_common_types(members)).collect();
        groups.sort_by_key(|group| group.members[0]);
        Ok(groups)
    }

    /// The members with the types that all of them could have; apart where there is none and they need not have one.
    fn with_common_types(&self, members: Vec<usize>) -> Vec<Group> {
        let candidates = |member: usize| &self.choices[member].candidates;
        let types = candidates(members[0]).iter().filter_map(|candidate| {
            let in_member = |&member: &usize| {
                candidates(member).iter().position(|other| other.choice == candidate.choice)
            };
            members.iter().map(in_member).collect()
        });
        let types: Vec<Vec<usize>> = types.collect();
        if types.is_empty() && members.len() > 1 {
            return members.into_iter().flat_map(|member| self.with_common_types(vec![member])).collect();
        }
        vec![Group { members, types }]
    }

    fn item(&self, group: &Group, losses: Option<&[Vec<f64>]>) -> Item {
        let offers = group.types.iter().map(|types| {
            let mut offer = Offer { cost: 0, loss: 0.0 };
            for (&member, &at) in group.members.iter().zip(types) {
                let Choices { tensors, candidates, .. } = &self.choices[member];
                offer.cost += tensors.len() as u64 * candidates[at].len_bytes;
                offer.loss += losses.map_or(0.0, |losses| losses[member][at]);
            }
            offer
        });
        Item { offers: offers.collect() }
    }

    /// The result in which group `i` has its option `options[i]`.
    fn fitted(
        &self,
        groups: &[Group],
        items: &[Item],
        options: &[usize],
        errors: Option<&[Vec<f64>]>,
    ) -> Result<Fitted> {
        let mut error = 0.0;
        let mut chosen: BTreeMap<(String, String, String), (Choice, BTreeSet<usize>)> = BTreeMap::new();
        for (group, &option) in groups.iter().zip(options) {
            for (&member, &at) in group.members.iter().zip(&group.types[option]) {
                let Choices { tensors, candidates, set } = &self.choices[member];
                let len = self.choices[member].len_elems(self.base) as f64;
                error += len * errors.map_or(0.0, |errors| errors[member][at]);
                let (before, number, after) = match set {
                    Some(Set { before, layer, after }) => ((*before).to_owned(), Some(*layer), after.clone()),
                    None => {
                        let (before, number, after) = numbered(&self.base.tensors[tensors[0]].names[0]);
                        (Pattern::literal(before), number, Pattern::literal(after))
                    }
                };
                let choice = &candidates[at].choice;
                let of_kind = chosen.entry((before, after, choice.to_string()));
                of_kind.or_insert_with(|| (choice.clone(), BTreeSet::new())).1.extend(number);
            }
        }
        let rules = chosen.into_iter().map(|((before, after, _), (choice, numbers))| {
            let target = Pattern::numbered(&before, &numbers, &after).map_err(Error::Request)?;
            Ok(Rule { target, choice, origin: self.budget.to_string() })
        });
        let rules = Rules::new(rules.collect::<Result<Vec<_>>>()?);
        let options_with = Options { rules: self.options.rules.clone().then(rules), ..self.options.clone() };
        let blueprint = plan::blueprint(self.source, self.format, &options_with)?;
        let loss: f64 = items.iter().zip(options).map(|(item, &option)| item.offers[option].loss).sum();
        let parameters: u64 = self.choices.iter().map(|choices| choices.len_elems(self.base)).sum();
        let mean_error = error / parameters.max(1) as f64;
        Ok(Fitted { rules: options_with.rules, blueprint, mean_error, loss })
    }
}

fn cost(items: &[Item], options: &[usize]) -> u64 {
    items.iter().zip(options).map(|(item, &option)| item.offers[option].cost).sum()
}

/// The name that tensors which should have one type share.
fn fused_name(name: &str) -> String {
    name.replace("ffn_gate", "ffn_up").replace("gate_proj", "up_proj")
}
