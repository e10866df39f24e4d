//! What the GGUF formats share when errors are weighed by the importance of their column.
//!
//! ```text
//! w_i = c_i * sqrt(m + x_i^2)      c_i the importance of the column
//! m = a multiple of the mean of squares, of the block or of the row
//! ```
//!
//! The scales (and minima) of a super-block's sub-blocks become multiples of one step by [`multiples`], weighed by
//! the sums of their `w_i`:
//!
//! ```text
//! step candidates max / top, then max / (top + k / 10) for k in -4..=4 but 0:  least sum w (x - step * l)^2
//! l_i = min(top, round(x_i / step));   A = sum w x l, B = sum w l^2
//! up to five times, until nothing changes, for each i: with A', B' the sums without i, try
//!     l = min(top, round(x_i * B' / A')) where both are above 0, and keep it when that raises A^2 / B
//! step = A / B
//! ```
//!
//! Source: llama.cpp, `ggml-quants.c`, `make_qp_quants` and the functions `quantize_row_*_impl`.

use super::scale_search::EPSILON;
use crate::dispatch::Lanes;
use crate::rounding::nearest_int;

/// Times that [`multiples`] goes over its values at most.
const ROUNDS: usize = 5;

/// The sum of squares, from the first to the last.
#[inline(always)]
pub(super) fn sum_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}

/// How much an error in each weight of `x` counts, given `m`.
#[inline(always)]
pub(super) fn error_weights<const N: usize>(x: &[f32], importance: &[f32], m: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (m + x[i] * x[i]).sqrt())
}

/// Super-blocks of 256 weights in a batch at most, and their weights.
const MAX_BLOCKS: usize = 8;
const BLOCK_LEN: usize = 256;
/// Weights in a batch at most.
pub(super) const MAX_BATCH: usize = MAX_BLOCKS * BLOCK_LEN;

/// The error weights of a batch of blocks of `LEN` weights, of which the first is number `first` of all rows, with `m` the sum of
/// squares times `factor`. What is beyond the batch is left alone.
#[inline(always)]
pub(super) fn batch_weights<L: Lanes, const LEN: usize>(
    lanes: L,
    x: &[f32],
    first: usize,
    importance: &[f32],
    factor: f32,
    weights: &mut [f32],
) {
    let of_row = importance.len() / LEN;
    let blocks = x.as_chunks::<LEN>().0;
    for (group, weights) in
        weights.chunks_mut(MAX_BLOCKS * LEN).enumerate().take(blocks.len().div_ceil(MAX_BLOCKS))
    {
        let blocks = &blocks[group * MAX_BLOCKS..blocks.len().min((group + 1) * MAX_BLOCKS)];
        // Side by side, so that one's sum need not wait for the other's.
        let mut sums = [0.0f32; MAX_BLOCKS];
        for at in 0..LEN {
            for (sum, x) in sums.iter_mut().zip(blocks) {
                *sum += x[at] * x[at];
            }
        }
        let rows = blocks.iter().zip(weights.as_chunks_mut::<LEN>().0).zip(sums).enumerate();
        for (block, ((x, weights), sum)) in rows {
            let column = (first + group * MAX_BLOCKS + block) % of_row * LEN;
            let importance = &importance[column..][..LEN];
            let m = lanes.splat(sum * factor);
            for at in (0..LEN).step_by(L::LEN) {
                let v = lanes.load(&x[at..]);
                let weight = lanes.load(&importance[at..]) * lanes.sqrt(m + v * v);
                lanes.store(weight, &mut weights[at..]);
            }
        }
    }
}

/// The importance of the columns of block number `block` of all rows.
#[inline(always)]
pub(super) fn of_block<const LEN: usize>(importance: &[f32], block: usize) -> &[f32] {
    let of_row = importance.len() / LEN;
    &importance[block % of_row * LEN..][..LEN]
}

/// The sum, from the first to the last.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum, v| sum + v)
}

/// The step of which `values`, none of them negative, are `multiples` up to `top`; see the module.
#[inline]
pub(super) fn multiples<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    top: i32,
    multiples: &mut [u8; N],
) -> f32 {
    let max = values.iter().fold(0.0f32, |max, &v| if max > v { max } else { v });
    if max < EPSILON {
        multiples.fill(0);
        return 0.0;
    }
    let pairs = || values.iter().zip(weights);
    let mut inverse = top as f32 / max;
    let scale = 1.0 / inverse;
    let mut best = 0.0f32;
    for (&v, &w) in pairs() {
        // The reference keeps the integer in a byte and takes no minimum here.
        let difference = v - scale * f32::from(nearest_int(inverse * v) as u8);
        best += w * difference * difference;
    }
    for offset in [-4i8, -3, -2, -1, 1, 2, 3, 4] {
        let candidate = (0.1 * f32::from(offset) + top as f32) / max;
        let scale = 1.0 / candidate;
        let mut error = 0.0f32;
        for (&v, &w) in pairs() {
            let difference = v - scale * nearest_int(candidate * v).min(top) as f32;
            error += w * difference * difference;
        }
        if error < best {
            (best, inverse) = (error, candidate);
        }
    }
    let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
    for ((&v, &w), slot) in pairs().zip(multiples.iter_mut()) {
        let l = nearest_int(inverse * v).min(top);
        *slot = l as u8;
        sum_xl += w * v * l as f32;
        sum_l2 += w * l as f32 * l as f32;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for ((&v, &w), slot) in pairs().zip(multiples.iter_mut()) {
            let old = f32::from(*slot);
            let mut other_xl = sum_xl - w * v * old;
            let mut other_l2 = sum_l2 - w * old * old;
            if other_xl > 0.0 && other_l2 > 0.0 {
                let l = nearest_int(v * other_l2 / other_xl).min(top);
                if l != i32::from(*slot) {
                    other_xl += w * v * l as f32;
                    other_l2 += w * l as f32 * l as f32;
                    if other_xl * other_xl * sum_l2 > sum_xl * sum_xl * other_l2 {
                        *slot = l as u8;
                        (sum_xl, sum_l2) = (other_xl, other_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 }
}
