//! IQ3_S: super-blocks of 256 weights as signs and points of a codebook of 512, with a 4-bit scale for each 32.
//!
//! ```text
//! x_i ~ d * (1 + 2 sc_j) * v_i * sign_i      v of 1, 3, 5, ... 15, sc in 0..=15
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column and m twice the mean of squares; x_i^2 without one
//! 2. per sub-block of 32: `codebook_search` with 9 candidates of 0.2 on either side; s_j is what it finds
//! 3. d = max s / 31,  sc_j = clamp(round((s_j / d - 1) / 2), 0, 15);  1.033 d is stored as a half
//! ```
//!
//! Odd, and kept: points and signs of a sub-block of zeros are left out, and those of the sub-blocks behind it move up. So a
//! super-block with such a sub-block decodes to something else; only zeros at its end do no harm.
//!
//! 110 bytes: `d` (f16); the low bytes of the numbers of all points; their top bits, eight in
//! a byte from the lowest bit up; a byte of signs for each eight weights; scales, the even sub-block's in the low nibble.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq3_s_impl`.

use super::block::{self, Block};
use super::codebook;
use super::codebook_lanes;
use super::codebook_search::{
    Again, LEN, Plain, Recipe, SIGNED_LEN, Searched, Searcher, error_weights, largest, scales, signed,
    take_signs,
};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 110;
const SUB_LEN: usize = 32;
const SUBS: usize = LEN / SUB_LEN;
/// Weights of a point, and points of a sub-block.
const GROUP_LEN: usize = 4;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Bytes of signs in a sub-block.
const SIGNS_BYTES: usize = SUB_LEN / SIGNED_LEN;
/// Where top bits, signs, and scales stand.
const TOP_AT: usize = 2 + LEN / GROUP_LEN;
const SIGNS_AT: usize = TOP_AT + SUBS;
const SCALES_AT: usize = SIGNS_AT + LEN / SIGNED_LEN;

const RECIPE: Recipe = Recipe { levels: 8, steps: 9, step: 0.2, again: Again::AllForOne };

/// The codec; see the module.
pub(super) struct Iq3S;

impl Searched for Iq3S {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
        let weights = error_weights(x, importance, 2.0, |_, v| v * v);
        let mut searched = [0.0f32; SUBS];
        y.fill(0);
        let subs = x.as_chunks().0.iter().zip(weights.as_chunks().0);
        let mut at = 0;
        for (j, (scale, (x, weights))) in searched.iter_mut().zip(subs).enumerate() {
            if x.iter().any(|&v| v != 0.0) {
                *scale = encode_sub(searcher, j, at, x, weights, y);
                at += 1;
            }
        }
        let Some((d, codes)) = scales(&searched, 15) else { return };
        y[..2].copy_from_slice(&f32_to_f16_bits(d * 1.033).to_le_bytes());
        for (y, [low, high]) in y[SCALES_AT..].iter_mut().zip(codes.as_chunks().0) {
            *y = low | high << 4;
        }
    }
}

/// Returns the scale of sub-block `j` and stores everything else, points and signs as those of number `at`.
#[inline(always)]
fn encode_sub<S: Searcher>(
    searcher: S,
    j: usize,
    at: usize,
    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    y: &mut [u8],
) -> f32 {
    let book = codebook::iq3_s();
    let mut signs = [0u8; SIGNS_BYTES];
    let x = take_signs(x, &mut signs);
    let m = largest(&x);
    let mut found = searcher.search(book, &RECIPE, &x, weights, m, m / RECIPE.top());
    if found.scale < 0.0 {
        found.scale = -found.scale;
        signs = signs.map(|signs| !signs);
    }
    for (k, levels) in found.levels.as_chunks().0.iter().enumerate() {
        let number = book.number(levels);
        y[2 + GROUPS * at + k] = number as u8;
        y[TOP_AT + j] |= ((number >> 8) as u8) << k;
    }
    y[SIGNS_AT + SIGNS_BYTES * at..][..SIGNS_BYTES].copy_from_slice(&signs);
    found.scale
}

impl Block for Iq3S {
    const NAME: &'static str = "IQ3_S";
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
        let book = codebook::iq3_s();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
            let code = y[SCALES_AT + k / 16] >> (k / 8 % 2 * 4) & 15;
            let scale = d * f32::from(1 + 2 * code);
            let top = y[TOP_AT + k / 8] >> (k % 8) & 1;
            let values = book.values(u16::from_le_bytes([y[2 + k], top]));
            let signs = y[SIGNS_AT + k / 2] >> (k % 2 * GROUP_LEN);
            *x = std::array::from_fn(|i| signed(scale * values[i], signs, i));
        }
    }
}
