//! IQ2_XXS: super-blocks of 256 weights as points of a codebook of 256, with seven signs for each eight weights and a 4-bit
//! scale for each 32.
//!
//! ```text
//! x_i ~ d * (1 + 2 sc_j) / 8 * v_i * sign_i      v of 8, 25, 43, sc in 0..=15
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column (1 without one), m the mean of squares
//! 2. per sub-block of 32: even signs; a first scale s with levels 0 to 4, as `importance::multiples`;
//!    then `codebook_search` with 6 candidates of 0.1 on either side and m = 3 s; s_j is what it finds
//! 3. d = max s / 31 (stored as a half), sc_j = clamp(round((s_j / d - 1) / 2), 0, 15)
//! ```
//!
//! A sub-block without a weight of 1e-15 or more is all zeros. 66 bytes: `d` (f16); for each sub-block the numbers of its four
//! points, then a u32 of four times seven signs from the lowest bits up, and the scale. The eighth sign makes their number even.
//! llama.cpp makes it with an importance only.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq2_xxs_impl`.

use super::block::{self, Block};
use super::codebook::{self, Codebook};
use super::codebook_lanes;
use super::codebook_search::{
    Again, LEN, Plain, Recipe, Searched, Searcher, error_weights, even_signs, largest, scales, signed,
    take_even_signs,
};
use super::importance::multiples;
use super::scale_search::EPSILON;
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 66;
const SUB_LEN: usize = 32;
const SUBS: usize = LEN / SUB_LEN;
/// Weights of a point, and points of a sub-block.
const GROUP_LEN: usize = 8;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Bytes of a sub-block.
const SUB_BYTES: usize = 8;

const RECIPE: Recipe = Recipe { levels: 3, steps: 6, step: 0.1, again: Again::All };

/// The codec; see the module.
pub(super) struct Iq2Xxs;

impl Searched for Iq2Xxs {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
        let book = codebook::iq2_xxs();
        let weights = error_weights(x, importance, 1.0, |m, v| (m + v * v).sqrt());
        let mut searched = [0.0f32; SUBS];
        y.fill(0);
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(weights.as_chunks::<SUB_LEN>().0);
        for ((scale, (x, weights)), y) in searched.iter_mut().zip(subs).zip(y[2..].as_chunks_mut().0) {
            *scale = encode_sub(searcher, book, x, weights, y);
        }
        let Some((d, codes)) = scales(&searched, 15) else { return y.fill(0) };
        y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        for (code, y) in codes.iter().zip(y[2..].as_chunks_mut::<SUB_BYTES>().0) {
            y[SUB_BYTES - 1] |= code << 4;
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
    y: &mut [u8; SUB_BYTES],
) -> f32 {
    let mut signs = [0u8; GROUPS];
    let x = take_even_signs(x, weights, &mut signs);
    if largest(&x) < EPSILON {
        return 0.0;
    }
    let first = multiples(&x, weights, 4, &mut [0; SUB_LEN]);
    let m = first * f32::from(RECIPE.levels);
    if m <= 0.0 {
        return 0.0;
    }
    let mut found = searcher.search(book, &RECIPE, &x, weights, m, first);
    if found.scale < 0.0 {
        found.scale = -found.scale;
        signs = signs.map(|signs| !signs & 127);
    }
    let (points, rest) = y.split_at_mut(GROUPS);
    for (y, levels) in points.iter_mut().zip(found.levels.as_chunks().0) {
        *y = book.number(levels) as u8;
    }
    let signs = signs.iter().enumerate().fold(0, |all, (k, &signs)| all | u32::from(signs) << (7 * k));
    rest.copy_from_slice(&signs.to_le_bytes());
    found.scale
}

impl Block for Iq2Xxs {
    const NAME: &'static str = "IQ2_XXS";
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
        let book = codebook::iq2_xxs();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        for (x, y) in x.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(y[2..].as_chunks::<SUB_BYTES>().0) {
            let rest = u32::from_le_bytes([y[4], y[5], y[6], y[7]]);
            let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
            for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
                let values = book.values(u16::from(y[k]));
                let signs = even_signs((rest >> (7 * k)) as u8);
                *x = std::array::from_fn(|i| signed(scale * values[i], signs, i));
            }
        }
    }
}
