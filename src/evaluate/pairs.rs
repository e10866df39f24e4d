//! Two models tensor by tensor: what each stores a weight as, in how many bytes, and how far the two are from each other.
//!
//! A role of the family is kept in one tensor here and in several there: experts in a stack, a projection in two halves. Tensors
//! that hold the same roles, directly or through each other, are one pair.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use crate::artifact::Artifact;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::{Error, Result};
use crate::family::{Ecosystem, Role, Tensor};
use crate::opened::Opened;
use crate::pipeline::Sums;

/// Weights that are decoded at once, of each model.
const TILE_ELEMS: usize = 1 << 18;
/// Endings of tensors that belong to the weight of the same name.
const BESIDE: [&str; 2] = [".scale", ".input_scale"];

/// A model, and its tensors as they are stored.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// The model.
    pub model: &'a Opened,
    /// Its tensors.
    pub artifact: &'a Artifact,
}

/// What one model has of a pair, or has alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side {
    /// Names of the tensors.
    pub names: Vec<String>,
    /// Their types, each once.
    pub types: Vec<String>,
    /// Their bytes, scales included.
    pub bytes: u64,
}

/// Tensors of two models that hold the same weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Of the model.
    pub model: Side,
    /// Of the original.
    pub original: Side,
    /// Weights in both.
    pub parameters: u64,
    /// Root mean square of the difference over that of the original; `None` when it was not asked for or is not a number.
    pub relative_error: Option<f64>,
    /// Cosine of the angle between the two; `None` as above.
    pub cosine: Option<f64>,
}

/// Two models side by side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// What both have, in the order of the model's file.
    pub pairs: Vec<Pair>,
    /// What the model has alone, a tensor each.
    pub only_model: Vec<Side>,
    /// What the original has alone.
    pub only_original: Vec<Side>,
    /// Of all weights that both have.
    pub relative_error: Option<f64>,
    /// The same.
    pub cosine: Option<f64>,
}

/// Holds `model` against `original`. Weights are read when `errors` is set; `advance` hears of every so many weights.
///
/// # Errors
/// Models of different families or shapes; what cannot be evaluated; weights that cannot be read.
pub fn pairs(model: Stored, original: Stored, errors: bool, advance: &(dyn Fn(u64) + Sync)) -> Result<Pairs> {
    let stores = (model.model.store()?, original.model.store()?);
    super::check_comparable(stores.0, stores.1)?;
    let (family, other) = (model.model.family()?, original.model.family()?);
    // Families that llama.cpp takes for one have the same tensors.
    if family.gguf.name != other.gguf.name {
        return Err(Error::Request(format!(
            "the models are of different families: {} and {}",
            family.model_type, other.model_type
        )));
    }
    let sides = [Entries::new(model.artifact), Entries::new(original.artifact)];
    let ecosystems = [model.model.ecosystem(), original.model.ecosystem()];
    let tensors = [family.tensors(stores.0.spec()), other.tensors(stores.1.spec())];
    let held = [0, 1].map(|side| sides[side].by_role(&tensors[side], ecosystems[side]));

    let first_original = sides[0].list.len();
    let mut sets = Sets::new(first_original + sides[1].list.len());
    let mut shared: Vec<(Role, usize)> = Vec::new();
    for tensor in &tensors[0] {
        let (Some(here), Some(there)) = (held[0].get(&tensor.role), held[1].get(&tensor.role)) else {
            continue;
        };
        let mut all = here.iter().copied().chain(there.iter().map(|entry| first_original + entry));
        let Some(first) = all.next() else { continue };
        all.for_each(|entry| sets.join(first, entry));
        shared.push((tensor.role, first));
    }

    let sums: Vec<(u64, Sums)> = shared
        .par_iter()
        .map(|&(role, _)| {
            let found = difference(stores.0, stores.1, role, errors)?;
            advance(found.0);
            Ok(found)
        })
        .collect::<Result<_>>()?;
    let mut of_set: BTreeMap<usize, (u64, Sums)> = BTreeMap::new();
    let mut all = Sums::default();
    for (&(_, entry), (parameters, found)) in shared.iter().zip(sums) {
        let set = of_set.entry(sets.of(entry)).or_default();
        set.0 += parameters;
        set.1.add_sums(found);
        all.add_sums(found);
    }

    let mut result = Pairs::default();
    let mut pair_of_set: HashMap<usize, usize> = HashMap::new();
    for (number, entry) in sides[0].list.iter().chain(&sides[1].list).enumerate() {
        let set = sets.of(number);
        let is_model = number < first_original;
        let Some((parameters, sums)) = of_set.get(&set) else {
            let alone = if is_model { &mut result.only_model } else { &mut result.only_original };
            alone.push(entry.clone());
            continue;
        };
        let pair = *pair_of_set.entry(set).or_insert_with(|| {
            result.pairs.push(Pair {
                model: Side::default(),
                original: Side::default(),
                parameters: *parameters,
                relative_error: sums.relative_error().filter(|_| errors),
                cosine: sums.cosine().filter(|_| errors),
            });
            result.pairs.len() - 1
        });
        let pair = &mut result.pairs[pair];
        if is_model { &mut pair.model } else { &mut pair.original }.add(entry);
    }
    result.relative_error = all.relative_error().filter(|_| errors);
    result.cosine = all.cosine().filter(|_| errors);
    Ok(result)
}

impl Side {
    fn add(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        for name in &other.types {
            if !self.types.contains(name) {
                self.types.push(name.clone());
            }
        }
        self.bytes += other.bytes;
    }
}

/// The tensors of an artifact, with what belongs to each.
pub(super) struct Entries {
    pub(super) list: Vec<Side>,
    by_key: HashMap<String, usize>,
}

impl Entries {
    pub(super) fn new(artifact: &Artifact) -> Self {
        let mut entries = Self { list: Vec::new(), by_key: HashMap::new() };
        // Weights first: scales are added to theirs.
        let (weights, others): (Vec<_>, Vec<_>) =
            artifact.tensors.iter().partition(|tensor| tensor.is_weight);
        for tensor in weights.into_iter().chain(others) {
            let key = key(&tensor.name).to_owned();
            match entries.by_key.get(&key).filter(|_| !tensor.is_weight) {
                Some(&entry) => entries.list[entry].bytes += tensor.bytes,
                None => {
                    entries.by_key.insert(key, entries.list.len());
                    entries.list.push(Side {
                        names: vec![tensor.name.clone()],
                        types: vec![tensor.type_name.clone()],
                        bytes: tensor.bytes,
                    });
                }
            }
        }
        entries
    }

    /// The one of this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_key.get(key(name)).copied()
    }

    /// Which of them hold each role, for those that are there.
    pub(super) fn by_role(&self, tensors: &[Tensor], ecosystem: Ecosystem) -> HashMap<Role, Vec<usize>> {
        let held = |tensor: &Tensor| {
            let names = tensor.places(ecosystem).iter().map(|place| {
                place.names().map(|name| self.by_key.get(key(name)).copied()).collect::<Option<Vec<usize>>>()
            });
            names.flatten().next()
        };
        tensors.iter().filter_map(|tensor| Some((tensor.role, held(tensor)?))).collect()
    }
}

/// A name without what tells the parts of a quantized matrix from each other.
pub(super) fn key(name: &str) -> &str {
    let name = name.split_once(".weight").map_or(name, |(before, _)| before);
    BESIDE.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// Weights with this role, and the sums over their differences.
fn difference(
    model: &dyn WeightStore,
    original: &dyn WeightStore,
    role: Role,
    errors: bool,
) -> Result<(u64, Sums)> {
    let (a, b) = (model.weight(role)?, original.weight(role)?);
    if (a.rows, a.cols) != (b.rows, b.cols) {
        let shape = |weight: &Weight| {
            format!("{} in {} is [{}, {}]", weight.name, weight.file, weight.rows, weight.cols)
        };
        return Err(Error::Request(format!("the models differ in shape: {}, {}", shape(&a), shape(&b))));
    }
    let mut sums = Sums::default();
    let parameters = (a.rows * a.cols) as u64;
    if !errors {
        return Ok((parameters, sums));
    }
    let unit = a.unit_rows.max(b.unit_rows).max(1);
    let step = (TILE_ELEMS / a.cols.max(1) / unit).max(1) * unit;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for first in (0..a.rows).step_by(step) {
        let rows = first..(first + step).min(a.rows);
        let len = rows.len() * a.cols;
        x.resize(len, 0.0);
        y.resize(len, 0.0);
        original.read_rows(&b, rows.clone(), &mut x)?;
        model.read_rows(&a, rows, &mut y)?;
        sums.add(&x, &y);
    }
    Ok((parameters, sums))
}

/// Sets of numbers that are joined.
struct Sets {
    parent: Vec<usize>,
}

impl Sets {
    fn new(len: usize) -> Self {
        Self { parent: (0..len).collect() }
    }

    /// The least number of the set that `number` is in.
    fn of(&mut self, mut number: usize) -> usize {
        while self.parent[number] != number {
            self.parent[number] = self.parent[self.parent[number]];
            number = self.parent[number];
        }
        number
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.of(a), self.of(b));
        let (least, other) = (a.min(b), a.max(b));
        self.parent[other] = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_matrix_have_one_key() {
        for name in
            ["a.b.weight", "a.b.weight_scale_inv", "a.b.weight_packed", "a.b", "a.b.scale", "a.b.input_scale"]
        {
            assert_eq!(key(name), "a.b", "{name}");
        }
        assert_eq!(key("a.b.bias"), "a.b.bias");
    }

    #[test]
    fn sets_are_joined() {
        let mut sets = Sets::new(6);
        for (a, b) in [(5, 4), (1, 2), (4, 2)] {
            sets.join(a, b);
        }
        let of: Vec<usize> = (0..6).map(|number| sets.of(number)).collect();
        assert_eq!(of, [0, 1, 1, 3, 1, 1]);
    }
}
