//! The search of `iq4` with a sub-block per lane, and its codes with vectors.
//!
//! Every lane goes through the operations of the plain search in their order. Two things make it cheap:
//!
//! - The level nearest to `t` is the one above exactly the half-way points that are not above `t`: around these
//!   points both distances are exact in `f32`.
//! - From the first to the last of the candidates `(k - 127) / m`, `t` grows by 134 / 120, and half-way points
//!   are at least 93.5 to 115.5 apart. So it crosses one at most, and a candidate's level is one of two
//!   that are known beforehand.
//!
//! On one core of an AMD EPYC (a virtual machine, counted in CPU time) IQ4_NL makes 485 M weights/s with
//! AVX-512 and 318 with AVX2, IQ4_XS 436 and 303, where the plain search makes 9.
#![expect(clippy::needless_range_loop, reason = "one index runs over weights and vectors alike")]

use super::block32::LEN;
use super::iq4::LEVELS;
use super::scale_search::{Peak, peak};
use crate::dispatch::Lanes;

/// Half-way points between neighbouring levels.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut at = 0;
    while at < 15 {
        middles[at] = (LEVELS[at] + LEVELS[at + 1]) / 2.0;
        at += 1;
    }
    middles
};

/// As many lanes as the widest instruction set has.
pub(super) const MAX_LANES: usize = 16;

/// Candidates that are summed side by side.
const TOGETHER: usize = 3;
/// Candidates `(k - 127) / m`.
const OFFSETS: [f32; 15] = [-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// What the search finds out about `LEN` sub-blocks.
pub(super) struct Found<L: Lanes> {
    /// Scale of each sub-block.
    pub(super) scale: L::F,
    /// Sub-blocks to which the vector code applies. The others (next to nothing in them, infinities, NaN)
    /// need the plain search.
    pub(super) valid: L::M,
}

/// A number for each of the 32 places of `LEN` sub-blocks.
type Columns<L> = [<L as Lanes>::F; LEN];

/// The level nearest to `t`.
#[inline(always)]
fn level<L: Lanes>(lanes: L, t: L::F) -> L::F {
    let mut level = lanes.splat(LEVELS[0]);
    for k in 0..MIDDLES.len() {
        level = lanes.select(lanes.lt(t, lanes.splat(MIDDLES[k])), level, lanes.splat(LEVELS[k + 1]));
    }
    level
}

/// The level nearest to `t`, the half-way point above it, and the level above that; infinity and the last
/// level at the end.
#[inline(always)]
fn step<L: Lanes>(lanes: L, t: L::F) -> [L::F; 3] {
    let last = MIDDLES.len();
    let mut step = [LEVELS[0], MIDDLES[0], LEVELS[1]].map(|value| lanes.splat(value));
    for k in 0..last {
        let is_below = lanes.lt(t, lanes.splat(MIDDLES[k]));
        let middle = if k + 1 < last { MIDDLES[k + 1] } else { f32::INFINITY };
        let next = [LEVELS[k + 1], middle, LEVELS[(k + 2).min(last)]];
        for part in 0..3 {
            step[part] = lanes.select(is_below, step[part], lanes.splat(next[part]));
        }
    }
    step
}

/// `sum w v x` and `sum w v^2` of one step: `v` is the level.
#[inline(always)]
fn add<L: Lanes>(sums: &mut [L::F; 2], w: L::F, x: L::F, level: L::F) {
    let wl = w * level;
    sums[0] = sums[0] + wl * x;
    sums[1] = sums[1] + wl * level;
}

/// Searches the `LEN` sub-blocks of 32 that stand in `src` one after another, with the error weights in `given`, or else
/// with squares.
#[inline(always)]
pub(super) fn search<L: Lanes>(lanes: L, src: &[f32], given: Option<&[f32]>) -> Found<L> {
    let zero = lanes.splat(0.0);
    let mut x: Columns<L> = [zero; LEN];
    lanes.load_columns(src, LEN, &mut x);
    let mut w = x;
    match given {
        Some(given) => lanes.load_columns(given, LEN, &mut w),
        None => {
            for i in 0..LEN {
                w[i] = x[i] * x[i];
            }
        }
    }
    let Peak { extreme, valid, .. } = peak(lanes, &x);

    let first = lanes.splat(1.0) / ((zero - extreme) / lanes.splat(LEVELS[0]));
    let inverse = |offset: f32| lanes.splat(offset + LEVELS[0]) / extreme;
    let (start, end) = (inverse(OFFSETS[0]), inverse(OFFSETS[OFFSETS.len() - 1]));
    let mut steps = [[zero; 3]; LEN];
    let mut sums = [zero; 2];
    for i in 0..LEN {
        add::<L>(&mut sums, w[i], x[i], level(lanes, first * x[i]));
        steps[i] = step(lanes, lanes.min(start * x[i], end * x[i]));
    }
    let [sum_xl, sum_l2] = sums;
    let mut scale = lanes.select(lanes.lt(zero, sum_l2), sum_xl / sum_l2, zero);
    let mut best = scale * sum_xl;
    for offsets in OFFSETS.as_chunks::<TOGETHER>().0 {
        let inverses = offsets.map(inverse);
        let mut sums = [[zero; 2]; TOGETHER];
        for i in 0..LEN {
            let [low, middle, high] = steps[i];
            for (sums, inverse) in sums.iter_mut().zip(inverses) {
                let level = lanes.select(lanes.lt(inverse * x[i], middle), low, high);
                add::<L>(sums, w[i], x[i], level);
            }
        }
        for [sum_xl, sum_l2] in sums {
            let taken = lanes.lt(zero, sum_l2) & lanes.lt(best * sum_l2, sum_xl * sum_xl);
            let candidate = sum_xl / sum_l2;
            scale = lanes.select(taken, candidate, scale);
            best = lanes.select(taken, candidate * sum_xl, best);
        }
    }
    Found { scale, valid }
}

/// As `iq4::store_codes`.
#[inline(always)]
pub(super) fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], inverse: f32, y: &mut [u8]) {
    let inverse = lanes.splat(inverse);
    for at in (0..LEN / 2).step_by(L::LEN) {
        let low = codes(lanes, inverse * lanes.load(&x[at..]));
        let high = codes(lanes, inverse * lanes.load(&x[LEN / 2 + at..]));
        lanes.store_bytes(low + high * lanes.splat(16.0), &mut y[at..]);
    }
}

/// The codes of the levels nearest to `t`. No closure: it would have to be inlined to have the instruction set.
#[inline(always)]
fn codes<L: Lanes>(lanes: L, t: L::F) -> L::F {
    let mut code = lanes.splat(0.0);
    for k in 0..MIDDLES.len() {
        code = lanes.select(lanes.lt(t, lanes.splat(MIDDLES[k])), code, lanes.splat((k + 1) as f32));
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::iq4;

    #[test]
    fn half_way_points_decide_as_distances_do() {
        let by_middles = |t: f32| 15 - MIDDLES.iter().filter(|middle| t < **middle).count() as u8;
        for middle in MIDDLES {
            for ulps in -300i32..=300 {
                let t = f32::from_bits(middle.to_bits().wrapping_add_signed(ulps));
                assert_eq!(iq4::nearest(t), by_middles(t), "{t}");
            }
        }
        for at in -40_000..40_000 {
            let t = at as f32 / 256.0;
            assert_eq!(iq4::nearest(t), by_middles(t), "{t}");
        }
        for t in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 0.0, -0.0, 1e-40] {
            assert_eq!(iq4::nearest(t), by_middles(t), "{t}");
        }
    }

    #[test]
    fn candidates_cross_one_half_way_point_at_most() {
        for pair in MIDDLES.windows(2) {
            let [a, b] = [pair[0], pair[1]];
            let ratio = if a < 0.0 && b > 0.0 { f32::INFINITY } else { (a / b).abs().max((b / a).abs()) };
            assert!(ratio > 134.0 / 120.0 * 1.01, "{a} {b}");
        }
    }
}
