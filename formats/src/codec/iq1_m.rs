//! IQ1_M: super-blocks of 256 weights as points of a codebook of 2048, with a shift for each 8 and a 3-bit scale for each 16.
//!
//! ```text
//! x_i ~ d * (2 sc_j + 1) * (l_i + delta_k)      l of -1, 0, 1, delta of 1/8, -1/8, sc in 0..=7
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column and m twice the mean of squares; x_i^2 without one
//! 2. per sub-block of 16: of all splits among the levels (`iq1`), each half shifted up or down, the one with the largest
//!    A^2 / B, A = sum w q x, B = sum w q^2, q = l + delta;  s_j = A / B
//! 3. for all eight weights that are no point: the neighbour with the least sum w (s_j q - x)^2; if there was one,
//!    s_j = A / B once more, where both are above zero
//! 4. d = max s / 15,  sc_j = clamp(round((s_j / d - 1) / 2), 0, 7);  then d = A / B with q = (2 sc_j + 1) (l + delta), where
//!    B is above zero;  1.1125 d is stored as a half
//! ```
//!
//! A sub-block without a weight of 1e-7 or more is all zeros. 56 bytes: the low bytes of the numbers of all points; their top
//! three bits and, in the fourth, whether the shift is down, two in a byte; four u16 of four scales each from the lowest bits
//! up, and a nibble of `d` (f16), the lowest in the first.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq1_m_impl`.

use super::block::{self, Block};
use super::codebook;
use super::codebook_search::{LEN, error_weights, scales};
use super::iq1::{DELTA, DOWN, GROUP_LEN, Split, UP, add, largest, levels, point, sorted};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 56;
const SUB_LEN: usize = 16;
const SUBS: usize = LEN / SUB_LEN;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Where top bits with shifts, and scales, stand.
const TOP_AT: usize = LEN / GROUP_LEN;
const SCALES_AT: usize = TOP_AT + SUBS;

/// Magnitudes below this count as zero.
const EPSILON: f32 = 1e-7;

/// The codec; see the module.
pub(super) struct Iq1M;

/// Values of the levels in a half of a sub-block; in `shift`, bit 0 says that the second half is shifted down, bit 1 that the
/// first is.
#[inline(always)]
fn values(shift: u8, half: usize) -> &'static [f32; 3] {
    if shift >> (1 - half) & 1 == 0 { &UP } else { &DOWN }
}

fn encode(x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
    let weights = error_weights(x, importance, 2.0, |_, v| v * v);
    let (mut searched, mut shifts) = ([0.0f32; SUBS], [0u8; SUBS]);
    y.fill(0);
    let (points, rest) = y.split_at_mut(TOP_AT);
    let (tops, stored) = rest.split_at_mut(SCALES_AT - TOP_AT);
    let subs = || x.as_chunks::<SUB_LEN>().0.iter().zip(weights.as_chunks::<SUB_LEN>().0);
    let places = points.as_chunks_mut().0.iter_mut().zip(tops.iter_mut());
    let results = searched.iter_mut().zip(&mut shifts);
    for (((scale, shift), (x, weights)), (points, top)) in results.zip(subs()).zip(places) {
        (*scale, *shift) = encode_sub(x, weights, points, top);
    }
    let Some((mut d, codes)) = scales(&searched, 7) else { return };
    let mut sums = [0.0f32; 2];
    for (j, (x, weights)) in subs().enumerate() {
        let (code, shift) = (codes[j], shifts[j]);
        tops[j] |= shift >> 1 << 3 | (shift & 1) << 7;
        for half in 0..GROUPS {
            let number = u16::from(points[GROUPS * j + half]) | u16::from(tops[j] >> (4 * half) & 7) << 8;
            let values = values(shift, half).map(|value| value * f32::from(2 * code + 1));
            let (x, weights) = (&x.as_chunks().0[half], &weights.as_chunks().0[half]);
            add(&mut sums, codebook::iq1().point(number), x, weights, &values);
        }
    }
    if sums[1] > 0.0 {
        d = sums[0] / sums[1];
    }
    let d = f32_to_f16_bits(d * 1.1125);
    for (k, (codes, y)) in codes.as_chunks::<4>().0.iter().zip(stored.as_chunks_mut().0).enumerate() {
        let codes = codes.iter().rev().fold(0, |all, &code| all << 3 | u16::from(code));
        *y = (codes | (d >> (4 * k) & 15) << 12).to_le_bytes();
    }
}

/// Returns scale and shifts of a sub-block and stores everything else.
fn encode_sub(
    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    points: &mut [u8; GROUPS],
    top: &mut u8,
) -> (f32, u8) {
    let book = codebook::iq1();
    if largest(x) < EPSILON {
        return (0.0, 0);
    }
    let order = sorted(x);
    let Some(split) = search(x, weights, &order) else { return (0.0, 0) };
    let levels = levels(&order, &split);
    let shift = if split.scale < 0.0 { split.shift ^ 3 } else { split.shift };
    let mut scale = if split.scale < 0.0 { -split.scale } else { split.scale };
    let groups = || {
        let pairs = x.as_chunks::<GROUP_LEN>().0.iter().zip(weights.as_chunks::<GROUP_LEN>().0);
        pairs.zip(levels.as_chunks::<GROUP_LEN>().0).enumerate()
    };
    let (mut numbers, mut are_points) = ([0u16; GROUPS], true);
    for (half, ((x, weights), levels)) in groups() {
        let (found, is_point) = point(book, levels, x, weights, scale, values(shift, half));
        numbers[half] = found;
        are_points &= is_point;
    }
    if !are_points {
        let mut sums = [0.0; 2];
        for (half, ((x, weights), _)) in groups() {
            add(&mut sums, book.point(numbers[half]), x, weights, values(shift, half));
        }
        if sums[0] > 0.0 && sums[1] > 0.0 {
            scale = sums[0] / sums[1];
        }
    }
    *points = numbers.map(|number| number as u8);
    *top = (numbers[0] >> 8 | numbers[1] >> 8 << 4) as u8;
    (scale, shift)
}

/// Sums of one half of a sub-block.
struct Half {
    /// Of the weights in front of each place, in order: `sum w x` and `sum w`.
    sum_x: [f32; SUB_LEN + 1],
    sum_w: [f32; SUB_LEN + 1],
}

impl Half {
    /// `A` and `B` of a split with the levels at `q`.
    #[inline(always)]
    fn sums(&self, [first, second]: [usize; 2], q: &[f32; 3]) -> [f32; 2] {
        let (x, w) = (&self.sum_x, &self.sum_w);
        // Neighbouring levels are one apart.
        let a = x[SUB_LEN] * q[2] - (x[first] + x[second]);
        let b = w[SUB_LEN] * q[2] * q[2]
            + w[first] * (q[0] * q[0] - q[1] * q[1])
            + w[second] * (q[1] * q[1] - q[2] * q[2]);
        [a, b]
    }
}

/// Tries all splits; none is found where sums are no numbers, or no weight counts.
fn search(x: &[f32; SUB_LEN], weights: &[f32; SUB_LEN], order: &[u8; SUB_LEN]) -> Option<Split> {
    let halves: [Half; GROUPS] = std::array::from_fn(|half| {
        let mut own = Half { sum_x: [0.0; SUB_LEN + 1], sum_w: [0.0; SUB_LEN + 1] };
        for (at, &i) in order.iter().enumerate() {
            let i = usize::from(i);
            let is_in = i / GROUP_LEN == half;
            own.sum_x[at + 1] = if is_in { own.sum_x[at] + weights[i] * x[i] } else { own.sum_x[at] };
            own.sum_w[at + 1] = if is_in { own.sum_w[at] + weights[i] } else { own.sum_w[at] };
        }
        own
    });
    let (mut best, mut found) = (-f32::MAX, None);
    for first in 0..=SUB_LEN {
        for second in first..=SUB_LEN {
            let places = [first, second];
            let sums = halves.each_ref().map(|half| [half.sums(places, &UP), half.sums(places, &DOWN)]);
            for shift in 0..4u8 {
                let (a, b) = (sums[0][usize::from(shift >> 1)], sums[1][usize::from(shift & 1)]);
                let (sum_xq, sum_q2) = (a[0] + b[0], a[1] + b[1]);
                if sum_q2 > 0.0 && sum_xq * sum_xq > best * sum_q2 {
                    let split = Split { scale: sum_xq / sum_q2, places, shift };
                    best = split.scale * sum_xq;
                    found = Some(split);
                }
            }
        }
    }
    found
}

impl Block for Iq1M {
    const NAME: &'static str = "IQ1_M";
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
        let words: [u16; 4] =
            std::array::from_fn(|k| u16::from_le_bytes([y[SCALES_AT + 2 * k], y[SCALES_AT + 2 * k + 1]]));
        let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
        let d = f16_bits_to_f32(d);
        for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
            let (sub, top) = (k / GROUPS, y[TOP_AT + k / GROUPS] >> (k % GROUPS * 4));
            let scale = d * f32::from(2 * (words[sub / 4] >> (sub % 4 * 3) & 7) + 1);
            let delta = if top & 8 != 0 { -DELTA } else { DELTA };
            let values = book.values(u16::from_le_bytes([y[k], top & 7]));
            *x = values.map(|value| scale * (value + delta));
        }
    }
}
