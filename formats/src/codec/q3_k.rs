//! Q3_K: super-blocks of 256 weights as 3-bit codes around 4, with a 6-bit scale for each 16.
//!
//! ```text
//! x_i ~ d * (sc_j - 32) * (q_i - 4)      q in 0..=7, sc in 0..=63
//!
//! 1. per sub-block, with m its first weight of largest magnitude and w_i = x_i^2:
//!    l_i = clamp(round(x_i * -4 / m), -4, 3);   A = sum w x l, B = sum w l^2
//!    up to five times, until nothing changes, for each i: with A', B' the sums without i,
//!    try l = clamp(round(x_i * B' / A'), -4, 3) where A' > 0, and keep it when that raises
//!    A^2 / B;   s_j = A / B
//! 2. d = 1 / (-32 / s) (stored as a half) with s the first s_j of largest magnitude,
//!    sc_j = clamp(round(s_j * (-32 / s)), -32, 31) + 32
//! 3. q_i = clamp(round(x_i / (d * (sc_j - 32))), -4, 3) + 4, with the half's value of d;
//!    where that scale is zero the codes of the search stay
//! ```
//!
//! Rounding is to nearest, ties to even. A sub-block without a weight of 1e-15 or more has
//! scale and codes `q` zero. 110 bytes: 32 of top bits (bit `b` of byte `i` belongs to weight
//! `32 b + i`), 64 of the two low bits (`two_bits`), 12 of scales, `d` (f16). Scales: the low nibbles of
//! sc_0-7 are those of bytes 0-7, of sc_8-15 the high ones; bits `2 k` and up of byte `8 + i` are the
//! top two of sc_(4 k + i). The vector encoder is `q3_k_lanes`.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q3_K_ref`, `make_q3_quants`.

use super::block::{self, Block};
use super::importance::{error_weights, sum, sum_squares};
use super::q3_k_lanes::{Encode, EncodeWeighted};
use super::scale_search::{EPSILON, search_weighted};
use super::two_bits::{self, LEN, SUB_LEN, SUBS};
use super::{Ladder, Scales, TwoLevels, Units};
use crate::dispatch;
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

pub(super) const BYTES: usize = 110;
/// Bytes of top bits, and how many weights apart the bits of a byte are.
pub(super) const TOP_BYTES: usize = LEN / 8;
/// Where scales, and then `d`, stand in a block.
pub(super) const SCALES_AT: usize = TOP_BYTES + two_bits::BYTES;
const D_AT: usize = BYTES - 2;

/// Codes of weights are this far from zero at most.
pub(super) const REACH: i8 = 4;

/// Times that the search goes over a sub-block at most.
pub(super) const ROUNDS: usize = 5;

/// The codec; see the module.
pub(super) struct Q3K;

/// The scale of one sub-block; its codes, raised by 4, go to `codes`.
fn search(x: &[f32; SUB_LEN], codes: &mut [u8]) -> f32 {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > largest {
            largest = v.abs();
            extreme = v;
        }
    }
    if largest < EPSILON {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -4.0 / extreme;
    let mut levels = x.map(|v| nearest_int(inverse * v).clamp(-4, 3) as f32);
    let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
    for (&v, &l) in x.iter().zip(&levels) {
        let w = v * v;
        sum_xl += w * v * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (&v, level) in x.iter().zip(&mut levels) {
            let w = v * v;
            let mut other_xl = sum_xl - w * v * *level;
            // False for NaN too.
            if other_xl > 0.0 {
                let mut other_l2 = sum_l2 - w * *level * *level;
                let l = nearest_int(v * other_l2 / other_xl).clamp(-4, 3) as f32;
                if l != *level {
                    other_xl += w * v * l;
                    other_l2 += w * l * l;
                    if other_l2 > 0.0 && other_xl * other_xl * sum_l2 > sum_xl * sum_xl * other_l2 {
                        (*level, sum_xl, sum_l2) = (l, other_xl, other_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(levels) {
        *code = (level + 4.0) as u8;
    }
    if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 }
}

/// `d * (sc_j - 32)` of each sub-block of a stored block.
#[inline(always)]
pub(super) fn scales(y: &[u8]) -> [f32; SUBS] {
    let (d, multiples) = multiples(y);
    multiples.map(|multiple| d * multiple as f32)
}

/// `d` and `sc_j - 32` of each sub-block of a stored block.
#[inline(always)]
fn multiples(y: &[u8]) -> (f32, [i32; SUBS]) {
    let d = f16_bits_to_f32(u16::from_le_bytes([y[D_AT], y[D_AT + 1]]));
    let packed = &y[SCALES_AT..D_AT];
    let multiples = std::array::from_fn(|j| {
        let low = packed[j % 8] >> (j / 8 * 4) & 15;
        let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        i32::from(low | high << 4) - 32
    });
    (d, multiples)
}

/// Step 2 of the module's recipe; everything but scales and `d` is zero.
#[inline(always)]
pub(super) fn write_scales(searched: &[f32; SUBS], y: &mut [u8]) {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &scale in searched {
        if scale.abs() > largest {
            (largest, extreme) = (scale.abs(), scale);
        }
    }
    y.fill(0);
    if extreme != 0.0 {
        let inverse = -32.0 / extreme;
        // The reference stores the integer in a byte before it clamps.
        let codes = searched.map(|scale| ((nearest_int(inverse * scale) as i8).clamp(-32, 31) + 32) as u8);
        store_scales(&codes, 1.0 / inverse, y);
    }
}

/// Stores the codes `sc_j` and `d`, where all bytes are zero.
#[inline(always)]
fn store_scales(codes: &[u8; SUBS], d: f32, y: &mut [u8]) {
    for (j, code) in codes.iter().enumerate() {
        y[SCALES_AT + j % 8] |= (code & 15) << (j / 8 * 4);
        y[SCALES_AT + 8 + j % 4] |= code >> 4 << (j / 4 * 2);
    }
    y[D_AT..].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
}

/// As [`write_scales`], with errors weighed by the importance of columns: `weights` are the sums of each sub-block's.
#[inline(always)]
pub(super) fn write_scales_weighted(searched: &[f32; SUBS], weights: &[f32; SUBS], y: &mut [u8]) {
    y.fill(0);
    let mut codes = [0u8; SUBS];
    let d = search_weighted(searched, weights, 32, &mut codes);
    store_scales(&codes, d, y);
}

/// Step 3 of the module's recipe in plain code; `codes` are those of the search.
fn write_codes(x: &[f32], codes: &mut [u8; LEN], y: &mut [u8]) {
    let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
    for ((x, codes), scale) in subs.zip(scales(y)) {
        if scale == 0.0 {
            continue;
        }
        for (code, v) in codes.iter_mut().zip(x) {
            *code = (nearest_int(v / scale).clamp(-4, 3) + 4) as u8;
        }
    }
    pack_codes(*codes, y);
}

/// Stores codes where the top bits are zeros.
fn pack_codes(mut codes: [u8; LEN], y: &mut [u8]) {
    for (bit, codes) in codes.as_chunks_mut::<TOP_BYTES>().0.iter_mut().enumerate() {
        for (y, code) in y.iter_mut().zip(codes) {
            *y |= *code >> 2 << bit;
            *code &= 3;
        }
    }
    two_bits::pack(&codes, &mut y[TOP_BYTES..SCALES_AT]);
}

impl Block for Q3K {
    const NAME: &'static str = "Q3_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let mut codes = [0u8; LEN];
        let mut searched = [0.0f32; SUBS];
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
        for (scale, (x, codes)) in searched.iter_mut().zip(subs) {
            *scale = search(x, codes);
        }
        write_scales(&searched, y);
        write_codes(x, &mut codes, y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted(importance, src, dst));
    }

    /// The search of Q6_K (`scale_search`), with codes from -4 to 3, for the weights and then for the scales.
    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            let mut codes = [0u8; LEN];
            let [mut searched, mut sums] = [[0.0; SUBS]; 2];
            let m = 2.0 * sum_squares(x) / LEN as f32;
            let subs = x.chunks_exact(SUB_LEN).zip(importance.chunks_exact(SUB_LEN));
            for (j, ((x, importance), codes)) in subs.zip(codes.chunks_exact_mut(SUB_LEN)).enumerate() {
                let weights: [f32; SUB_LEN] = error_weights(x, importance, m);
                sums[j] = sum(&weights);
                searched[j] = search_weighted(x, &weights, REACH, codes);
            }
            write_scales_weighted(&searched, &sums, y);
            write_codes(x, &mut codes, y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 8, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        let Some(codes) = codes.first_chunk() else { return };
        y[..TOP_BYTES].fill(0);
        pack_codes(*codes, y);
    }

    const TWO_LEVELS: Option<TwoLevels> =
        Some(TwoLevels { sub_len: SUB_LEN, scales: (-32, 31), top_min: 0, units: Units::From(4.0) });

    fn block_scales(y: &[u8]) -> Scales {
        let (d, multiples) = multiples(y);
        Scales { d, scales: multiples.map(|multiple| multiple as i16), ..Scales::default() }
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        y[SCALES_AT..].fill(0);
        store_scales(&scales.scales.map(|multiple| (multiple + 32) as u8), scales.d, y);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let scales = scales(y);
        let codes = two_bits::unpack(&y[TOP_BYTES..SCALES_AT]);
        for (i, (v, code)) in x.iter_mut().zip(codes).enumerate() {
            let top = y[i % TOP_BYTES] >> (i / TOP_BYTES) & 1;
            *v = scales[i / SUB_LEN] * (i32::from(code | top << 2) - 4) as f32;
        }
    }
}
