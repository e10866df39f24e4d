//! IQ2_XS: super-blocks of 256 weights as points of a codebook of 512, with seven signs for each eight weights and a 4-bit
//! scale for each 16.
//!
//! ```text
//! x_i ~ d * (1 + 2 sc_j) / 8 * v_i * sign_i      v of 8, 25, 43, sc in 0..=15
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column (1 without one), m the mean of squares
//! 2. per sub-block of 16: even signs, then `codebook_search` with 9 candidates of 0.1 on either side; s_j is what it finds
//! 3. d = max s / 31 (stored as a half), sc_j = clamp(round((s_j / d - 1) / 2), 0, 15)
//! ```
//!
//! A sub-block without a weight of 1e-15 or more is all zeros. 74 bytes: `d` (f16); for each eight weights a u16 of the number
//! of their point and, from bit 9 up, seven signs (the eighth makes their number even); scales, the even sub-block's in the
//! low nibble. llama.cpp makes it with an importance only.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq2_xs_impl`.

use super::block::{self, Block};
use super::codebook::{self, Codebook};
use super::codebook_lanes;
use super::codebook_search::{
    Again, LEN, Plain, Recipe, Searched, Searcher, error_weights, even_signs, largest, scales, signed,
    take_even_signs,
};
use super::scale_search::EPSILON;
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 74;
const SUB_LEN: usize = 16;
const SUBS: usize = LEN / SUB_LEN;
/// Weights of a point, and points of a sub-block.
const GROUP_LEN: usize = 8;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Bytes of a point with its signs, and where scales stand.
const POINT_BYTES: usize = 2;
const SCALES_AT: usize = 2 + LEN / GROUP_LEN * POINT_BYTES;

const RECIPE: Recipe = Recipe { levels: 3, steps: 9, step: 0.1, again: Again::Others };

/// The codec; see the module.
pub(super) struct Iq2Xs;

impl Searched for Iq2Xs {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
        let book = codebook::iq2_xs();
        let weights = error_weights(x, importance, 1.0, |m, v| (m + v * v).sqrt());
        let mut searched = [0.0f32; SUBS];
        y.fill(0);
        let subs = x.as_chunks().0.iter().zip(weights.as_chunks().0);
        let places = y[2..SCALES_AT].chunks_exact_mut(GROUPS * POINT_BYTES);
        for ((scale, (x, weights)), y) in searched.iter_mut().zip(subs).zip(places) {
            *scale = encode_sub(searcher, book, x, weights, y);
        }
        let Some((d, codes)) = scales(&searched, 15) else { return y.fill(0) };
        y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        for (y, [low, high]) in y[SCALES_AT..].iter_mut().zip(codes.as_chunks().0) {
            *y = low | high << 4;
        }
    }
}

/// Returns the scale of a sub-block and stores everything else.
#[inline(always)]
fn encode_sub<S: Searcher>(
    searcher: S,
    book: &Codebook<GROUP_LEN>,
    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    y: &mut [u8],
) -> f32 {
    let mut signs = [0u8; GROUPS];
    let x = take_even_signs(x, weights, &mut signs);
    let m = largest(&x);
    if m < EPSILON {
        return 0.0;
    }
    let mut found = searcher.search(book, &RECIPE, &x, weights, m, m / RECIPE.top());
    if found.scale < 0.0 {
        found.scale = -found.scale;
        signs = signs.map(|signs| !signs & 127);
    }
    let groups = found.levels.as_chunks().0.iter().zip(signs);
    for (y, (levels, signs)) in y.as_chunks_mut::<POINT_BYTES>().0.iter_mut().zip(groups) {
        *y = (book.number(levels) | u16::from(signs) << 9).to_le_bytes();
    }
    found.scale
}

impl Block for Iq2Xs {
    const NAME: &'static str = "IQ2_XS";
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
        let book = codebook::iq2_xs();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let points = y[2..SCALES_AT].as_chunks::<POINT_BYTES>().0;
        for (k, (x, point)) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().zip(points).enumerate() {
            let point = u16::from_le_bytes(*point);
            let code = y[SCALES_AT + k / 4] >> (k / 2 % 2 * 4) & 15;
            let scale = d * (0.5 + f32::from(code)) * 0.25;
            let values = book.values(point & 511);
            let signs = even_signs((point >> 9) as u8);
            *x = std::array::from_fn(|i| signed(scale * values[i], signs, i));
        }
    }
}
