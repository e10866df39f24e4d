//! Backwards through one head of attention in one window: scores, cap, softmax, sum of values.
//!
//! Legend: W tokens of the window, H width of queries and keys, V of values. `p` are the weights of values.
//!
//! ```text
//! dv = p^T do        dp = do v^T        ds = p (dp - sum of p dp) slope        dq = ds k        dk = ds^T q
//! ```
//!
//! where `slope` is how much a capped and scaled score changes with the product of query and key. A score for no token takes its part of
//! the softmax and says nothing, so that all of this stays.

use crate::model::exponential::{soft_cap, softmax, softmax_beside};
use crate::model::matmul::{Into, View, outer_products, product, product_transposed};

/// How products of queries and keys become weights of values.
pub(super) struct Scores {
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
    /// Tokens that a token sees, itself included.
    pub(super) window: usize,
    /// A score for no token.
    pub(super) sink: Option<f32>,
}

/// A head, or its gradient.
pub(super) struct HeadParts {
    /// `[W, H]`.
    pub(super) query: Vec<f32>,
    /// `[W, H]`.
    pub(super) key: Vec<f32>,
    /// `[W, V]`.
    pub(super) value: Vec<f32>,
}

impl Scores {
    /// The gradient of a head from that of what it says, `[W, V]`.
    pub(super) fn back(
        &self,
        head: &HeadParts,
        dout_WV: &[f32],
        key_dim: usize,
        value_dim: usize,
    ) -> HeadParts {
        let len = dout_WV.len() / value_dim;
        let query = View::new(&head.query, key_dim);
        let key = View::new(&head.key, key_dim);
        let mut weights_WW = vec![0.0; len * len];
        product_transposed(query, key, &mut weights_WW, len, 0, Into::Replace);
        let mut slopes_WW = vec![0.0; len * len];
        for (position, (row, slopes)) in
            weights_WW.chunks_exact_mut(len).zip(slopes_WW.chunks_exact_mut(len)).enumerate()
        {
            let seen = (position + 1).saturating_sub(self.window)..position + 1;
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let (row, slopes) = (&mut row[seen.clone()], &mut slopes[seen]);
            let scale = match self.cap {
                None => {
                    slopes.fill(self.scale);
                    self.scale
                }
                Some(cap) => {
                    soft_cap(row, self.scale, cap);
                    for (slope, capped) in slopes.iter_mut().zip(&*row) {
                        *slope = self.scale * (1.0 - (capped / cap) * (capped / cap));
                    }
                    1.0
                }
            };
            match self.sink {
                None => softmax(row, scale),
                Some(sink) => softmax_beside(row, scale, sink),
            }
        }
        let dout = View::new(dout_WV, value_dim);
        let value = outer_products(View::new(&weights_WW, len), dout);
        let mut dscores_WW = vec![0.0; len * len];
        product_transposed(dout, View::new(&head.value, value_dim), &mut dscores_WW, len, 0, Into::Replace);
        for ((dscores, weights), slopes) in dscores_WW
            .chunks_exact_mut(len)
            .zip(weights_WW.chunks_exact(len))
            .zip(slopes_WW.chunks_exact(len))
        {
            let mean: f64 = dscores.iter().zip(weights).map(|(&ds, &p)| f64::from(ds) * f64::from(p)).sum();
            for ((ds, p), slope) in dscores.iter_mut().zip(weights).zip(slopes) {
                *ds = p * (*ds - mean as f32) * slope;
            }
        }
        let dscores = View::new(&dscores_WW, len);
        let mut dquery = vec![0.0; len * key_dim];
        product(dscores, key, &mut dquery, key_dim, 0);
        HeadParts { query: dquery, key: outer_products(dscores, query), value }
    }
}

/// `width` columns from `first` on of rows of `stride`, side by side.
pub(super) fn columns(data: &[f32], stride: usize, first: usize, width: usize) -> Vec<f32> {
    data.chunks_exact(stride).flat_map(|row| &row[first..first + width]).copied().collect()
}

/// Puts `values` where [`columns`] would find them.
pub(super) fn put_columns(data: &mut [f32], stride: usize, first: usize, width: usize, values: &[f32]) {
    for (row, values) in data.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
        row[first..first + width].copy_from_slice(values);
    }
}

/// Adds another vector.
pub(super) fn add_to(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::tests::{check_gradient, numbers};

    const KEY: usize = 3;
    const VALUE: usize = 2;

    /// A projection of what a head says, by the definition: queries, keys and values one after the other.
    fn projected(scores: &Scores, parts: &[f64], len: usize, dout: &[f32]) -> f64 {
        let (query, rest) = parts.split_at(len * KEY);
        let (key, value) = rest.split_at(len * KEY);
        let mut sum = 0.0;
        for position in 0..len {
            let first = (position + 1).saturating_sub(scores.window);
            let powers: Vec<f64> = (first..=position)
                .map(|other| {
                    let dot: f64 =
                        (0..KEY).map(|at| query[position * KEY + at] * key[other * KEY + at]).sum();
                    let score = dot * f64::from(scores.scale);
                    scores.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                })
                .collect();
            let all = powers.iter().sum::<f64>() + scores.sink.map_or(0.0, |sink| f64::from(sink).exp());
            for (power, other) in powers.iter().zip(first..) {
                let said = (0..VALUE)
                    .map(|at| value[other * VALUE + at] * f64::from(dout[position * VALUE + at]))
                    .sum::<f64>();
                sum += power / all * said;
            }
        }
        sum
    }

    #[test]
    fn it_is_the_slope_of_attention() {
        for (len, window, cap, sink) in [
            (1, 9, None, None),
            (6, 9, None, None),
            (7, 3, None, None),
            (6, 9, Some(0.7), None),
            (5, 2, Some(2.0), None),
            (7, 3, None, Some(0.4)),
            (5, 9, Some(0.7), Some(-1.0)),
        ] {
            let scores = Scores { scale: 0.6, cap, window, sink };
            let (query, key) = (numbers(len * KEY, 1), numbers(len * KEY, 2));
            let (value, dout) = (numbers(len * VALUE, 3), numbers(len * VALUE, 4));
            let parts = [query.as_slice(), &key, &value].concat();
            let found = scores.back(&HeadParts { query, key, value }, &dout, KEY, VALUE);
            let found = [found.query, found.key, found.value].concat();
            check_gradient(&parts, &found, 1e-5, |parts| projected(&scores, parts, len, &dout));
        }
    }
}
