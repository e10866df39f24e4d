//! Rounds one matrix with error feedback: its rows are independent, so they go in tiles, side by side.
//!
//! Legend: N rows of a tile, K columns.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use requant_formats::codec::{self, Codec};
use requant_formats::feedback::{Panel, Rounder};

use super::gram::{Factor, Square, in_tiles};
use crate::error::Result;
use crate::plan::OutputTensor;

/// Rows of a tile.
const ROWS: usize = 64;
/// Columns of a panel, at least: errors go to the columns behind it in one product.
const PANEL: usize = 128;
/// What is added to the diagonal of `H`, of its mean.
const DAMPING: f64 = 0.01;
/// The most of it that is tried: with so much, columns hardly hang together any more.
const MOST_DAMPING: f64 = 1e3;

/// What columns share scales in a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lengths {
    /// Columns of a group.
    group: usize,
    /// Columns of a part of it that has a scale of its own, or of the whole group.
    sub_block: usize,
}

impl Lengths {
    pub(super) fn of(codec: &dyn Codec) -> Self {
        let group = codec.group_len_elems();
        Self { group, sub_block: codec.two_levels().map_or(group, |levels| levels.sub_len) }
    }
}

/// The order in which columns are rounded: whole groups, whole sub-blocks of each, and the columns of these.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Numbers of the groups.
    groups: Vec<usize>,
    /// Places of columns in their groups.
    places: Vec<u16>,
    /// Columns.
    columns: Vec<usize>,
}

impl Order {
    /// What carries most comes first, so that all others can make up for it.
    fn new(h: &Square, lengths: Lengths) -> Self {
        let weight = |column: usize| h.data[column * h.cols + column];
        // Runs of `len` columns within `of`, those that carry most first.
        let falling = |of: Range<usize>, len: usize| -> Vec<usize> {
            let mut runs: Vec<(usize, f32)> =
                of.step_by(len).map(|first| (first, (first..first + len).map(weight).sum())).collect();
            runs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            runs.into_iter().map(|(first, _)| first).collect()
        };
        let Lengths { group, sub_block } = lengths;
        let firsts = falling(0..h.cols, group);
        let columns: Vec<usize> = firsts
            .iter()
            .flat_map(|&first| falling(first..first + group, sub_block))
            .flat_map(|first| falling(first..first + sub_block, 1))
            .collect();
        let places = columns.iter().map(|column| (column % group) as u16).collect();
        Self { groups: firsts.iter().map(|first| first / group).collect(), places, columns }
    }
}

/// How the columns of matrices with one input hang together.
#[derive(Debug)]
pub(super) struct Feedback {
    order: Order,
    factor: Factor,
    /// Damping that was needed, of the mean of the diagonal.
    pub(super) damping: f64,
}

impl Feedback {
    /// From the sum of outer products of inputs, which are not all zero, for formats with groups of these lengths.
    /// `None` when they hold no numbers, as after inputs whose squares are beyond `f32`.
    pub(super) fn new(h: &Square, lengths: Lengths) -> Option<Self> {
        let mean = h.mean_diagonal();
        let order = Order::new(h, lengths);
        let n = h.cols;
        let mut damping = DAMPING;
        while damping <= MOST_DAMPING {
            let mut permuted = Square::new(n, n);
            permuted.data.par_chunks_mut(n).zip(&order.columns).for_each(|(row, &of)| {
                let of = &h.data[of * n..][..n];
                row.iter_mut()
                    .zip(&order.columns)
                    .for_each(|(value, &column)| *value = of[column] / mean as f32);
            });
            (0..n).for_each(|k| permuted.data[k * n + k] += damping as f32);
            if let Some(factor) = Factor::new(permuted) {
                return Some(Self { order, factor, damping });
            }
            damping *= 10.0;
        }
        None
    }

    /// Whether it needed more damping than others.
    pub(super) fn is_damped(&self) -> bool {
        self.damping > DAMPING
    }
}

/// How much of the error of rounding is left with feedback under `h`, if every column is rounded as coarsely: the mean of what
/// remains of each column when those that are rounded later make up for it, of the mean of the diagonal.
pub(crate) fn left_by_feedback(h: &Square) -> f64 {
    let Some(feedback) = Feedback::new(h, Lengths { group: 1, sub_block: 1 }) else { return 1.0 };
    let costs = &feedback.factor.costs;
    let mean = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() / costs.len().max(1) as f64;
    mean / (1.0 + feedback.damping)
}

/// What a matrix should be instead of itself.
pub(super) enum Correction<'a> {
    /// Itself.
    None,
    /// What answers other inputs as it would the right ones: the sum of products of differences and inputs, `[K, K]`.
    Target(&'a Square),
    /// What brings the hidden states behind it to the right ones: the sum of products of what is missing there without
    /// it and its inputs, `[rows, K]`; and that of its inputs.
    Residual(&'a Square, &'a Square),
}

/// One matrix and how it is to be rounded.
pub(super) struct Task<'a> {
    pub(super) output: &'a OutputTensor,
    pub(super) tensor_scale: f32,
    pub(super) feedback: &'a Feedback,
    pub(super) correction: Correction<'a>,
    /// Mean of the diagonal that `feedback` was divided by.
    pub(super) mean: f32,
}

/// Reads some rows of a matrix.
type Read<'a> = &'a (dyn Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync);

/// Encoded rows.
pub(super) struct Encoded {
    pub(super) rows: Range<usize>,
    /// Bytes by part, row after row.
    pub(super) parts: Vec<Vec<u8>>,
}

impl Encoded {
    /// The same rows as those of a tensor in which the matrix begins with row `first`.
    pub(super) fn behind(self, first: usize) -> Self {
        Self { rows: self.rows.start + first..self.rows.end + first, parts: self.parts }
    }
}

impl Task<'_> {
    /// Encodes `rows`; `read` gives the weights of some of them, and `decoded` gets what is stored, `[rows, K]`.
    pub(super) fn encode(&self, rows: Range<usize>, read: Read<'_>, decoded: &mut [f32]) -> Result<Encoded> {
        let cols = self.output.row_len_elems();
        let codec = self.output.codec;
        let row_bytes: Vec<usize> = (0..codec.parts().len())
            .map(|part| codec::part_len_bytes(codec, part, cols as u64) as usize)
            .collect();
        let tiles: Vec<Result<Vec<Vec<u8>>>> = decoded
            .par_chunks_mut(ROWS * cols)
            .enumerate()
            .map(|(tile, decoded)| {
                let first = rows.start + tile * ROWS;
                let count = decoded.len() / cols;
                read(first..first + count, decoded)?;
                let mut parts: Vec<Vec<u8>> = row_bytes.iter().map(|bytes| vec![0; count * bytes]).collect();
                self.tile(first, decoded, &mut parts, &row_bytes);
                let parts_of: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                codec.decode_under(self.tensor_scale, &parts_of, decoded);
                Ok(parts)
            })
            .collect();
        let mut parts: Vec<Vec<u8>> = vec![Vec::new(); row_bytes.len()];
        for tile in tiles {
            parts.iter_mut().zip(tile?).for_each(|(part, more)| part.extend(more));
        }
        Ok(Encoded { rows, parts })
    }

    /// Encodes a tile whose first row is row `first` of the matrix.
    fn tile(&self, first: usize, weights: &mut [f32], parts: &mut [Vec<u8>], row_bytes: &[usize]) {
        let cols = self.output.row_len_elems();
        let rows = weights.len() / cols;
        let Feedback { order, factor, .. } = self.feedback;
        let permuted = |data: &[f32]| -> Vec<f32> {
            data.chunks_exact(cols).flat_map(|row| order.columns.iter().map(|&column| row[column])).collect()
        };
        let mut wanted = permuted(weights);
        if let Some(mut missing) = self.missing(first, weights) {
            missing.iter_mut().for_each(|value| *value /= self.mean);
            let mut missing = permuted(&missing);
            factor.solve(&mut missing);
            wanted.iter_mut().zip(&missing).for_each(|(value, more)| *value += more);
        }
        let rounding = self.output.rounding;
        let prepare = move |values: &mut Vec<f32>| rounding.apply(values);
        let Some(mut rounder) = Rounder::new(self.output.codec, self.tensor_scale, &prepare) else { return };
        let group_len = self.output.codec.group_len_elems();
        let panel_len = group_len * PANEL.div_ceil(group_len);
        let mut current = wanted.clone();
        let mut start = 0;
        while start < cols {
            let end = cols.min(start + panel_len);
            let width = end - start;
            let shares: Vec<f32> = (start..end)
                .flat_map(|row| factor.shares.data[row * cols + start..row * cols + end].iter().copied())
                .collect();
            let panel = Panel {
                shares: &shares,
                costs: &factor.costs[start..end],
                places: &order.places[start..end],
                groups: &order.groups[start / group_len..end / group_len],
            };
            let mut errors = vec![0.0; rows * width];
            for row in 0..rows {
                let mut bytes: Vec<&mut [u8]> = parts
                    .iter_mut()
                    .zip(row_bytes)
                    .map(|(part, bytes)| &mut part[row * bytes..(row + 1) * bytes])
                    .collect();
                let at = row * cols + start..row * cols + end;
                rounder.panel(
                    panel,
                    &wanted[at.clone()],
                    &mut current[at],
                    &mut bytes,
                    &mut errors[row * width..(row + 1) * width],
                );
            }
            let errors = MatRef::from_row_major_slice(&errors, rows, width);
            let shares = MatRef::from_row_major_slice(&factor.shares.data, cols, cols);
            let later =
                MatMut::from_row_major_slice_mut(&mut current, rows, cols).subcols_mut(end, cols - end);
            in_tiles(later, end, &|y, first, count| {
                matmul(y, Accum::Add, errors, shares.submatrix(start, first, width, count), 1.0, Par::Seq);
            });
            start = end;
        }
    }

    /// What the correction adds, before it is divided by `H`.
    fn missing(&self, first: usize, weights: &[f32]) -> Option<Vec<f32>> {
        let cols = self.output.row_len_elems();
        let rows = weights.len() / cols;
        let product = |with: &Square, start: Vec<f32>, factor: f32| -> Vec<f32> {
            let mut y = start;
            let w = MatRef::from_row_major_slice(weights, rows, cols);
            let with = MatRef::from_row_major_slice(&with.data, cols, cols);
            in_tiles(MatMut::from_row_major_slice_mut(&mut y, rows, cols), 0, &|y, first, count| {
                matmul(y, Accum::Add, w, with.subcols(first, count), factor, Par::Seq);
            });
            y
        };
        match &self.correction {
            Correction::None => None,
            Correction::Target(differences) => Some(product(differences, vec![0.0; weights.len()], 1.0)),
            Correction::Residual(wanted, h) => {
                Some(product(h, wanted.data[first * cols..][..weights.len()].to_vec(), -1.0))
            }
        }
    }
}

/// Whether a format can be rounded in this way.
pub(super) fn can(codec: &dyn Codec) -> bool {
    const LONGEST: usize = 256;
    codec.ladder().is_some() && codec.group_len_elems() <= LONGEST
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: Lengths = Lengths { group: 32, sub_block: 16 };

    /// The sum of outer products of one vector, `times` over: of all directions only one is known.
    fn of_one(vector: &[f32], times: f32) -> Square {
        let mut h = Square::new(vector.len(), vector.len());
        for (row, a) in h.data.chunks_exact_mut(vector.len()).zip(vector) {
            row.iter_mut().zip(vector).for_each(|(value, b)| *value = times * a * b);
        }
        h
    }

    #[test]
    fn directions_that_are_not_known_are_damped_and_what_is_no_number_is_told() {
        let vector: Vec<f32> = (0..64u8).map(|i| f32::from(i % 7) + 0.5).collect();
        let found = Feedback::new(&of_one(&vector, 3.0), GROUPS).unwrap();
        assert!(!found.is_damped() && found.factor.costs.iter().all(|cost| *cost > 0.0));
        let mut h = of_one(&vector, 1.0);
        // Not one of inputs: below zero in one direction, so that more has to be added.
        h.data[0] = -0.5 * h.mean_diagonal() as f32;
        assert!(Feedback::new(&h, GROUPS).unwrap().is_damped());
        for value in [f32::NAN, f32::INFINITY] {
            h.data[5] = value;
            h.data[5 * 64] = value;
            assert!(Feedback::new(&h, GROUPS).is_none(), "{value}");
        }
        assert!(Feedback::new(&of_one(&vector, f32::MAX), GROUPS).is_none());
    }

    #[test]
    fn feedback_leaves_all_of_the_error_where_columns_have_nothing_in_common_and_little_where_they_have_all()
    {
        let mut own = Square::new(64, 64);
        (0..64).for_each(|k| own.data[k * 64 + k] = 0.5 + k as f32);
        assert!((left_by_feedback(&own) - 1.0).abs() < 1e-5);
        // One direction: its first column carries it, and of the others the damping remains.
        let left = left_by_feedback(&of_one(&[1.0; 64], 5.0));
        assert!(left > 0.0 && left < 0.05, "{left}");
        assert_eq!(left_by_feedback(&of_one(&[f32::NAN; 64], 1.0)), 1.0);
    }

    #[test]
    fn columns_that_carry_most_come_first_and_groups_stay_whole() {
        let vector: Vec<f32> = (0..64u16).map(|i| f32::from((i * 37) % 64)).collect();
        let order = Order::new(&of_one(&vector, 1.0), GROUPS);
        let mut columns = order.columns.clone();
        columns.sort_unstable();
        assert!(columns.into_iter().eq(0..64));
        for (number, group) in order.groups.iter().enumerate() {
            let own = &order.columns[number * 32..(number + 1) * 32];
            assert!(own.iter().all(|column| column / 32 == *group));
            for sub_block in own.chunks(16) {
                assert!(sub_block.iter().all(|column| column / 16 == sub_block[0] / 16));
                assert!(sub_block.windows(2).all(|pair| vector[pair[0]] >= vector[pair[1]]));
            }
            let carried =
                |own: &[usize]| own.iter().map(|&column| vector[column] * vector[column]).sum::<f32>();
            assert!(carried(&own[..16]) >= carried(&own[16..]));
            let places = &order.places[number * 32..(number + 1) * 32];
            assert!(own.iter().zip(places).all(|(column, place)| column % 32 == usize::from(*place)));
        }
    }
}
