//! IQ3_XXS: super-blocks of 256 weights as points of a codebook of 256, with seven signs for each eight weights and a 4-bit
//! scale for each 32.
//!
//! ```text
//! x_i ~ d * (1 + 2 sc_j) / 4 * v_i * sign_i      v of 4, 12, 20, 28, 36, 44, 52, 62, sc in 0..=15
//!
//! 1. w_i = c_i * sqrt(m + x_i^2), c_i the importance of the column and m twice the mean of squares; x_i^2 without one
//! 2. per sub-block of 32: even signs, then `codebook_search` with 15 candidates of 0.2 on either side; s_j is what it finds
//! 3. d = max s / 31,  sc_j = clamp(round((s_j / d - 1) / 2), 0, 15);  1.0125 d is stored as a half
//! ```
//!
//! A sub-block without a weight of 1e-8 or more is all zeros. 98 bytes: `d` (f16); the numbers of all points; for each sub-block
//! a u32 of four times seven signs from the lowest bits up (the eighth makes their number even), and the scale.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_iq3_xxs_impl`.

use super::block::{self, Block};
use super::codebook;
use super::codebook_lanes;
use super::codebook_search::{
    Again, LEN, Plain, Recipe, SIGNED_LEN, Searched, Searcher, error_weights, even_signs, largest, scales,
    signed, take_even_signs,
};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const BYTES: usize = 98;
const SUB_LEN: usize = 32;
const SUBS: usize = LEN / SUB_LEN;
/// Weights of a point, and points of a sub-block.
const GROUP_LEN: usize = 4;
const GROUPS: usize = SUB_LEN / GROUP_LEN;
/// Where signs and scales stand.
const SIGNS_AT: usize = 2 + LEN / GROUP_LEN;
/// Bytes of them in a sub-block.
const SIGNS_BYTES: usize = 4;

/// Magnitudes below this count as zero.
const EPSILON: f32 = 1e-8;

const RECIPE: Recipe = Recipe { levels: 8, steps: 15, step: 0.2, again: Again::Others };

/// The codec; see the module.
pub(super) struct Iq3Xxs;

impl Searched for Iq3Xxs {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn encode<S: Searcher>(searcher: S, x: &[f32; LEN], importance: Option<&[f32; LEN]>, y: &mut [u8]) {
        let weights = error_weights(x, importance, 2.0, |_, v| v * v);
        let mut searched = [0.0f32; SUBS];
        y.fill(0);
        let (head, signs) = y.split_at_mut(SIGNS_AT);
        let subs = x.as_chunks().0.iter().zip(weights.as_chunks().0);
        let places = head[2..].as_chunks_mut().0.iter_mut().zip(signs.as_chunks_mut().0);
        for ((scale, (x, weights)), (points, signs)) in searched.iter_mut().zip(subs).zip(places) {
            *scale = encode_sub(searcher, x, weights, points, signs);
        }
        let Some((d, codes)) = scales(&searched, 15) else { return y.fill(0) };
        head[..2].copy_from_slice(&f32_to_f16_bits(d * 1.0125).to_le_bytes());
        for (code, y) in codes.iter().zip(signs.as_chunks_mut::<SIGNS_BYTES>().0) {
            y[SIGNS_BYTES - 1] |= code << 4;
        }
    }
}

/// Returns the scale of a sub-block and stores everything else.
#[inline(always)]
fn encode_sub<S: Searcher>(
    searcher: S,

    x: &[f32; SUB_LEN],
    weights: &[f32; SUB_LEN],
    points: &mut [u8; GROUPS],
    stored: &mut [u8; SIGNS_BYTES],
) -> f32 {
    let book = codebook::iq3_xxs();
    let mut signs = [0u8; SUB_LEN / SIGNED_LEN];
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
    for (y, levels) in points.iter_mut().zip(found.levels.as_chunks().0) {
        *y = book.number(levels) as u8;
    }
    let signs = signs.iter().enumerate().fold(0, |all, (k, &signs)| all | u32::from(signs) << (7 * k));
    *stored = signs.to_le_bytes();
    found.scale
}

impl Block for Iq3Xxs {
    const NAME: &'static str = "IQ3_XXS";
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
        let book = codebook::iq3_xxs();
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let subs = y[2..SIGNS_AT].as_chunks::<GROUPS>().0.iter().zip(y[SIGNS_AT..].as_chunks().0);
        for (x, (points, rest)) in x.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(subs) {
            let rest = u32::from_le_bytes(*rest);
            let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
            for (k, x) in x.as_chunks_mut::<GROUP_LEN>().0.iter_mut().enumerate() {
                let values = book.values(u16::from(points[k]));
                let signs = even_signs((rest >> (k / 2 * 7)) as u8) >> (k % 2 * GROUP_LEN);
                *x = std::array::from_fn(|i| signed(scale * values[i], signs, i));
            }
        }
    }
}
