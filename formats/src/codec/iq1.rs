//! What IQ1_S and IQ1_M share: three levels that are shifted up or down by an eighth, and how a sub-block is split among them.
//!
//! ```text
//! x_i ~ s * (l_i + delta)       l of -1, 0, 1, delta of 1/8, -1/8
//! ```
//!
//! With the weights sorted, levels are two places to split them at: all pairs of places are tried, with sums of what lies in
//! front of each. Of equal weights the first stays first, which decides in which order their products are added.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq1_s_impl`, `iq1_find_best_neighbour2`. It sorts with the C library's
//! `qsort`, which does not promise that order; glibc's has it.

use super::codebook::{Codebook, Place};
use super::codebook_search::nearest;

/// Weights of a point.
pub(super) const GROUP_LEN: usize = 8;
/// The shift of the levels.
pub(super) const DELTA: f32 = 0.125;
/// The levels shifted up, and down.
pub(super) const UP: [f32; 3] = [-1.0 + DELTA, DELTA, 1.0 + DELTA];
pub(super) const DOWN: [f32; 3] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA];

/// The places of weights in ascending order. By insertion: orders of what is no number have no meaning, but no end either.
#[inline(always)]
pub(super) fn sorted<const SUB: usize>(x: &[f32; SUB]) -> [u8; SUB] {
    let mut order: [u8; SUB] = std::array::from_fn(|i| i as u8);
    for end in 1..SUB {
        let own = order[end];
        let mut at = end;
        while at > 0 && x[usize::from(own)] < x[usize::from(order[at - 1])] {
            order[at] = order[at - 1];
            at -= 1;
        }
        order[at] = own;
    }
    order
}

/// How a sub-block is split: weights before the first place are low, those from the second on high.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub(super) scale: f32,
    pub(super) places: [usize; 2],
    /// Which shifts it was found with.
    pub(super) shift: u8,
}

/// Levels of a sub-block under a split. Those of a negative scale are turned round.
#[inline(always)]
pub(super) fn levels<const SUB: usize>(order: &[u8; SUB], split: &Split) -> [u8; SUB] {
    let mut levels = [0; SUB];
    for (at, &i) in order.iter().enumerate() {
        let level = u8::from(at >= split.places[0]) + u8::from(at >= split.places[1]);
        levels[usize::from(i)] = if split.scale < 0.0 { 2 - level } else { level };
    }
    levels
}

/// The point nearest to `levels`, and whether it has them.
#[inline(always)]
pub(super) fn point(
    book: &Codebook<GROUP_LEN>,
    levels: &[u8; GROUP_LEN],
    x: &[f32; GROUP_LEN],
    weights: &[f32; GROUP_LEN],
    scale: f32,
    values: &[f32; 3],
) -> (u16, bool) {
    match book.find(levels) {
        Place::Point(number) => (number, true),
        Place::Neighbours(neighbours) => {
            let error = |number: u16| {
                let pairs = x.iter().zip(weights).zip(book.point(number));
                pairs.fold(0.0f32, |sum, ((v, w), &level)| {
                    let difference = scale * values[usize::from(level)] - v;
                    sum + w * difference * difference
                })
            };
            (nearest(&neighbours, error), false)
        }
    }
}

/// Adds `sum w q x` and `sum w q^2` of a point, whose levels have the values `q`.
#[inline(always)]
pub(super) fn add(
    sums: &mut [f32; 2],
    levels: &[u8; GROUP_LEN],
    x: &[f32; GROUP_LEN],
    weights: &[f32; GROUP_LEN],
    values: &[f32; 3],
) {
    for ((v, w), &level) in x.iter().zip(weights).zip(levels) {
        let q = values[usize::from(level)];
        sums[0] += w * q * v;
        sums[1] += w * q * q;
    }
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    x[1..].iter().fold(x[0].abs(), |largest, v| if largest > v.abs() { largest } else { v.abs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_keep_their_order() {
        assert_eq!(sorted(&[2.0, 0.0, 1.0, -0.0, 1.0, -3.0, 2.0, 0.0]), [5, 1, 3, 7, 2, 4, 0, 6]);
        let mut order = sorted(&[f32::NAN, 1.0, f32::NAN, 0.0, 2.0, f32::NAN, -1.0, 5.0]);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
