//! A budget: types chosen tensor by tensor, so that the result has at most a given size and is as near to its
//! source as it can be then.
//!
//! Each type that a tensor could have is tried on some of its rows (`measure`). What is made small is the sum
//! over tensors of `parameters * |decode(encode(x)) - x|^2 / |x|^2`, within the budget (`knapsack`). The
//! answer is a list of rules, one for each kind of tensor and type, that gives the same plan when it is used
//! as a recipe.
//!
//! The output head keeps the type that the format gives it (or a rule): its error goes into the logits as it is,
//! while others are damped on their way. On the repository's model (`fixtures/tiny-deepseek-v3`) at the size of Q4_K_M,
//! the mean divergence from the source is 0.0014 with the head chosen like any tensor, and 0.0006 with the format's
//! Q6_K; Q4_K_M itself has 0.0013.
//!
//! Gate and up projection of a feed-forward block get one type: runtimes multiply them in one step when they
//! have. Experts of a block are one tensor or share their fate by their names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use requant_formats::Codec;

use super::{Blueprint, Choice, Options, Pattern, Rule, Rules, numbered, target_of};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::source::Source;

mod knapsack;
mod measure;

use knapsack::{Item, Offer};
pub use measure::Watch;

/// Most reads of a source far away: some minutes at a few milliseconds each.
const MAX_REMOTE_READS: usize = 200_000;

/// Attempts to hit a size that depends on what was chosen: lengths of headers that state it.
const MAX_ROUNDS: usize = 32;

/// What a result may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bytes of all its files, headers included.
    Bytes(u64),
    /// `8 *` tensor bytes `/` parameters, as a plan states it.
    BitsPerWeight(f64),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "--target-size {bytes}"),
            Self::BitsPerWeight(bits) => write!(f, "--target-bpw {bits}"),
        }
    }
}

impl Budget {
    /// Bytes that count against it.
    fn spent(self, blueprint: &Blueprint) -> u64 {
        match self {
            Self::Bytes(_) => blueprint.len_bytes(),
            Self::BitsPerWeight(_) => blueprint.tensors.iter().map(stored_bytes).sum(),
        }
    }

    fn limit(self, blueprint: &Blueprint) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::BitsPerWeight(bits) => {
                let parameters: u64 = blueprint.tensors.iter().map(super::OutputTensor::len_elems).sum();
                (bits * parameters as f64 / 8.0) as u64
            }
        }
    }
}

/// A type that a tensor could have.
#[derive(Clone)]
pub struct Candidate {
    /// As a rule gives it.
    pub choice: Choice,
    /// What encodes it.
    pub codec: &'static dyn Codec,
}

/// A tensor of a blueprint whose type may be chosen.
#[derive(Clone)]
pub struct Choices {
    /// Position in [`Blueprint::tensors`].
    pub tensor: usize,
    /// What gets one type with it, where that is more than its name says.
    pub set: Option<Set>,
    /// What it could have.
    pub candidates: Vec<Candidate>,
}

/// Tensors of a layer that get one type: regular expressions for what stands before and after the number of
/// the layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// Before it.
    pub before: &'static str,
    /// The layer.
    pub layer: usize,
    /// After it.
    pub after: String,
}

/// What a budget came to.
pub struct Fitted {
    /// The rules asked for, and behind them those that were chosen.
    pub rules: Rules,
    /// The result.
    pub blueprint: Blueprint,
    /// Mean over the parameters that were chosen for of the relative squared error, as measured.
    pub mean_error: f64,
}

/// Chooses types for the tensors that no rule of `options` is for.
///
/// # Errors
/// As [`super::blueprint`]; a source whose weights are not at hand; a family in which nothing can be chosen; a budget
/// that is too small, with the least size there is; [`Error::Interrupted`] once `stop` is set.
pub fn fit(
    source: &Checkpoint,
    format: &str,
    options: &Options,
    budget: Budget,
    threads: usize,
    watch: &Watch<'_>,
    stop: &AtomicBool,
) -> Result<Fitted> {
    let base = super::blueprint(source, format, options)?;
    let (target, format) = target_of(format)?;
    let mut choices = target.choices(format, source, &base)?;
    choices.retain(|choices| base.tensors[choices.tensor].rule.is_none() && !choices.candidates.is_empty());
    if choices.is_empty() {
        return Err(Error::Request(format!(
            "{budget}: there is nothing to choose in {} with --to {}; it needs a quantized format of a family with several \
             types, and tensors that no rule is for",
            target.family(),
            format.name
        )));
    }
    let reads = measure::reads(&base, &choices);
    if !source.source().is_at_hand() && reads > MAX_REMOTE_READS {
        return Err(Error::Request(format!(
            "{budget}: types are chosen by measuring weights, which would take about {reads} requests to {}; fetch it first \
             (requant fetch), or make a recipe from a copy and use it with --recipe",
            source.source().location()
        )));
    }
    let _sampling = Sampling::of(source.source(), budget)?;
    let errors = measure::errors(source, &base, &choices, threads, watch, stop)?;
    Fit { source, format: format.name, options, budget, base: &base, choices: &choices, errors: &errors }
        .run()
}

/// While it is there, samples of a source that is not at hand can be read.
struct Sampling<'a>(&'a dyn Source);

impl<'a> Sampling<'a> {
    fn of(source: &'a dyn Source, budget: Budget) -> Result<Self> {
        if source.sample(true) {
            return Ok(Self(source));
        }
        Err(Error::Request(format!(
            "{budget}: types are chosen by measuring weights, and those of {} cannot be read; fetch it first (requant fetch)",
            source.location()
        )))
    }
}

impl Drop for Sampling<'_> {
    fn drop(&mut self) {
        self.0.sample(false);
    }
}

/// Everything that the choice depends on.
struct Fit<'a> {
    source: &'a Checkpoint,
    format: &'a str,
    options: &'a Options,
    budget: Budget,
    base: &'a Blueprint,
    choices: &'a [Choices],
    /// Relative squared error of each candidate, by tensor.
    errors: &'a [Vec<f64>],
}

/// Tensors that get the same type.
struct Group {
    /// Positions in [`Fit::choices`].
    members: Vec<usize>,
    /// For each option, the position of its type among the candidates of each member.
    types: Vec<Vec<usize>>,
}

impl Fit<'_> {
    fn run(&self) -> Result<Fitted> {
        let groups = self.groups();
        let items: Vec<Item> = groups.iter().map(|group| self.item(group)).collect();
        let limit = self.budget.limit(self.base);
        let chosen_in_base: u64 =
            self.choices.iter().map(|choices| stored_bytes(&self.base.tensors[choices.tensor])).sum();
        let fixed = self.budget.spent(self.base) - chosen_in_base;
        let mut allowance = limit.saturating_sub(fixed);
        for _ in 0..MAX_ROUNDS {
            let Some(options) = knapsack::solve(&items, allowance) else { break };
            let fitted = self.fitted(&groups, &items, &options)?;
            match self.budget.spent(&fitted.blueprint).checked_sub(limit) {
                None | Some(0) => return Ok(fitted),
                // What was chosen took more than its blocks: headers, shapes, lists of exceptions.
                Some(over) => {
                    let cost: u64 =
                        items.iter().zip(&options).map(|(item, &option)| item.offers[option].cost).sum();
                    allowance = cost.min(allowance).saturating_sub(over);
                }
            }
        }
        Err(self.too_small(&groups, &items)?)
    }

    /// The error for a budget that nothing fits.
    fn too_small(&self, groups: &[Group], items: &[Item]) -> Result<Error> {
        let least = self.fitted(groups, items, &knapsack::cheapest(items))?.blueprint;
        let parameters: u64 = least.tensors.iter().map(super::OutputTensor::len_elems).sum();
        let bytes: u64 = least.tensors.iter().map(stored_bytes).sum();
        Ok(Error::Request(format!(
            "{}: too small; the least that the types of this family come to here is {} bytes, {:.4} bits per weight",
            self.budget,
            least.len_bytes(),
            // Rounded up, so that it can be asked for.
            (8.0 * bytes as f64 / parameters.max(1) as f64 * 1e4).ceil() / 1e4
        )))
    }

    fn groups(&self) -> Vec<Group> {
        let mut by_key: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, choices) in self.choices.iter().enumerate() {
            let tensor = &self.base.tensors[choices.tensor];
            let key = match &choices.set {
                Some(set) => format!("{}{}{}", set.before, set.layer, set.after),
                None => format!("{} {}", tensor.row_len_elems(), fused_name(&tensor.names[0])),
            };
            by_key.entry(key).or_default().push(at);
        }
        let mut groups: Vec<Group> = by_key.into_values().map(|members| self.group(members)).collect();
        groups.sort_by_key(|group| group.members[0]);
        groups
    }

    /// The types that all members could have.
    fn group(&self, members: Vec<usize>) -> Group {
        let candidates = |member: usize| &self.choices[member].candidates;
        let types = candidates(members[0]).iter().filter_map(|candidate| {
            let in_member = |&member: &usize| {
                candidates(member).iter().position(|other| other.choice == candidate.choice)
            };
            members.iter().map(in_member).collect()
        });
        let types = types.collect();
        Group { members, types }
    }

    fn item(&self, group: &Group) -> Item {
        let offers = group.types.iter().map(|types| {
            let mut offer = Offer { cost: 0, loss: 0.0 };
            for (&member, &at) in group.members.iter().zip(types) {
                let Choices { tensor, candidates, .. } = &self.choices[member];
                let len_elems = self.base.tensors[*tensor].len_elems();
                offer.cost += encoded_bytes(candidates[at].codec, len_elems);
                offer.loss += len_elems as f64 * self.errors[member][at];
            }
            offer
        });
        Item { offers: offers.collect() }
    }

    /// The result in which group `i` has its option `options[i]`.
    fn fitted(&self, groups: &[Group], items: &[Item], options: &[usize]) -> Result<Fitted> {
        let mut chosen: BTreeMap<(String, String, String), (Choice, BTreeSet<usize>)> = BTreeMap::new();
        for (group, &option) in groups.iter().zip(options) {
            for (&member, &at) in group.members.iter().zip(&group.types[option]) {
                let Choices { tensor, candidates, set } = &self.choices[member];
                let (before, number, after) = match set {
                    Some(Set { before, layer, after }) => ((*before).to_owned(), Some(*layer), after.clone()),
                    None => {
                        let (before, number, after) = numbered(&self.base.tensors[*tensor].names[0]);
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
        let blueprint = super::blueprint(self.source, self.format, &options_with)?;
        let loss: f64 = items.iter().zip(options).map(|(item, &option)| item.offers[option].loss).sum();
        let parameters: u64 =
            self.choices.iter().map(|choices| self.base.tensors[choices.tensor].len_elems()).sum();
        Ok(Fitted { rules: options_with.rules, blueprint, mean_error: loss / parameters.max(1) as f64 })
    }
}

/// The name that tensors which should have one type share.
fn fused_name(name: &str) -> String {
    name.replace("ffn_gate", "ffn_up").replace("gate_proj", "up_proj")
}

/// Bytes of a tensor in its files.
fn stored_bytes(tensor: &super::OutputTensor) -> u64 {
    tensor.placements.iter().map(|placement| placement.len_bytes).sum()
}

fn encoded_bytes(codec: &dyn Codec, len_elems: u64) -> u64 {
    (0..codec.parts().len()).map(|part| requant_formats::codec::part_len_bytes(codec, part, len_elems)).sum()
}
