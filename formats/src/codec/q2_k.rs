//! Q2_K: super-blocks of 256 weights as 2-bit codes, with a 4-bit scale and minimum for each 16.
//!
//! ```text
//! x_i ~ d * sc_j * q_i - dmin * m_j      q in 0..=3, sc and m in 0..=15
//!
//! 1. per sub-block, search scale s_j and minimum n_j >= 0 (`scale_min_search`: 16 candidates,
//!    from 2.5 to 4 levels over the range; error weights |x|, absolute differences)
//! 2. d = max s / 15, dmin = max n / 15 (stored as halves)
//!    sc_j = round(s_j * (15 / max s)), m_j likewise
//! 3. q_i = clamp(round((x_i + dmin * m_j) / (d * sc_j)), 0, 3), with the halves' values;
//!    where d * sc_j is zero the codes of the search stay
//! ```
//!
//! Rounding is to nearest, ties to even. 84 bytes: 16 of `sc_j` in the low and `m_j` in the high
//! nibble, 64 of codes (`two_bits`), `d` (f16), `dmin` (f16). There is no vector search yet: the
//! plain code runs as the compiler vectorizes it.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q2_K_ref`.

use super::block::{self, Block};
use super::scale_min_search::{Search, search_weighted};
use super::two_bits::{self, LEN, SUB_LEN, SUBS};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

const BYTES: usize = 84;
/// Where `d` stands in a block.
const D_AT: usize = SUBS + two_bits::BYTES;

const SEARCH: Search = Search { top: 3, first: -0.5, step: 0.1, steps: 15 };

/// The codec; see the module.
pub(super) struct Q2K;

/// Scale and minimum of each sub-block as a stored block has them.
#[inline(always)]
fn scales_and_mins(y: &[u8]) -> ([f32; SUBS], [f32; SUBS]) {
    let d = f16_bits_to_f32(u16::from_le_bytes([y[D_AT], y[D_AT + 1]]));
    let dmin = f16_bits_to_f32(u16::from_le_bytes([y[D_AT + 2], y[D_AT + 3]]));
    (std::array::from_fn(|j| d * f32::from(y[j] & 15)), std::array::from_fn(|j| dmin * f32::from(y[j] >> 4)))
}

/// The largest value above zero, or zero; and what makes it fifteen.
#[inline(always)]
fn largest(values: &[f32; SUBS]) -> (f32, f32) {
    let largest = values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    (largest, if largest > 0.0 { 15.0 / largest } else { 0.0 })
}

impl Block for Q2K {
    const NAME: &'static str = "Q2_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        block::encode_plain::<Self>(src, dst);
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    #[inline(always)]
    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let mut codes = [0u8; LEN];
        let (mut scales, mut mins) = ([0.0; SUBS], [0.0; SUBS]);
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
        for (j, (x, codes)) in subs.enumerate() {
            (scales[j], mins[j]) = search_weighted(x, &x.map(f32::abs), &SEARCH, f32::abs, codes);
        }
        let (max_scale, inverse_scale) = largest(&scales);
        let (max_min, inverse_min) = largest(&mins);
        for (y, (scale, min)) in y.iter_mut().zip(scales.iter().zip(mins)) {
            // As the reference has it: what does not fit the nibble spills over.
            let scale = if max_scale > 0.0 { nearest_int(inverse_scale * scale) as u8 } else { 0 };
            let min = if max_min > 0.0 { nearest_int(inverse_min * min) << 4 } else { 0 };
            *y = scale | min as u8;
        }
        y[D_AT..D_AT + 2].copy_from_slice(&f32_to_f16_bits(max_scale / 15.0).to_le_bytes());
        y[D_AT + 2..].copy_from_slice(&f32_to_f16_bits(max_min / 15.0).to_le_bytes());

        let (scales, mins) = scales_and_mins(y);
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
        for ((x, codes), (scale, min)) in subs.zip(scales.into_iter().zip(mins)) {
            if scale == 0.0 {
                continue;
            }
            for (code, v) in codes.iter_mut().zip(x) {
                *code = nearest_int((v + min) / scale).clamp(0, SEARCH.top) as u8;
            }
        }
        two_bits::pack(&codes, &mut y[SUBS..D_AT]);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let (scales, mins) = scales_and_mins(y);
        let codes = two_bits::unpack(&y[SUBS..D_AT]);
        for (i, (v, code)) in x.iter_mut().zip(codes).enumerate() {
            *v = scales[i / SUB_LEN] * f32::from(code) - mins[i / SUB_LEN];
        }
    }
}
