//! Measures what candidate types cost, as gradients and inputs of each matrix pass by.
//!
//! Of a large matrix some rows are looked at, in runs: those of a small one all. With `dW` what a type changes of them, `g`
//! the gradient of a window, `x` the inputs, each with the factor that its row has, and `share` the part of rows:
//!
//! ```text
//! inner[window] += <g, dW> / sqrt(share)
//! error         += sum over inputs of |dW x|^2 / (tokens share)        = tr(dW H dW^T)
//! ```
//!
//! Contributions of rows are added as if their signs had nothing to do with each other, hence the square root.
//!
//! Legend: R rows that are looked at, K columns.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use rayon::prelude::*;

mod outputs;
mod relief;
mod sample;

use outputs::{Weighed, dot, squares, under};
use relief::Relief;
use sample::{SAMPLE_ELEMS, sample, wanted};

use super::Sink;
use crate::calibration::gram::{Square, gram};
use crate::calibration::has_query_latent;
use crate::calibration::inputs::Kind;
use crate::checkpoint::{Weight, WeightStore};
use crate::error::Result;
use crate::family::{Role, Turn};
use crate::model::linear::{Input, Picks};
use crate::model::matmul::{View, outer_products};
use crate::model::states::States;
use crate::opened::Opened;
use crate::plan::Blueprint;
use crate::plan::budget::{Candidate, Choices};

/// Rows of a weight that become rows of tensors whose type is chosen.
#[derive(Debug, Clone)]
struct Part {
    /// Number of the choice.
    choice: usize,
    /// Rows, by the weight's role.
    rows: Range<usize>,
    /// Whether columns become rows.
    is_transposed: bool,
}

/// What a candidate was found to do.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// By window.
    pub(super) inner: Vec<f64>,
    pub(super) error: f64,
}

/// Looks at gradients.
pub(super) struct Meter<'a> {
    store: &'a dyn WeightStore,
    choices: &'a [Choices],
    /// Of each choice the candidates that change something.
    lossy: Vec<Vec<usize>>,
    parts: HashMap<Role, Vec<Part>>,
    tokens: usize,
    context: usize,
    /// By choice and candidate.
    found: Vec<Vec<Found>>,
    relief: Relief,
    has_latent: bool,
}

impl<'a> Meter<'a> {
    /// For `tokens` tokens in windows of `context`. `errors` are the relative squared errors of candidates.
    ///
    /// # Errors
    /// When the model cannot be evaluated.
    pub(super) fn new(
        opened: &'a Opened,
        base: &Blueprint,
        choices: &'a [Choices],
        errors: &[Vec<f64>],
        tokens: usize,
        context: usize,
    ) -> Result<Self> {
        let store = opened.store()?;
        let mut of_source: HashMap<usize, Vec<(usize, Range<usize>, bool)>> = HashMap::new();
        for (choice, choices) in choices.iter().enumerate() {
            for piece in choices.tensors.iter().flat_map(|&tensor| &base.tensors[tensor].pieces) {
                let is_transposed = piece.turn == Turn::Transposed;
                of_source.entry(piece.source).or_default().push((choice, piece.rows.clone(), is_transposed));
            }
        }
        let catalogue = opened.catalogue();
        let ids: HashMap<&str, usize> =
            catalogue.tensors().iter().enumerate().map(|(id, tensor)| (tensor.name.as_str(), id)).collect();
        let mut parts: HashMap<Role, Vec<Part>> = HashMap::new();
        for tensor in opened.family()?.tensors(store.spec()) {
            let Some((name, first)) = store.stored(tensor.role) else { continue };
            let (Some(id), Ok(weight)) = (ids.get(name.as_str()), store.weight(tensor.role)) else {
                continue;
            };
            for (choice, rows, is_transposed) in of_source.get(id).into_iter().flatten() {
                let (start, end) = (rows.start.max(first), rows.end.min(first + weight.rows));
                if start < end {
                    let rows = start - first..end - first;
                    let part = Part { choice: *choice, rows, is_transposed: *is_transposed };
                    parts.entry(tensor.role).or_default().push(part);
                }
            }
        }
        let lossy = choices.iter().zip(errors).map(|(choices, errors)| {
            let candidates = choices.candidates.iter().zip(errors).enumerate();
            let lossy = candidates.filter(|(_, (candidate, error))| !candidate.is_copied && **error > 0.0);
            lossy.map(|(number, _)| number).collect()
        });
        let none = Found { inner: vec![0.0; tokens.div_ceil(context)], error: 0.0 };
        let found = choices.iter().map(|choices| vec![none.clone(); choices.candidates.len()]).collect();
        Ok(Self {
            store,
            choices,
            lossy: lossy.collect(),
            parts,
            tokens,
            context,
            found,
            relief: Relief::default(),
            has_latent: has_query_latent(store),
        })
    }

    /// What each candidate of `part` that changes something changes of `rows` of a weight: each `[R, K]`.
    fn changes(&self, part: &Part, weight: &Weight, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        let cols = weight.cols;
        let mut w_RK = vec![0.0; rows.len() * cols];
        let mut at = 0;
        while at < rows.len() {
            let mut end = at + 1;
            while end < rows.len() && rows[end] == rows[end - 1] + 1 {
                end += 1;
            }
            self.store.read_rows(weight, rows[at]..rows[end - 1] + 1, &mut w_RK[at * cols..end * cols])?;
            at = end;
        }
        let turn = |data: &[f32], cols: usize| {
            let mut turned = Vec::new();
            Turn::Transposed.apply(data, cols, &mut turned);
            turned
        };
        let change = |candidate: &Candidate| {
            let mut stored = if part.is_transposed {
                turn(&candidate.stored(&turn(&w_RK, cols), |_| {}), rows.len())
            } else {
                candidate.stored(&w_RK, |_| {})
            };
            stored.iter_mut().zip(&w_RK).for_each(|(stored, w)| *stored -= w);
            stored
        };
        let candidates = &self.choices[part.choice].candidates;
        Ok(self.lossy[part.choice].par_iter().map(|&number| change(&candidates[number])).collect())
    }

    /// What was found, by choice and candidate; and of each choice how much of its error is left when it is rounded with feedback.
    pub(super) fn finish(self) -> (Vec<Vec<Found>>, Vec<f64>) {
        let left = self.relief.finish(self.choices.len());
        (self.found, left)
    }

    /// Adds to what was found of the candidates of a choice.
    fn add(&mut self, choice: usize, windows: &[(usize, Vec<f64>)], errors: &[f64], share: f64) {
        for (at, &number) in self.lossy[choice].iter().enumerate() {
            let found = &mut self.found[choice][number];
            for (window, inner) in windows {
                found.inner[*window] += inner[at] / share.sqrt();
            }
            found.error += errors[at] / (self.tokens as f64 * share);
        }
    }

    /// Runs of the rows of an input that are of one window.
    fn windows(&self, rows: usize, picks: Option<&Picks>) -> Vec<(usize, Range<usize>)> {
        let window = |row: usize| picks.map_or(row, |picks| picks[row].0) / self.context;
        let mut windows: Vec<(usize, Range<usize>)> = Vec::new();
        for row in 0..rows {
            match windows.last_mut() {
                Some((last, run)) if *last == window(row) => run.end = row + 1,
                _ => windows.push((window(row), row..row + 1)),
            }
        }
        windows
    }
}

impl Sink for Meter<'_> {
    fn product(
        &mut self,
        role: Role,
        first: usize,
        x: &Input,
        picks: Option<&Picks>,
        dy: &States,
    ) -> Result<()> {
        let parts = self.parts.get(&role).cloned().unwrap_or_default();
        if parts.is_empty() {
            return Ok(());
        }
        let weight = self.store.weight(role)?;
        let inputs = Weighed { x, picks };
        let windows = self.windows(x.rows(), picks);
        let mut sums: Option<Square> = None;
        let kind = Kind::of(role, self.has_latent);
        for part in parts {
            let rows = part.rows.start.max(first)..part.rows.end.min(first + dy.cols());
            if let Some(kind) = kind.filter(|_| !part.is_transposed && !rows.is_empty()) {
                self.relief.add((part.choice, rows.len()), (role, kind), &inputs)?;
            }
            // Columns that become rows are looked at whole, and come whole.
            if rows.is_empty()
                || (part.is_transposed && rows != part.rows)
                || self.lossy[part.choice].is_empty()
            {
                continue;
            }
            let wanted = if part.is_transposed { rows.len() } else { wanted(rows.len(), &weight) };
            let sample = sample(&rows, wanted);
            let changes = self.changes(&part, &weight, &sample)?;
            let columns: Vec<usize> = sample.iter().map(|row| row - first).collect();
            let found = windows.par_iter().map(|(window, run)| {
                let (x_all, dy_all) = (x.read(run.clone())?, dy.read(run.clone())?);
                let dy_R: Vec<f32> = dy_all
                    .chunks_exact(dy.cols())
                    .flat_map(|row| columns.iter().map(|&column| row[column]))
                    .collect();
                let gradient =
                    outer_products(View::new(&dy_R, columns.len()), View::new(&x_all, weight.cols));
                Ok((*window, changes.iter().map(|change| dot(&gradient, change)).collect()))
            });
            let found = found.collect::<Result<Vec<(usize, Vec<f64>)>>>()?;
            // Whichever takes fewer operations.
            let errors = if sample.len() * changes.len() > weight.cols {
                if sums.is_none() {
                    sums = Some(gram(&inputs)?);
                }
                changes.iter().map(|change| sums.as_ref().map_or(0.0, |sums| under(change, sums))).collect()
            } else {
                squares(&changes, &inputs)?
            };
            self.add(part.choice, &found, &errors, sample.len() as f64 / rows.len() as f64);
        }
        Ok(())
    }

    fn lookup(&mut self, tokens: &[u32], scale: f32, gradient: &States) -> Result<()> {
        let parts = self.parts.get(&Role::TokenEmbedding).cloned().unwrap_or_default();
        let cols = gradient.cols();
        let sum = if parts.is_empty() { Square::default() } else { gram(gradient)? };
        for part in parts.iter().filter(|part| !part.is_transposed) {
            self.relief.know(part.choice, part.rows.len(), &sum);
            let weight = self.store.weight(Role::TokenEmbedding)?;
            let distinct: BTreeSet<usize> = tokens.iter().map(|&token| token as usize).collect();
            let distinct: Vec<usize> = distinct.into_iter().filter(|row| part.rows.contains(row)).collect();
            for rows in distinct.chunks((SAMPLE_ELEMS / cols).max(1)) {
                let changes = self.changes(part, &weight, rows)?;
                let mut windows: Vec<(usize, Vec<f64>)> = Vec::new();
                let mut errors = vec![0.0; changes.len()];
                for (position, &token) in tokens.iter().enumerate() {
                    let Ok(row) = rows.binary_search(&(token as usize)) else { continue };
                    let g = gradient.read(position..position + 1)?;
                    let window = position / self.context;
                    if windows.last().is_none_or(|(last, _)| *last != window) {
                        windows.push((window, vec![0.0; changes.len()]));
                    }
                    let Some((_, inner)) = windows.last_mut() else { continue };
                    let of_candidate = changes.iter().zip(inner).zip(&mut errors);
                    for ((change, inner), error) in of_candidate {
                        let change = &change[row * cols..(row + 1) * cols];
                        *inner += f64::from(scale) * dot(&g, change);
                        *error += f64::from(scale) * f64::from(scale) * dot(change, change);
                    }
                }
                self.add(part.choice, &windows, &errors, 1.0);
            }
        }
        Ok(())
    }
}
