//! The search for the scale and minimum of a sub-block of 32, for Q4_K and Q5_K.
//!
//! ```text
//! w_i = sqrt(mean x^2) + |x_i|                                        error weights
//! start:       n = min(0, min x),  s = (max x - n) / top
//! candidate k: l_i = clamp(round((x_i - n) * (first + step * k + top) / (max x - n)), 0, top)
//!              (s', n') = weighted least squares of x ~ s' * l + n', n' <= 0
//!              taken when sum w (s' * l + n' - x)^2 is less than the best so far
//! ```
//!
//! A taken candidate changes `n`, and so the codes of all later candidates. All sums run from
//! the first weight to the last, in `f32`.
//! Source: llama.cpp, `ggml-quants.c`, `make_qkx2_quants`.
//!
//! The vector version gives each sub-block a lane of its own, where it goes through the same
//! operations in the same order. It leaves out clamps where the extremes of a sub-block show
//! that no code can be out of range.
#![expect(clippy::needless_range_loop, reason = "one index runs over weights, codes and vectors alike")]

use super::scale_min::SUB_LEN;
use crate::dispatch::Lanes;
use crate::rounding::nearest_int;

/// Constants of the search.
pub(super) struct Search {
    /// Largest code.
    pub(super) top: i32,
    /// Offset of the first candidate.
    pub(super) first: f32,
    /// Distance of candidates.
    pub(super) step: f32,
    /// Number of candidates, less one.
    pub(super) steps: u8,
}

impl Search {
    /// Levels that candidate `k` spreads over the range.
    #[inline(always)]
    fn levels(&self, k: u8) -> f32 {
        self.first + self.step * f32::from(k) + self.top as f32
    }
}

/// Scale and (negated) minimum of one sub-block; its codes go to `codes`.
pub(super) fn search_scalar(x: &[f32], search: &Search, codes: &mut [u8]) -> (f32, f32) {
    let sum_squares = x.iter().fold(0.0f32, |sum, v| sum + v * v);
    let mean = (sum_squares / SUB_LEN as f32).sqrt();
    let weights: [f32; SUB_LEN] = std::array::from_fn(|i| mean + x[i].abs());
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&v, &w) in x.iter().zip(&weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |v: f32, min: f32, inverse: f32| nearest_int(inverse * (v - min)).clamp(0, search.top) as u8;

    let inverse = search.top as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    let mut best = 0.0;
    for ((&v, &w), slot) in x.iter().zip(&weights).zip(codes.iter_mut()) {
        *slot = code(v, min, inverse);
        let difference = scale * f32::from(*slot) + min - v;
        best += w * (difference * difference);
    }
    for k in 0..=search.steps {
        let inverse = search.levels(k) / (max - min);
        let mut candidate = [0u8; SUB_LEN];
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((&v, &w), slot) in x.iter().zip(&weights).zip(&mut candidate) {
            *slot = code(v, min, inverse);
            let l = f32::from(*slot);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        // False for NaN too.
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                new_min = 0.0;
                new_scale = sum_xl / sum_l2;
            }
            let mut error = 0.0;
            for ((&v, &w), &l) in x.iter().zip(&weights).zip(&candidate) {
                let difference = new_scale * f32::from(l) + new_min - v;
                error += w * (difference * difference);
            }
            if error < best {
                codes.copy_from_slice(&candidate);
                (best, scale, min) = (error, new_scale, new_min);
            }
        }
    }
    (scale, -min)
}

/// What the vector search finds out about `G * LEN` sub-blocks.
pub(super) struct Found<L: Lanes, const G: usize> {
    /// Scale of each sub-block.
    pub(super) scale: [L::F; G],
    /// Negated minimum of each sub-block.
    pub(super) min: [L::F; G],
    /// Largest magnitude in each sub-block.
    pub(super) magnitude: [L::F; G],
    /// Sub-blocks to which the vector code applies. The others (all weights equal, numbers
    /// that overflow) need [`search_scalar`].
    pub(super) valid: [L::M; G],
}

/// One vector of sub-blocks in the search, a sub-block per lane.
#[derive(Clone, Copy)]
struct State<L: Lanes> {
    x: [L::F; SUB_LEN],
    w: [L::F; SUB_LEN],
    sum_w: L::F,
    sum_x: L::F,
    smallest: L::F,
    largest: L::F,
    min: L::F,
    scale: L::F,
    best: L::F,
    valid: L::M,
}

impl<L: Lanes> State<L> {
    #[inline(always)]
    fn new(lanes: L, src: &[f32]) -> Self {
        let zero = lanes.splat(0.0);
        let mut x = [zero; SUB_LEN];
        lanes.load_columns(src, SUB_LEN, &mut x);
        let mut sum_squares = zero;
        for v in x {
            sum_squares = sum_squares + v * v;
        }
        let mean = lanes.sqrt(sum_squares / lanes.splat(SUB_LEN as f32));
        let mut w = [zero; SUB_LEN];
        for i in 0..SUB_LEN {
            w[i] = mean + lanes.abs(x[i]);
        }
        let (mut smallest, mut largest) = (x[0], x[0]);
        let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
        for i in 1..SUB_LEN {
            smallest = lanes.min(x[i], smallest);
            largest = lanes.max(x[i], largest);
            sum_w = sum_w + w[i];
            sum_x = sum_x + w[i] * x[i];
        }
        let min = lanes.select(lanes.lt(zero, smallest), zero, smallest);
        let valid = lanes.lt(sum_squares, lanes.splat(f32::INFINITY)) & lanes.lt(min, largest);
        Self { x, w, sum_w, sum_x, smallest, largest, min, scale: zero, best: zero, valid }
    }
}

/// Codes may go below zero, above the top, in some lane.
type Clamps = (bool, bool);

/// Finds out which clamps some lane needs, and drops lanes whose codes do not fit 20 bits.
#[inline(always)]
fn clamps<L: Lanes>(lanes: L, state: &mut State<L>, inverse: L::F, top: f32) -> Clamps {
    // Subtraction, multiplication and rounding are monotonic: no code lies outside of those
    // of the extremes.
    let a = inverse * (state.smallest - state.min);
    let b = inverse * (state.largest - state.min);
    let bound = lanes.splat((1 << 20) as f32);
    state.valid = state.valid & lanes.lt(lanes.abs(a), bound) & lanes.lt(lanes.abs(b), bound);
    let (low, high) = (lanes.min(a, b), lanes.max(a, b));
    // -0.5 rounds to zero; top + 0.5 rounds up, for top is odd.
    (lanes.any(lanes.lt(low, lanes.splat(-0.5))), !lanes.all(lanes.lt(high, lanes.splat(top + 0.5))))
}

/// `clamp(round(inverse * (x - min)), 0, top)` as far as `LOW` and `HIGH` ask for it.
#[inline(always)]
fn code<L: Lanes, const LOW: bool, const HIGH: bool>(
    lanes: L,
    x: L::F,
    min: L::F,
    inverse: L::F,
    zero: L::F,
    top: L::F,
) -> L::F {
    let mut code = lanes.round(inverse * (x - min));
    if LOW {
        code = lanes.max(code, zero);
    }
    if HIGH {
        code = lanes.min(code, top);
    }
    code
}

/// Codes of a candidate and the sums of `w * l`, `w * l * l` and `w * l * x`.
#[inline(always)]
fn accumulate<L: Lanes, const G: usize, const LOW: bool, const HIGH: bool>(
    lanes: L,
    states: &[State<L>; G],
    inverse: [L::F; G],
    top: f32,
    codes: &mut [[L::F; G]; SUB_LEN],
) -> [[L::F; 3]; G] {
    let (zero, top) = (lanes.splat(0.0), lanes.splat(top));
    let mut sums = [[zero; 3]; G];
    for i in 0..SUB_LEN {
        for g in 0..G {
            let state = &states[g];
            let l = code::<L, LOW, HIGH>(lanes, state.x[i], state.min, inverse[g], zero, top);
            codes[i][g] = l;
            let wl = state.w[i] * l;
            sums[g][0] = sums[g][0] + wl;
            sums[g][1] = sums[g][1] + wl * l;
            sums[g][2] = sums[g][2] + wl * state.x[i];
        }
    }
    sums
}

/// Weighted squared error of each lane.
#[inline(always)]
fn errors<L: Lanes, const G: usize>(
    lanes: L,
    states: &[State<L>; G],
    codes: &[[L::F; G]; SUB_LEN],
    scale: [L::F; G],
    min: [L::F; G],
) -> [L::F; G] {
    let mut errors = [lanes.splat(0.0); G];
    for i in 0..SUB_LEN {
        for g in 0..G {
            let difference = scale[g] * codes[i][g] + min[g] - states[g].x[i];
            errors[g] = errors[g] + states[g].w[i] * (difference * difference);
        }
    }
    errors
}

/// Searches `G` vectors of sub-blocks; `src` holds `G * LEN` sub-blocks one after another.
///
/// `G` vectors at a time keep the adders busy while each sum waits for its last term.
#[inline(always)]
pub(super) fn search_lanes<L: Lanes, const G: usize>(lanes: L, src: &[f32], search: &Search) -> Found<L, G> {
    let zero = lanes.splat(0.0);
    let top = search.top as f32;
    let mut states = [State::new(lanes, src); G];
    for g in 1..G {
        states[g] = State::new(lanes, &src[g * L::LEN * SUB_LEN..]);
    }
    let mut codes = [[zero; G]; SUB_LEN];
    let mut inverse = [zero; G];
    for g in 0..G {
        let state = &mut states[g];
        inverse[g] = lanes.splat(top) / (state.largest - state.min);
        state.scale = lanes.splat(1.0) / inverse[g];
        let _: Clamps = clamps(lanes, state, inverse[g], top);
    }
    for i in 0..SUB_LEN {
        for g in 0..G {
            let state = &states[g];
            codes[i][g] =
                code::<L, true, true>(lanes, state.x[i], state.min, inverse[g], zero, lanes.splat(top));
        }
    }
    let start =
        errors(lanes, &states, &codes, states.map(|state| state.scale), states.map(|state| state.min));
    for g in 0..G {
        states[g].best = start[g];
    }
    for k in 0..=search.steps {
        let levels = lanes.splat(search.levels(k));
        let mut needed = (false, false);
        for g in 0..G {
            inverse[g] = levels / (states[g].largest - states[g].min);
            let (low, high) = clamps(lanes, &mut states[g], inverse[g], top);
            needed = (needed.0 | low, needed.1 | high);
        }
        let sums = match needed {
            (false, false) => accumulate::<L, G, false, false>(lanes, &states, inverse, top, &mut codes),
            (true, false) => accumulate::<L, G, true, false>(lanes, &states, inverse, top, &mut codes),
            (false, true) => accumulate::<L, G, false, true>(lanes, &states, inverse, top, &mut codes),
            (true, true) => accumulate::<L, G, true, true>(lanes, &states, inverse, top, &mut codes),
        };
        let (mut scale, mut min, mut solvable) = ([zero; G], [zero; G], [lanes.lt(zero, zero); G]);
        for g in 0..G {
            let State { sum_w, sum_x, .. } = states[g];
            let [sum_l, sum_l2, sum_xl] = sums[g];
            let determinant = sum_w * sum_l2 - sum_l * sum_l;
            solvable[g] = lanes.lt(zero, determinant);
            scale[g] = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            min[g] = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            let positive = lanes.lt(zero, min[g]);
            if lanes.any(positive) {
                min[g] = lanes.select(positive, zero, min[g]);
                scale[g] = lanes.select(positive, sum_xl / sum_l2, scale[g]);
            }
        }
        let error = errors(lanes, &states, &codes, scale, min);
        for g in 0..G {
            let state = &mut states[g];
            let taken = solvable[g] & lanes.lt(error[g], state.best);
            state.best = lanes.select(taken, error[g], state.best);
            state.scale = lanes.select(taken, scale[g], state.scale);
            state.min = lanes.select(taken, min[g], state.min);
        }
    }
    let mut found =
        Found { scale: [zero; G], min: [zero; G], magnitude: [zero; G], valid: [lanes.lt(zero, zero); G] };
    for g in 0..G {
        let state = &states[g];
        found.scale[g] = state.scale;
        found.min[g] = zero - state.min;
        found.magnitude[g] = lanes.max(lanes.abs(state.smallest), lanes.abs(state.largest));
        found.valid[g] = state.valid;
    }
    found
}
