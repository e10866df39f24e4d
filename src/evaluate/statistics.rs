//! What the weights of one tensor are like: their range, mean, spread and histogram.

use std::cmp::Reverse;

use super::pairs::{Entries, Stored, key};
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::family::Role;

/// Weights that are decoded at once.
const TILE_ELEMS: usize = 1 << 20;
/// Bins of a histogram.
const BINS: usize = 21;
/// Names that are proposed for one that is not there.
const PROPOSED: usize = 3;

/// What the weights of a tensor are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The tensor, and others if the same matrix is kept in several.
    pub names: Vec<String>,
    /// Weights.
    pub elements: u64,
    /// The least of them.
    pub minimum: f32,
    /// The greatest.
    pub maximum: f32,
    /// Their mean.
    pub mean: f64,
    /// Root mean square of their distance from the mean.
    pub deviation: f64,
    /// How many are 0.
    pub zeros: u64,
    /// How many are in each of as many equal parts of the range, from the minimum to the maximum.
    pub histogram: Vec<u64>,
}

impl Statistics {
    /// The limits of a part of the histogram.
    pub fn bin(&self, number: usize) -> (f64, f64) {
        let (least, greatest) = (f64::from(self.minimum), f64::from(self.maximum));
        let at =
            |number: usize| least + (greatest - least) * number as f64 / self.histogram.len().max(1) as f64;
        (at(number), at(number + 1))
    }
}

/// Reads all weights of the tensor that is called `name`.
///
/// # Errors
/// When there is no such tensor, it holds no weights, or they cannot be read.
pub fn statistics(model: Stored, name: &str) -> Result<Statistics> {
    let store = model.model.store()?;
    let entries = Entries::new(model.artifact);
    let Some(entry) = entries.find(name) else { return Err(unknown(model, name)) };
    let tensors = model.model.family()?.tensors(store.spec());
    let held = entries.by_role(&tensors, model.model.ecosystem());
    let holds = |role: &Role| held.get(role).is_some_and(|entries| entries.contains(&entry));
    let roles: Vec<Role> = tensors.iter().map(|tensor| tensor.role).filter(holds).collect();
    if roles.is_empty() {
        return Err(Error::Request(format!("{name}: holds no weights of the model")));
    }
    let mut names: Vec<String> = Vec::new();
    for entry in roles.iter().filter_map(|role| held.get(role)).flatten() {
        for name in &entries.list[*entry].names {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }

    let mut found = Statistics {
        names,
        elements: 0,
        minimum: f32::INFINITY,
        maximum: f32::NEG_INFINITY,
        mean: 0.0,
        deviation: 0.0,
        zeros: 0,
        histogram: vec![0; BINS],
    };
    let mut sum = 0.0;
    each(store, &roles, &mut |weights| {
        found.elements += weights.len() as u64;
        for &weight in weights {
            found.minimum = found.minimum.min(weight);
            found.maximum = found.maximum.max(weight);
            found.zeros += u64::from(weight == 0.0);
            sum += f64::from(weight);
        }
    })?;
    found.mean = sum / found.elements.max(1) as f64;
    let (least, width) = (f64::from(found.minimum), f64::from(found.maximum) - f64::from(found.minimum));
    let mut squares = 0.0;
    each(store, &roles, &mut |weights| {
        for &weight in weights {
            let weight = f64::from(weight);
            squares += (weight - found.mean).powi(2);
            // All are the same where the range has no width.
            let part = if width > 0.0 { (weight - least) / width * BINS as f64 } else { 0.0 };
            found.histogram[(part as usize).min(BINS - 1)] += 1;
        }
    })?;
    found.deviation = (squares / found.elements.max(1) as f64).sqrt();
    Ok(found)
}

/// Hands all weights with these roles to `take`, some at a time.
fn each(store: &dyn WeightStore, roles: &[Role], take: &mut dyn FnMut(&[f32])) -> Result<()> {
    let mut tile = Vec::new();
    for &role in roles {
        let weight = store.weight(role)?;
        let unit = weight.unit_rows.max(1);
        let step = (TILE_ELEMS / weight.cols.max(1) / unit).max(1) * unit;
        for first in (0..weight.rows).step_by(step) {
            let rows = first..(first + step).min(weight.rows);
            tile.resize(rows.len() * weight.cols, 0.0);
            store.read_rows(&weight, rows, &mut tile)?;
            take(&tile);
        }
    }
    Ok(())
}

fn unknown(model: Stored, name: &str) -> Error {
    let mut near: Vec<(u64, &str)> = model
        .artifact
        .tensors
        .iter()
        // In thousandths: what is compared has to have an order.
        .map(|tensor| ((1000.0 * strsim::jaro_winkler(key(&tensor.name), name)) as u64, tensor.name.as_str()))
        .collect();
    near.sort_by_key(|&(likeness, _)| Reverse(likeness));
    let near: Vec<&str> = near.into_iter().map(|(_, name)| name).take(PROPOSED).collect();
    Error::Request(format!("no tensor {}; near are {}", crate::small::shown(name), near.join(", ")))
}
