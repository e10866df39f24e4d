//! IQ1_S: super-blocks of 256 weights as points of a codebook of 2048, with a 3-bit scale and a shift for each 32.
//!
//! ```text
//! x_i ~ d * (2 sc_j + 1) * (l_i + delta_j)      l of -1, 0, 1, delta of 1/8, -1/8, sc in 0..=7
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column (1 without one), m twice the mean of squares
//! 2. per sub-block of 32: of all splits among the levels (`iq1`), shifted up and down, the one with the largest A^2 / B,
//!    A = sum w q x, B = sum w q^2, q = l + delta;  s_j = A / B
//! 3. for all eight weights that are no point: the neighbour with the least sum w (s_j q - x)^2; if there was one,
//!    s_j = A / B once more, where both are above zero
//! 4. d = max s / 15,  sc_j = clamp(round((s_j / d - 1) / 2), 0, 7);  1.125 d is stored as a half
//! ```
//!
//! A sub-block without a weight of 1e-12 or more is all zeros. 50 bytes: `d` (f16); the low bytes of the numbers of all points;
//! for each sub-block a u16 of their top three bits from the lowest bits up, the scale, and whether the shift is down.
//! llama.cpp makes it with an importance only.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq1_s_impl`.

use super::block::{self, Block};
use super::codebook;
use super::codebook_search::{LEN, error_weights, scales};
use super::iq1::{DELTA, DOWN, GROUP_LEN, Split, UP, add, largest, levels, point, sorted};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 50;
const SUB_LEN: usize = 32;
const SUBS: usize = LEN / SUB_LEN;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Where the top bits of numbers stand, with scales and shifts.
const TOP_AT: usize = 2 + LEN / GROUP_LEN;

/// Magnitudes below this count as zero.
const EPSILON: f32 = 1e-12;

/// The shift of a sub-block that has none.
const IS_UP: u8 = 0;
const IS_DOWN: u8 = 1;

/// The codec; see the module.
pub(super) struct Iq1S;

fn encode(x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
    let weights = error_weights(x, importance, 2.0, |m, v| (m + v * v).sqrt());
    let (mut searched, mut shifts) = ([0.0f32; SUBS], [IS_UP; SUBS]);
    y.fill(0);
    let (head, tops) = y.split_at_mut(TOP_AT);
    let subs = x.as_chunks().0.iter().zip(weights.as_chunks().0);
    let places = head[2..].as_chunks_mut().0.iter_mut().zip(tops.as_chunks_mut().0);
    let results = searched.iter_mut().zip(&mut shifts);
    for (((scale, shift), (x, weights)), (points, top)) in results.zip(subs).zip(places) {
        (*scale, *shift) = encode_sub(x, weights, points, top);
    }
    let Some((d, codes)) = scales(&searched, 7) else { return };
    head[..2].copy_from_slice(&f32_to_f16_bits(d * 1.125).to_le_bytes());
    for ((code, shift), top) in codes.iter().zip(shifts).zip(tops.as_chunks_mut::<2>().0) {
        top[1] |= (code | shift << 3) << 4;
    }
}

/// Returns scale and shift of a sub-block and stores everything else.
fn encode_sub(
    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    points: &mut [u8; GROUPS],
    top: &mut [u8; 2],
) -> (f32, u8) {
    let book = codebook::iq1();
    if largest(x) < EPSILON {
        return (0.0, IS_UP);
    }
    let order = sorted(x);
    let Some(split) = search(x, weights, &order) else { return (0.0, IS_UP) };
    let levels = levels(&order, &split);
    let shift = if split.scale < 0.0 { split.shift ^ IS_DOWN } else { split.shift };
    let mut scale = if split.scale < 0.0 { -split.scale } else { split.scale };
    let values = if shift == IS_UP { &UP } else { &DOWN };
    let groups = || {
        let pairs = x.as_chunks::<GROUP_LEN>().0.iter().zip(weights.as_chunks::<GROUP_LEN>().0);
        pairs.zip(levels.as_chunks::<GROUP_LEN>().0)
    };
    let (mut numbers, mut are_points) = ([0u16; GROUPS], true);
    for (number, ((x, weights), levels)) in numbers.iter_mut().zip(groups()) {
        let (found, is_point) = point(book, levels, x, weights, scale, values);
        *number = found;
        are_points &= is_point;
    }
    if !are_points {
        let mut sums = [0.0; 2];
        for (&number, ((x, weights), _)) in numbers.iter().zip(groups()) {
            add(&mut sums, book.point(number), x, weights, values);
        }
        if sums[0] > 0.0 && sums[1] > 0.0 {
            scale = sums[0] / sums[1];
        }
    }
    *points = numbers.map(|number| number as u8);
    *top = numbers.iter().enumerate().fold(0, |top, (k, number)| top | number >> 8 << (3 * k)).to_le_bytes();
    (scale, shift)
}

/// Tries all splits; none is found where sums are no numbers, or no weight counts.
fn search(x: &[f32; SUB_LEN], weights: &[f32; SUB_LEN], order: &[u8; SUB_LEN]) -> Option<Split> {
    let (mut sum_x, mut sum_w) = ([0.0f32; SUB_LEN + 1], [0.0f32; SUB_LEN + 1]);
    for (at, &i) in order.iter().enumerate() {
        let i = usize::from(i);
        sum_x[at + 1] = sum_x[at] + weights[i] * x[i];
        sum_w[at + 1] = sum_w[at] + weights[i];
    }
    let (mut best, mut found) = (-f32::MAX, None);
    for first in 0..=SUB_LEN {
        for second in first..=SUB_LEN {
            let parts = |sums: &[f32; SUB_LEN + 1]| {
                [sums[first] - sums[0], sums[second] - sums[first], sums[SUB_LEN] - sums[second]]
            };
            let (of_x, of_w) = (parts(&sum_x), parts(&sum_w));
            for (shift, q) in [(IS_UP, UP), (IS_DOWN, DOWN)] {
                let sum_xq = of_x[0] * q[0] + of_x[1] * q[1] + of_x[2] * q[2];
                let sum_q2 = of_w[0] * q[0] * q[0] + of_w[1] * q[1] * q[1] + of_w[2] * q[2] * q[2];
                if sum_q2 > 0.0 && sum_xq * sum_xq > best * sum_q2 {
                    let split = Split { scale: sum_xq / sum_q2, places: [first, second], shift };
                    best = split.scale * sum_xq;
                    found = Some(split);
                }
            }
        }
    }
    found
}

impl Block for Iq1S {
    const NAME: &'static str = "IQ1_S";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        block::encode_plain::<Self>(src, dst);
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        block::each(x, None, y, BYTES, encode);
    }

    const WEIGHS: bool = true;

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        block::each(x, Some(importance), y, BYTES, encode);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let book = codebook::iq1();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let subs = y[2..TOP_AT].as_chunks::<GROUPS>().0.iter().zip(y[TOP_AT..].as_chunks().0);
        for (x, (points, top)) in x.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(subs) {
            let top = u16::from_le_bytes(*top);
            let scale = d * f32::from(2 * (top >> 12 & 7) + 1);
            let delta = if top >> 15 != 0 { -DELTA } else { DELTA };
            for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
                let values = book.values(u16::from(points[k]) | (top >> (3 * k) & 7) << 8);
                *x = values.map(|value| scale * (value + delta));
            }
        }
    }
}
