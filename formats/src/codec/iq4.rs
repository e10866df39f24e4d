//! What IQ4_NL and IQ4_XS share: the sixteen levels and the search for a scale.
//!
//! ```text
//! m = the first weight of largest magnitude, with its sign;   w_i = x_i^2
//! v = the levels, denser around zero;   l_i = the level nearest to x_i * a
//! candidates a = 1 / (m / 127) first, then (k - 127) / m for k in -7..=7
//!     s = sum w v x / sum w v^2, taken when (sum w v x)^2 / sum w v^2 exceeds the best so far
//! ```
//!
//! Halfway between two levels the upper one counts as nearest. All sums run from the first weight
//! to the last, in `f32`. A sub-block without a weight of 1e-15 or more has scale zero.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq4_nl_impl` with `ntry` 7, `ggml-common.h`,
//! `kvalues_iq4nl`.

use super::block32::LEN;
use super::scale_search::EPSILON;

/// The value of each code.
pub(super) const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The code of the level nearest to `x`; of two the upper one, and the last one for NaN.
#[inline(always)]
pub(super) fn nearest(x: f32) -> u8 {
    // Counts the levels above, without branches; none is above NaN.
    let above = LEVELS[1..].iter().map(|&level| u8::from(x < level)).sum::<u8>().max(1);
    let (low, high) = (LEVELS[usize::from(15 - above)], LEVELS[usize::from(16 - above)]);
    16 - above - u8::from(x - low < high - x)
}

/// The scale of one sub-block of 32.
#[inline(always)]
pub(super) fn search(x: &[f32]) -> f32 {
    let weights: [f32; LEN] = std::array::from_fn(|i| x[i] * x[i]);
    search_weighted(x, &weights)
}

/// The same with error weights of the caller's.
#[inline(always)]
pub(super) fn search_weighted(x: &[f32], weights: &[f32; LEN]) -> f32 {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > largest {
            largest = v.abs();
            extreme = v;
        }
    }
    if largest < EPSILON {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let levels: [f32; LEN] = std::array::from_fn(|i| LEVELS[usize::from(nearest(inverse * x[i]))]);
        x.iter().zip(weights).zip(levels).fold((0.0f32, 0.0f32), |(sum_xl, sum_l2), ((&v, &w), l)| {
            (sum_xl + w * l * v, sum_l2 + w * l * l)
        })
    };
    let (sum_xl, sum_l2) = sums(1.0 / (-extreme / LEVELS[0]));
    let mut scale = if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 };
    let mut best = scale * sum_xl;
    for offset in -7i8..=7 {
        let (sum_xl, sum_l2) = sums((f32::from(offset) + LEVELS[0]) / extreme);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    scale
}

/// Stores the codes of 32 weights times `inverse`: byte `i` holds weight `i` in its low and
/// weight `i + 16` in its high nibble.
#[inline(always)]
pub(super) fn store_codes(x: &[f32], inverse: f32, y: &mut [u8]) {
    let (low, high) = x.split_at(LEN / 2);
    for ((y, &low), &high) in y.iter_mut().zip(low).zip(high) {
        *y = nearest(inverse * low) | nearest(inverse * high) << 4;
    }
}

/// Decodes what [`store_codes`] stored.
#[inline(always)]
pub(super) fn load_values(y: &[u8], scale: f32, x: &mut [f32]) {
    let (low, high) = x.split_at_mut(LEN / 2);
    for ((y, low), high) in y.iter().zip(low).zip(high) {
        *low = scale * LEVELS[usize::from(y & 15)];
        *high = scale * LEVELS[usize::from(y >> 4)];
    }
}

/// `1 / value`, or zero.
#[inline(always)]
pub(super) fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}
