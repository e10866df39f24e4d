//! The search for the scale of a sub-block of 16, for Q6_K.
//!
//! ```text
//! m = the first weight of largest magnitude, with its sign;   w_i = x_i^2
//! candidate k in -9..=9, 0 first: l_i = clamp(round(x_i * -(32 + k / 10) / m), -32, 31)
//!     s = sum w x l / sum w l^2, taken when (sum w x l)^2 / sum w l^2 exceeds the best so far
//! ```
//!
//! All sums run from the first weight to the last, in `f32`. A sub-block without a weight of
//! 1e-15 or more has scale and codes zero.
//! Source: llama.cpp, `ggml-quants.c`, `make_qx_quants` with 32 levels and `rmse_type` 1.
//!
//! The vector version gives each sub-block a lane of its own, where it goes through the same
//! operations in the same order. It leaves out clamps where the extremes of a sub-block show
//! that no code can be out of range. On one core of a Zen 3 (AVX2, a virtual machine) it makes
//! Q6_K 270 M weights/s, where the scalar search makes 20.
#![expect(clippy::needless_range_loop, reason = "one index runs over weights and vectors alike")]

use crate::dispatch::Lanes;
use crate::rounding::nearest_int;

/// Weights in a sub-block.
pub(super) const SUB_LEN: usize = 16;
/// Magnitudes below this count as zero.
pub(super) const EPSILON: f32 = 1e-15;

/// Candidates after the first one, in the reference's order.
const OFFSETS: [i8; 18] = [-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// Levels of a candidate, negative because the extreme weight gets code `-reach`.
#[inline(always)]
fn levels(reach: i8, offset: i8) -> f32 {
    -(f32::from(reach) + 0.1 * f32::from(offset))
}

/// The scale of one sub-block; its codes, raised by 32, go to `codes`.
pub(super) fn search_scalar(x: &[f32; SUB_LEN], codes: &mut [u8]) -> f32 {
    search_weighted(x, &x.map(|v| v * v), 32, codes)
}

/// The search with error weights of the caller's and codes from `-reach` to `reach - 1`, raised by `reach`.
#[inline(always)]
pub(super) fn search_weighted(x: &[f32], weights: &[f32], reach: i8, codes: &mut [u8]) -> f32 {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > largest {
            largest = v.abs();
            extreme = v;
        }
    }
    if largest < EPSILON {
        codes.fill(0);
        return 0.0;
    }
    let reach_int = i32::from(reach);
    let code = |v: f32, inverse: f32| nearest_int(inverse * v).clamp(-reach_int, reach_int - 1);
    let sums = |inverse: f32| {
        x.iter().zip(weights).fold((0.0f32, 0.0f32), |(sum_xl, sum_l2), (&v, &w)| {
            let l = code(v, inverse) as f32;
            (sum_xl + w * v * l, sum_l2 + w * l * l)
        })
    };
    let mut used = -f32::from(reach) / extreme;
    let (sum_xl, sum_l2) = sums(used);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for offset in OFFSETS {
        let inverse = levels(reach, offset) / extreme;
        let (sum_xl, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            used = inverse;
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    for (slot, &v) in codes.iter_mut().zip(x) {
        *slot = (code(v, used) + reach_int) as u8;
    }
    scale
}

/// What the vector search finds out about `G * LEN` sub-blocks.
pub(super) struct Found<L: Lanes, const G: usize> {
    /// Scale of each sub-block.
    pub(super) scale: [L::F; G],
    /// Largest magnitude in each sub-block.
    pub(super) magnitude: [L::F; G],
    /// Sub-blocks to which the vector code applies. The others (next to nothing in them, or
    /// infinities) need [`search_scalar`].
    pub(super) valid: [L::M; G],
}

/// What the numbers of a sub-block say about its scale; a sub-block per lane.
#[derive(Clone, Copy)]
pub(super) struct Peak<L: Lanes> {
    /// The largest magnitude.
    pub(super) magnitude: L::F,
    /// The first number that has it.
    pub(super) extreme: L::F,
    /// Neither NaN nor infinity is among them, nor are all nearly nothing: the vector code applies.
    pub(super) valid: L::M,
}

/// Of the sub-blocks whose numbers `x` are.
#[inline(always)]
pub(super) fn peak<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N]) -> Peak<L> {
    let zero = lanes.splat(0.0);
    let (mut magnitude, mut extreme) = (zero, zero);
    let mut is_number = lanes.eq(zero, zero);
    for &v in x {
        let larger = lanes.lt(magnitude, lanes.abs(v));
        magnitude = lanes.select(larger, lanes.abs(v), magnitude);
        extreme = lanes.select(larger, v, extreme);
        is_number = is_number & lanes.eq(v, v);
    }
    let tiny = lanes.splat(EPSILON);
    let is_enough = lanes.lt(tiny, magnitude) | lanes.eq(tiny, magnitude);
    let valid = is_number & is_enough & lanes.lt(magnitude, lanes.splat(f32::INFINITY));
    Peak { magnitude, extreme, valid }
}

/// One vector of sub-blocks in the search, a sub-block per lane.
#[derive(Clone, Copy)]
struct State<L: Lanes> {
    x: [L::F; SUB_LEN],
    /// Error weights.
    w: [L::F; SUB_LEN],
    /// The same times `x`.
    wx: [L::F; SUB_LEN],
    smallest: L::F,
    largest: L::F,
    peak: Peak<L>,
    scale: L::F,
    best: L::F,
}

impl<L: Lanes> State<L> {
    #[inline(always)]
    fn new(lanes: L, src: &[f32], given: Option<&[f32]>) -> Self {
        let zero = lanes.splat(0.0);
        let mut x = [zero; SUB_LEN];
        lanes.load_columns(src, SUB_LEN, &mut x);
        let (mut w, mut wx) = (x, x);
        if let Some(given) = given {
            lanes.load_columns(given, SUB_LEN, &mut w);
        }
        let (mut smallest, mut largest) = (x[0], x[0]);
        for i in 0..SUB_LEN {
            let v = x[i];
            if given.is_none() {
                w[i] = v * v;
            }
            wx[i] = w[i] * v;
            smallest = lanes.min(v, smallest);
            largest = lanes.max(v, largest);
        }
        Self { x, w, wx, smallest, largest, peak: peak(lanes, &x), scale: zero, best: zero }
    }
}

/// Sums of `w * x * l` and `w * l * l`.
type Sums<L, const G: usize> = [[<L as Lanes>::F; 2]; G];

/// Sums of `K` candidates, with the clamps that `LOW` and `HIGH` ask for.
#[inline(always)]
fn accumulate<L: Lanes, const G: usize, const K: usize, const LOW: bool, const HIGH: bool>(
    lanes: L,
    states: &[State<L>; G],
    reach: f32,
    inverse: [[L::F; G]; K],
) -> [Sums<L, G>; K] {
    let (bottom, top) = (lanes.splat(-reach), lanes.splat(reach - 1.0));
    let mut sums = [[[lanes.splat(0.0); 2]; G]; K];
    for i in 0..SUB_LEN {
        for g in 0..G {
            let state = &states[g];
            for k in 0..K {
                let mut l = lanes.round(inverse[k][g] * state.x[i]);
                if LOW {
                    l = lanes.max(l, bottom);
                }
                if HIGH {
                    l = lanes.min(l, top);
                }
                let sums = &mut sums[k][g];
                sums[0] = sums[0] + state.wx[i] * l;
                sums[1] = sums[1] + state.w[i] * l * l;
            }
        }
    }
    sums
}

/// The sums of `K` candidates: finds out which clamps some lane needs, and runs with those.
#[inline(always)]
fn candidates<L: Lanes, const G: usize, const K: usize>(
    lanes: L,
    states: &[State<L>; G],
    reach: f32,
    levels: [f32; K],
) -> [Sums<L, G>; K] {
    let mut inverse = [[lanes.splat(0.0); G]; K];
    let (mut low, mut high) = (false, false);
    for g in 0..G {
        for k in 0..K {
            inverse[k][g] = lanes.splat(levels[k]) / states[g].peak.extreme;
            // Multiplication and rounding are monotonic: no code lies outside of those of the
            // extremes. The reach is even: for 32, -32.5 rounds to -32 and 31.5 to 32.
            let a = inverse[k][g] * states[g].smallest;
            let b = inverse[k][g] * states[g].largest;
            low |= lanes.any(lanes.lt(lanes.min(a, b), lanes.splat(-reach - 0.5)));
            high |= !lanes.all(lanes.lt(lanes.max(a, b), lanes.splat(reach - 0.5)));
        }
    }
    match (low, high) {
        (false, false) => accumulate::<L, G, K, false, false>(lanes, states, reach, inverse),
        (true, false) => accumulate::<L, G, K, true, false>(lanes, states, reach, inverse),
        (false, true) => accumulate::<L, G, K, false, true>(lanes, states, reach, inverse),
        (true, true) => accumulate::<L, G, K, true, true>(lanes, states, reach, inverse),
    }
}

/// Searches `G` vectors of sub-blocks; `src` holds `G * LEN` sub-blocks one after another.
#[inline(always)]
pub(super) fn search_lanes<L: Lanes, const G: usize>(lanes: L, src: &[f32]) -> Found<L, G> {
    search_given_lanes(lanes, src, None, 32)
}

/// The same as [`search_weighted`], with the error weights in `given`, or else as [`search_scalar`].
#[inline(always)]
pub(super) fn search_given_lanes<L: Lanes, const G: usize>(
    lanes: L,
    src: &[f32],
    given: Option<&[f32]>,
    reach: i8,
) -> Found<L, G> {
    let zero = lanes.splat(0.0);
    let at = |g: usize| g * L::LEN * SUB_LEN;
    let mut states = [State::new(lanes, src, given); G];
    for g in 1..G {
        states[g] = State::new(lanes, &src[at(g)..], given.map(|given| &given[at(g)..]));
    }
    let reach_f32 = f32::from(reach);
    let [sums] = candidates(lanes, &states, reach_f32, [-reach_f32]);
    for g in 0..G {
        let [sum_xl, sum_l2] = sums[g];
        let state = &mut states[g];
        state.scale = lanes.select(lanes.eq(sum_l2, zero), zero, sum_xl / sum_l2);
        state.best = state.scale * sum_xl;
    }
    // Two candidates at a time: the weights are read once for both, and the adders have
    // more sums to turn to.
    for offsets in OFFSETS.as_chunks::<2>().0 {
        for sums in candidates(lanes, &states, reach_f32, offsets.map(|offset| levels(reach, offset))) {
            for g in 0..G {
                let [sum_xl, sum_l2] = sums[g];
                let state = &mut states[g];
                let taken = lanes.lt(zero, sum_l2) & lanes.lt(state.best * sum_l2, sum_xl * sum_xl);
                let scale = sum_xl / sum_l2;
                state.scale = lanes.select(taken, scale, state.scale);
                state.best = lanes.select(taken, scale * sum_xl, state.best);
            }
        }
    }
    let mut found = Found { scale: [zero; G], magnitude: [zero; G], valid: [lanes.lt(zero, zero); G] };
    for g in 0..G {
        found.scale[g] = states[g].scale;
        found.magnitude[g] = states[g].peak.magnitude;
        found.valid[g] = states[g].peak.valid;
    }
    found
}
