//! The search for the scale and minimum of a sub-block: of 32 for Q4_K and Q5_K, of 16 for Q2_K.
//!
//! ```text
//! w_i = sqrt(mean x^2) + |x_i|                                        error weights
//! start:       n = min(0, min x),  s = (max x - n) / top
//! candidate k: l_i = clamp(round((x_i - n) * (first + step * k + top) / (max x - n)), 0, top)
//!              (s', n') = weighted least squares of x ~ s' * l + n', n' <= 0
//!              taken when sum w (s' * l + n' - x)^2 is less than the best so far
//! ```
//!
//! Q2_K has `w_i = |x_i|` and absolute differences in place of squares ([`Measure`]).
//! A taken candidate changes `n`, and so the codes of all later candidates. All sums run from
//! the first weight to the last, in `f32`.
//! Source: llama.cpp, `ggml-quants.c`, `make_qkx2_quants`.
//!
//! The vector version gives each sub-block a lane of its own, where it goes through the same
//! operations in the same order. It leaves out clamps where the extremes of a sub-block show
//! that no code can be out of range. On one core of a Zen 3 (AVX2, a virtual machine) it makes
//! Q4_K 172 M weights/s and Q5_K 206, where the scalar search makes 12 and 14.
#![expect(clippy::needless_range_loop, reason = "one index runs over weights, codes and vectors alike")]

use std::marker::PhantomData;

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
    search_weighted(x, &weights, search, |difference| difference * difference, codes)
}

/// The search with error weights of the caller's, over at most [`SUB_LEN`] weights; `cost` makes
/// an error of a difference.
#[inline(always)]
pub(super) fn search_weighted(
    x: &[f32],
    weights: &[f32],
    search: &Search,
    cost: impl Fn(f32) -> f32,
    codes: &mut [u8],
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&v, &w) in x.iter().zip(weights).skip(1) {
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
    for ((&v, &w), slot) in x.iter().zip(weights).zip(codes.iter_mut()) {
        *slot = code(v, min, inverse);
        best += w * cost(scale * f32::from(*slot) + min - v);
    }
    for k in 0..=search.steps {
        let inverse = search.levels(k) / (max - min);
        let mut candidate = [0u8; SUB_LEN];
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((&v, &w), slot) in x.iter().zip(weights).zip(&mut candidate) {
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
            for ((&v, &w), &l) in x.iter().zip(weights).zip(&candidate) {
                error += w * cost(new_scale * f32::from(l) + new_min - v);
            }
            if error < best {
                codes.copy_from_slice(&candidate[..x.len()]);
                (best, scale, min) = (error, new_scale, new_min);
            }
        }
    }
    (scale, -min)
}

/// How the vector search weighs errors.
pub(super) trait Measure {
    /// The weight of an error in each place of the sub-blocks `x`, whose squares have this sum; those that the caller
    /// gave for them, if it did.
    fn weights<L: Lanes, const N: usize>(
        lanes: L,
        x: &[L::F; N],
        sum_squares: L::F,
        given: &[f32],
    ) -> [L::F; N];
    /// The error of a difference.
    fn cost<L: Lanes>(lanes: L, difference: L::F) -> L::F;
}

/// As [`search_scalar`] weighs errors.
pub(super) struct Squares;

impl Measure for Squares {
    #[inline(always)]
    fn weights<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N], sum_squares: L::F, _: &[f32]) -> [L::F; N] {
        let offset = lanes.sqrt(sum_squares / lanes.splat(N as f32));
        let mut weights = *x;
        for i in 0..N {
            weights[i] = offset + lanes.abs(x[i]);
        }
        weights
    }
    #[inline(always)]
    fn cost<L: Lanes>(_: L, difference: L::F) -> L::F {
        difference * difference
    }
}

/// Magnitudes as weights and as errors.
pub(super) struct Magnitudes;

impl Measure for Magnitudes {
    #[inline(always)]
    fn weights<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N], _: L::F, _: &[f32]) -> [L::F; N] {
        let mut weights = *x;
        for i in 0..N {
            weights[i] = lanes.abs(x[i]);
        }
        weights
    }
    #[inline(always)]
    fn cost<L: Lanes>(lanes: L, difference: L::F) -> L::F {
        lanes.abs(difference)
    }
}

/// Weights of the caller's, and squares of errors: [`search_weighted`].
pub(super) struct Given;

impl Measure for Given {
    #[inline(always)]
    fn weights<L: Lanes, const N: usize>(lanes: L, x: &[L::F; N], _: L::F, given: &[f32]) -> [L::F; N] {
        let mut weights = *x;
        lanes.load_columns(given, N, &mut weights);
        weights
    }
    #[inline(always)]
    fn cost<L: Lanes>(_: L, difference: L::F) -> L::F {
        difference * difference
    }
}

/// What the vector search finds out about `G * LEN` sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Found<L: Lanes, const G: usize> {
    /// Scale of each sub-block.
    pub(super) scale: [L::F; G],
    /// Negated minimum of each sub-block.
    pub(super) min: [L::F; G],
    /// Largest magnitude in each sub-block.
    pub(super) magnitude: [L::F; G],
    /// Sum of the error weights of each sub-block.
    pub(super) weight: [L::F; G],
    /// Sub-blocks to which the vector code applies. The others (all weights equal, numbers
    /// that overflow) need [`search_scalar`].
    pub(super) valid: [L::M; G],
}

impl<L: Lanes, const G: usize> Found<L, G> {
    /// Puts scales, minima, magnitudes and sums of weights at the beginning of four rows, sub-block after sub-block; bit `i` of the
    /// result says whether the vector code applies to number `i`.
    #[inline(always)]
    pub(super) fn store(&self, lanes: L, [scales, mins, magnitudes, weights]: [&mut [f32]; 4]) -> u64 {
        let mut valid = 0;
        for g in 0..G {
            let at = g * L::LEN;
            lanes.store(self.scale[g], &mut scales[at..]);
            lanes.store(self.min[g], &mut mins[at..]);
            lanes.store(self.magnitude[g], &mut magnitudes[at..]);
            lanes.store(self.weight[g], &mut weights[at..]);
            valid |= u64::from(lanes.bits(self.valid[g])) << at;
        }
        valid
    }
}

/// A number for each of the places of `G * LEN` sub-blocks.
type Columns<L, const G: usize, const N: usize> = [[<L as Lanes>::F; G]; N];

/// What stays the same while `G * LEN` sub-blocks are searched, one per lane.
struct Pack<L: Lanes, M, const G: usize, const N: usize> {
    x: Columns<L, G, N>,
    /// The same as `x`: where both uses of a weight read memory of their own, each is an
    /// operand of its instruction and no load stands alone.
    again: Columns<L, G, N>,
    w: Columns<L, G, N>,
    sum_w: [L::F; G],
    sum_x: [L::F; G],
    smallest: [L::F; G],
    largest: [L::F; G],
    measure: PhantomData<M>,
}

/// What the search moves on. Passed and returned by value: conditional updates of something
/// that lives in memory would become masked stores, which are slow.
#[derive(Clone, Copy)]
struct State<L: Lanes, const G: usize> {
    min: [L::F; G],
    scale: [L::F; G],
    best: [L::F; G],
    valid: [L::M; G],
}

/// Sums of `w * l`, `w * l * l` and `w * l * x`.
type Sums<L, const G: usize> = [[<L as Lanes>::F; 3]; G];

impl<L: Lanes, M: Measure, const G: usize, const N: usize> Pack<L, M, G, N> {
    #[inline(always)]
    fn new(lanes: L, src: &[f32], given: &[f32]) -> (Self, State<L, G>) {
        let zero = lanes.splat(0.0);
        let none = lanes.lt(zero, zero);
        let mut pack = Self {
            x: [[zero; G]; N],
            again: [[zero; G]; N],
            w: [[zero; G]; N],
            sum_w: [zero; G],
            sum_x: [zero; G],
            smallest: [zero; G],
            largest: [zero; G],
            measure: PhantomData,
        };
        let mut state = State { min: [zero; G], scale: [zero; G], best: [zero; G], valid: [none; G] };
        for g in 0..G {
            let mut column = [zero; N];
            lanes.load_columns(&src[g * L::LEN * N..], N, &mut column);
            let mut sum_squares = zero;
            for v in column {
                sum_squares = sum_squares + v * v;
            }
            let weights = M::weights(lanes, &column, sum_squares, given.get(g * L::LEN * N..).unwrap_or(&[]));
            let (mut smallest, mut largest) = (column[0], column[0]);
            // Sums start from zero: the first weight is not negative, so 0 + w is w; and a
            // sum's sign of zero makes no difference later.
            let (mut sum_w, mut sum_x) = (zero, zero);
            for i in 0..N {
                let v = column[i];
                let w = weights[i];
                smallest = lanes.min(v, smallest);
                largest = lanes.max(v, largest);
                sum_w = sum_w + w;
                sum_x = sum_x + w * v;
                (pack.x[i][g], pack.w[i][g], pack.again[i][g]) = (v, w, v);
            }
            (pack.sum_w[g], pack.sum_x[g]) = (sum_w, sum_x);
            (pack.smallest[g], pack.largest[g]) = (smallest, largest);
            state.min[g] = lanes.select(lanes.lt(zero, smallest), zero, smallest);
            state.valid[g] =
                lanes.lt(sum_squares, lanes.splat(f32::INFINITY)) & lanes.lt(state.min[g], largest);
        }
        (pack, state)
    }

    /// The error of the codes that spread the whole range: where the search starts from.
    #[inline(always)]
    fn start(&self, lanes: L, mut state: State<L, G>, top: f32) -> State<L, G> {
        let mut codes = [[lanes.splat(0.0); G]; N];
        let (_, inverse) = self.candidate(lanes, &mut state, top, top, &mut codes);
        for g in 0..G {
            state.scale[g] = lanes.splat(1.0) / inverse[g];
        }
        state.best = self.errors(lanes, &codes, state.scale, state.min);
        state
    }

    /// Codes and sums of the candidate with `levels`, and codes per unit of weight. Drops
    /// lanes whose codes do not fit 20 bits.
    #[inline(always)]
    fn candidate(
        &self,
        lanes: L,
        state: &mut State<L, G>,
        levels: f32,
        top: f32,
        codes: &mut Columns<L, G, N>,
    ) -> (Sums<L, G>, [L::F; G]) {
        let bound = lanes.splat((1 << 20) as f32);
        let mut inverse = [lanes.splat(0.0); G];
        let (mut low, mut high) = (false, false);
        for g in 0..G {
            inverse[g] = lanes.splat(levels) / (self.largest[g] - state.min[g]);
            // Subtraction, multiplication and rounding are monotonic: no code lies outside of
            // those of the extremes.
            let a = inverse[g] * (self.smallest[g] - state.min[g]);
            let b = inverse[g] * (self.largest[g] - state.min[g]);
            state.valid[g] = state.valid[g] & lanes.lt(lanes.abs(a), bound) & lanes.lt(lanes.abs(b), bound);
            // -0.5 rounds to zero; the top is odd, so half above it rounds up.
            low |= lanes.any(lanes.lt(lanes.min(a, b), lanes.splat(-0.5)));
            high |= !lanes.all(lanes.lt(lanes.max(a, b), lanes.splat(top + 0.5)));
        }
        let sums = match (low, high) {
            (false, false) => self.accumulate::<false, false>(lanes, state.min, inverse, top, codes),
            (true, false) => self.accumulate::<true, false>(lanes, state.min, inverse, top, codes),
            (false, true) => self.accumulate::<false, true>(lanes, state.min, inverse, top, codes),
            (true, true) => self.accumulate::<true, true>(lanes, state.min, inverse, top, codes),
        };
        (sums, inverse)
    }

    /// Codes `clamp(round(inverse * (x - min)), 0, top)` and their sums; no code is above the
    /// top unless `HIGH` says so.
    #[inline(always)]
    fn accumulate<const LOW: bool, const HIGH: bool>(
        &self,
        lanes: L,
        min: [L::F; G],
        inverse: [L::F; G],
        top: f32,
        codes: &mut Columns<L, G, N>,
    ) -> Sums<L, G> {
        let (zero, top) = (lanes.splat(0.0), lanes.splat(top));
        let negated_min = min.map(|min| zero - min);
        let mut sums = [[zero; 3]; G];
        for pair in 0..N / 2 {
            for i in [2 * pair, 2 * pair + 1] {
                for g in 0..G {
                    let mut l = lanes.round(inverse[g] * (self.x[i][g] + negated_min[g]));
                    if LOW {
                        l = lanes.max(l, zero);
                    }
                    if HIGH {
                        l = lanes.min(l, top);
                    }
                    codes[i][g] = l;
                    let wl = self.w[i][g] * l;
                    sums[g][0] = sums[g][0] + wl;
                    sums[g][1] = sums[g][1] + wl * l;
                    sums[g][2] = sums[g][2] + wl * self.again[i][g];
                }
            }
        }
        sums
    }

    /// Weighted error of each sub-block.
    #[inline(always)]
    fn errors(&self, lanes: L, codes: &Columns<L, G, N>, scale: [L::F; G], min: [L::F; G]) -> [L::F; G] {
        let mut errors = [lanes.splat(0.0); G];
        for pair in 0..N / 2 {
            for i in [2 * pair, 2 * pair + 1] {
                for g in 0..G {
                    let difference = scale[g] * codes[i][g] + min[g] - self.x[i][g];
                    errors[g] = errors[g] + self.w[i][g] * M::cost(lanes, difference);
                }
            }
        }
        errors
    }

    /// Solves the least squares behind `sums`, and takes the candidate where it is better.
    #[inline(always)]
    fn judge(
        &self,
        lanes: L,
        mut state: State<L, G>,
        codes: &Columns<L, G, N>,
        sums: &Sums<L, G>,
    ) -> State<L, G> {
        let zero = lanes.splat(0.0);
        let (mut scale, mut min, mut solvable) = ([zero; G], [zero; G], state.valid);
        for g in 0..G {
            let (sum_w, sum_x) = (self.sum_w[g], self.sum_x[g]);
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
        let error = self.errors(lanes, codes, scale, min);
        for g in 0..G {
            let taken = solvable[g] & lanes.lt(error[g], state.best[g]);
            state.best[g] = lanes.select(taken, error[g], state.best[g]);
            state.scale[g] = lanes.select(taken, scale[g], state.scale[g]);
            state.min[g] = lanes.select(taken, min[g], state.min[g]);
        }
        state
    }

    #[inline(always)]
    fn found(&self, lanes: L, state: State<L, G>) -> Found<L, G> {
        let State { mut min, scale, valid, .. } = state;
        let mut magnitude = self.smallest;
        for g in 0..G {
            min[g] = lanes.splat(0.0) - min[g];
            magnitude[g] = lanes.max(lanes.abs(self.smallest[g]), lanes.abs(self.largest[g]));
        }
        Found { scale, min, magnitude, weight: self.sum_w, valid }
    }
}

/// Searches two packs of `G` vectors of sub-blocks; `src` holds `2 * G * LEN` sub-blocks one
/// after another, `given` their error weights, where these are [`Given`].
///
/// `G` vectors at a time keep the adders busy while each sum waits for its last term; the two
/// packs take turns, so that one's divisions run behind the other's sums.
#[inline(always)]
pub(super) fn search_lanes<L: Lanes, M: Measure, const G: usize, const N: usize>(
    lanes: L,
    src: &[f32],
    given: &[f32],
    search: &Search,
) -> [Found<L, G>; 2] {
    let top = search.top as f32;
    let (first, state) = Pack::<L, M, G, N>::new(lanes, src, given);
    let mut first_state = first.start(lanes, state, top);
    let half = G * L::LEN * N;
    let (second, state) = Pack::<L, M, G, N>::new(lanes, &src[half..], given.get(half..).unwrap_or(&[]));
    let mut second_state = second.start(lanes, state, top);
    let mut first_codes = [[lanes.splat(0.0); G]; N];
    let mut second_codes = first_codes;
    for k in 0..=search.steps {
        let levels = search.levels(k);
        let (first_sums, _) = first.candidate(lanes, &mut first_state, levels, top, &mut first_codes);
        let (second_sums, _) = second.candidate(lanes, &mut second_state, levels, top, &mut second_codes);
        first_state = first.judge(lanes, first_state, &first_codes, &first_sums);
        second_state = second.judge(lanes, second_state, &second_codes, &second_sums);
    }
    [first.found(lanes, first_state), second.found(lanes, second_state)]
}
