//! The vector encoder of Q3_K: the search with a sub-block per lane, and the codes.
//!
//! Every lane goes through the operations of the plain search in their order. A lane where a round changed
//! nothing would change nothing in the next, so rounds go on until no lane changes.
//!
//! On one core of an AMD EPYC (a virtual machine, counted in CPU time): 513 M weights/s with AVX-512, 381 with
//! AVX2, 132 of the plain code.

use super::block::{self, Block};
use super::importance::{MAX_BATCH, batch_weights, of_block, sum};
use super::q3_k::{
    BYTES, Q3K, REACH, ROUNDS, SCALES_AT, TOP_BYTES, scales, write_scales, write_scales_weighted,
};
use super::scale_search::{Found, Peak, peak, search_given_lanes};
use super::two_bits::{LEN, ROW_LEN, SUB_LEN, SUBS};
use crate::dispatch::{LaneKernel, Lanes};

/// Vectors of sub-blocks that are searched side by side, so that one's divisions run behind the
/// others' sums.
const VECTORS: usize = 4;
/// As many lanes as the widest instruction set has in all vectors.
const MAX_SUBS: usize = VECTORS * 16;

/// One vector of sub-blocks in the search.
#[derive(Clone, Copy)]
struct State<L: Lanes> {
    x: [L::F; SUB_LEN],
    levels: [L::F; SUB_LEN],
    sum_xl: L::F,
    sum_l2: L::F,
    magnitude: L::F,
    valid: L::M,
}

impl<L: Lanes> State<L> {
    /// The levels to start from, and their sums.
    #[inline(always)]
    fn new(lanes: L, src: &[f32]) -> Self {
        let zero = lanes.splat(0.0);
        let mut x = [zero; SUB_LEN];
        lanes.load_columns(src, SUB_LEN, &mut x);
        let Peak { magnitude, extreme, valid } = peak(lanes, &x);

        let inverse = lanes.splat(-4.0) / extreme;
        let mut levels = x;
        let (mut sum_xl, mut sum_l2) = (zero, zero);
        for i in 0..SUB_LEN {
            let v = x[i];
            let l = clamp(lanes, lanes.round(inverse * v));
            let w = v * v;
            sum_xl = sum_xl + w * v * l;
            sum_l2 = sum_l2 + w * l * l;
            levels[i] = l;
        }
        Self { x, levels, sum_xl, sum_l2, magnitude, valid }
    }

    /// Tries another level for weight `i`; returns the lanes that took it.
    #[inline(always)]
    fn refine(&mut self, lanes: L, i: usize) -> L::M {
        let zero = lanes.splat(0.0);
        let (v, level) = (self.x[i], self.levels[i]);
        let w = v * v;
        let wx = w * v;
        let other_xl = self.sum_xl - wx * level;
        let is_positive = lanes.lt(zero, other_xl);
        let other_l2 = self.sum_l2 - w * level * level;
        let quotient = v * other_l2 / other_xl;
        // Beyond this the plain code rounds in its own way; NaN is beyond too.
        let is_small = lanes.lt(lanes.abs(quotient), lanes.splat((1 << 21) as f32));
        self.valid = self.valid & (is_small | lanes.lt(other_xl, zero) | lanes.eq(other_xl, zero));
        let l = clamp(lanes, lanes.round(quotient));
        let new_xl = other_xl + wx * l;
        let new_l2 = other_l2 + w * l * l;
        let taken = is_positive
            & (lanes.lt(l, level) | lanes.lt(level, l))
            & lanes.lt(zero, new_l2)
            & lanes.lt(self.sum_xl * self.sum_xl * new_l2, new_xl * new_xl * self.sum_l2);
        self.levels[i] = lanes.select(taken, l, level);
        self.sum_xl = lanes.select(taken, new_xl, self.sum_xl);
        self.sum_l2 = lanes.select(taken, new_l2, self.sum_l2);
        taken
    }

    #[inline(always)]
    fn scale(&self, lanes: L) -> L::F {
        let zero = lanes.splat(0.0);
        lanes.select(lanes.lt(zero, self.sum_l2), self.sum_xl / self.sum_l2, zero)
    }
}

/// A rounded number within the levels.
#[inline(always)]
fn clamp<L: Lanes>(lanes: L, level: L::F) -> L::F {
    lanes.min(lanes.max(level, lanes.splat(-4.0)), lanes.splat(3.0))
}

/// Searches `VECTORS` vectors of sub-blocks that stand in `src` one after another.
#[inline(always)]
fn search<L: Lanes>(lanes: L, src: &[f32]) -> [State<L>; VECTORS] {
    let mut states = [State::new(lanes, src); VECTORS];
    for g in 1..VECTORS {
        states[g] = State::new(lanes, &src[g * L::LEN * SUB_LEN..]);
    }
    for _ in 0..ROUNDS {
        let mut changed = 0;
        for i in 0..SUB_LEN {
            for state in &mut states {
                changed |= lanes.bits(state.refine(lanes, i));
            }
        }
        if changed == 0 {
            break;
        }
    }
    states
}

/// Whether vectors can compute the codes: every scale is there and every quotient is far from
/// the 22 bits that rounding can take.
#[inline(always)]
fn codes_fit(scales: &[f32; SUBS], magnitudes: &[f32; SUBS]) -> bool {
    scales.iter().zip(magnitudes).all(|(scale, magnitude)| {
        let scale = scale.abs();
        scale > 0.0 && scale < f32::INFINITY && *magnitude < scale * (1 << 21) as f32
    })
}

/// Writes the codes of a super-block: top bits, and bit pairs.
#[inline(always)]
fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], scales: &[f32; SUBS], y: &mut [u8]) {
    let (top_bits, pairs) = y.split_at_mut(TOP_BYTES);
    let (zero, one, four) = (lanes.splat(0.0), lanes.splat(1.0), lanes.splat(4.0));
    for at in (0..ROW_LEN).step_by(L::LEN) {
        let mut top = zero;
        let mut pair = [zero; 2];
        // From the highest bits down.
        for row in (0..8).rev() {
            let index = row * ROW_LEN + at;
            let quotient = lanes.load(&x[index..]) / lanes.splat(scales[index / SUB_LEN]);
            let level = clamp(lanes, lanes.round(quotient));
            // Codes are levels raised by four: the top bit says that the level is not negative.
            let is_low = lanes.lt(level, zero);
            top = top + top + lanes.select(is_low, zero, one);
            let pair = &mut pair[row / 4];
            *pair = *pair * four + lanes.select(is_low, level + four, level);
        }
        lanes.store_bytes(top, &mut top_bits[at..]);
        lanes.store_bytes(pair[0], &mut pairs[at..]);
        lanes.store_bytes(pair[1], &mut pairs[ROW_LEN + at..]);
    }
}

/// Encodes whole super-blocks.
pub(super) struct Encode<'a>(pub(super) &'a [f32], pub(super) &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch = VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        for (x, y) in self.0.chunks(batch * LEN).zip(self.1.chunks_mut(batch * BYTES)) {
            let full = block::pad(x, batch * LEN, &mut padded);
            let [mut searched, mut magnitudes] = [[0.0f32; MAX_SUBS]; 2];
            let mut valid = 0u64;
            for (g, state) in search(lanes, full).iter().enumerate() {
                lanes.store(state.scale(lanes), &mut searched[g * L::LEN..]);
                lanes.store(state.magnitude, &mut magnitudes[g * L::LEN..]);
                valid |= u64::from(lanes.bits(state.valid)) << (g * L::LEN);
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            let subs = searched.as_chunks().0.iter().zip(magnitudes.as_chunks().0);
            for (index, ((x, y), (searched, magnitudes))) in blocks.zip(subs).enumerate() {
                write_scales(searched, y);
                let scales = scales(y);
                if valid >> (index * SUBS) & 0xffff == 0xffff && codes_fit(&scales, magnitudes) {
                    store_codes(lanes, x, &scales, &mut y[..SCALES_AT]);
                } else {
                    Q3K::encode_block_scalar(x, y);
                }
            }
        }
    }
}

/// Encodes whole rows, with errors weighed by the importance of columns.
pub(super) struct EncodeWeighted<'a>(pub(super) &'a [f32], pub(super) &'a [f32], pub(super) &'a mut [u8]);

impl LaneKernel for EncodeWeighted<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self(importance, src, dst) = self;
        let batch_blocks = VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let mut weights = [0.0f32; MAX_BATCH];
        let batches = src.chunks(batch_blocks * LEN).zip(dst.chunks_mut(batch_blocks * BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * batch_blocks;
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            batch_weights::<L, LEN>(lanes, x, first, importance, 2.0 / LEN as f32, &mut weights);
            let found: Found<L, VECTORS> = search_given_lanes(lanes, full, Some(&weights), REACH);
            let [mut searched, mut magnitudes] = [[0.0f32; MAX_SUBS]; 2];
            let mut valid = 0u64;
            for g in 0..VECTORS {
                lanes.store(found.scale[g], &mut searched[g * L::LEN..]);
                lanes.store(found.magnitude[g], &mut magnitudes[g * L::LEN..]);
                valid |= u64::from(lanes.bits(found.valid[g])) << (g * L::LEN);
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            let subs = searched.as_chunks().0.iter().zip(magnitudes.as_chunks().0);
            for (index, ((x, y), (searched, magnitudes))) in blocks.zip(subs).enumerate() {
                let weights = weights[index * LEN..][..LEN].as_chunks::<SUB_LEN>().0;
                let sums = std::array::from_fn(|sub| sum(&weights[sub]));
                write_scales_weighted(searched, &sums, y);
                let scales = scales(y);
                if valid >> (index * SUBS) & 0xffff == 0xffff && codes_fit(&scales, magnitudes) {
                    store_codes(lanes, x, &scales, &mut y[..SCALES_AT]);
                } else {
                    Q3K::encode_row_weighted_scalar(of_block::<LEN>(importance, first + index), x, y);
                }
            }
        }
    }
}
