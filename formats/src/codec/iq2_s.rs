//! IQ2_S: super-blocks of 256 weights as signs and points of a codebook of 1024, with a 4-bit scale for each 16.
//!
//! ```text
//! x_i ~ d * (1 + 2 sc_j) / 8 * v_i * sign_i      v of 8, 25, 43, sc in 0..=15
//!
//! 1. m = twice the mean of squares;  w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column,
//!    or without one m / 4 + x_i^2
//! 2. per sub-block of 16: `codebook_search` with 9 candidates of 0.1 on either side; s_j is what it finds
//! 3. d = max s / 31,  sc_j = clamp(round((s_j / d - 1) / 2), 0, 15);  0.9875 d is stored as a half
//! ```
//!
//! A sub-block without a weight of 1e-8 or more is all zeros. 82 bytes: `d` (f16); the low bytes of the numbers of all points;
//! a byte of signs for each; the two top bits of these numbers, four in a byte from the lowest bits up; scales, the even
//! sub-block's in the low nibble.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq2_s_impl`.

use super::block::{self, Block};
use super::codebook;
use super::codebook_lanes;
use super::codebook_search::{
    Again, LEN, Plain, Recipe, Searched, Searcher, error_weights, largest, scales, signed, take_signs,
};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 82;
const SUB_LEN: usize = 16;
const SUBS: usize = LEN / SUB_LEN;
/// Weights of a point; points of a sub-block and of a super-block.
const GROUP_LEN: usize = 8;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
const ALL_GROUPS: usize = LEN / GROUP_LEN;
/// Where signs, top bits, and scales stand.
const SIGNS_AT: usize = 2 + ALL_GROUPS;
const TOP_AT: usize = SIGNS_AT + ALL_GROUPS;
const SCALES_AT: usize = TOP_AT + ALL_GROUPS / 4;

/// Magnitudes below this count as zero.
const EPSILON: f32 = 1e-8;

const RECIPE: Recipe = Recipe { levels: 3, steps: 9, step: 0.1, again: Again::Others };

/// The codec; see the module.
pub(super) struct Iq2S;

impl Searched for Iq2S {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
        let weights = error_weights(x, importance, 2.0, |m, v| 0.25 * m + v * v);
        let mut searched = [0.0f32; SUBS];
        y.fill(0);
        let subs = x.as_chunks().0.iter().zip(weights.as_chunks().0);
        for (j, (scale, (x, weights))) in searched.iter_mut().zip(subs).enumerate() {
            *scale = encode_sub(searcher, j, x, weights, y);
        }
        let Some((d, codes)) = scales(&searched, 15) else { return };
        y[..2].copy_from_slice(&f32_to_f16_bits(d * 0.9875).to_le_bytes());
        for (y, [low, high]) in y[SCALES_AT..].iter_mut().zip(codes.as_chunks().0) {
            *y = low | high << 4;
        }
    }
}

/// Returns the scale of sub-block `j` and stores everything else.
#[inline(always)]
fn encode_sub<S: Searcher>(
    searcher: S,
    j: usize,
    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    y: &mut [u8],
) -> f32 {
    let book = codebook::iq2_s();
    let mut signs = [0u8; GROUPS];
    let x = take_signs(x, &mut signs);
    let m = largest(&x);
    if m < EPSILON {
        return 0.0;
    }
    let mut found = searcher.search(book, &RECIPE, &x, weights, m, m / RECIPE.top());
    if found.scale < 0.0 {
        found.scale = -found.scale;
        signs = signs.map(|signs| !signs);
    }
    for (k, (levels, signs)) in found.levels.as_chunks().0.iter().zip(signs).enumerate() {
        let (number, group) = (book.number(levels), GROUPS * j + k);
        y[2 + group] = number as u8;
        y[SIGNS_AT + group] = signs;
        y[TOP_AT + group / 4] |= ((number >> 8) as u8) << (group % 4 * 2);
    }
    found.scale
}

impl Block for Iq2S {
    const NAME: &'static str = "IQ2_S";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        codebook_lanes::encode::<Self>(None, src, dst);
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        block::each(x, None, y, BYTES, |x, importance, y| Self::encode(Plain, x, importance, y));
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        codebook_lanes::encode::<Self>(Some(importance), src, dst);
    }

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        block::each(x, Some(importance), y, BYTES, |x, importance, y| Self::encode(Plain, x, importance, y));
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let book = codebook::iq2_s();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
            let code = y[SCALES_AT + k / 4] >> (k / 2 % 2 * 4) & 15;
            let scale = d * (0.5 + f32::from(code)) * 0.25;
            let top = y[TOP_AT + k / 4] >> (k % 4 * 2) & 3;
            let values = book.values(u16::from_le_bytes([y[2 + k], top]));
            *x = std::array::from_fn(|i| signed(scale * values[i], y[SIGNS_AT + k], i));
        }
    }
}
