//! IQ4_XS: super-blocks of 256 weights as codes of sixteen unevenly spaced levels, with a 6-bit
//! scale for each 32.
//!
//! ```text
//! x_i ~ d * (sc_j - 32) * levels[q_i]      sc in 0..=63
//!
//! s_j = the searched scale of sub-block j (`iq4`);  s = the first s_j of largest magnitude
//! d = -s / 32,  sc_j = clamp(round(s_j * (1 / d)), -32, 31) + 32
//! q_i = the level nearest to x_i * (1 / (d * (sc_j - 32)))
//! ```
//!
//! Codes use the `f32` value of `d`, which is then stored as a half. Rounding is to nearest, ties
//! to even. 136 bytes: `d` (f16), u16 of the top two bits of each `sc_j` from the lowest bits up,
//! 4 bytes of their low nibbles, the even `j` in the low one, then 16 bytes of codes per
//! sub-block as in IQ4_NL. There is no vector search yet: the plain code runs as the compiler
//! vectorizes it.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_iq4_xs`.

use super::block::{self, Block};
use super::block32::LEN as SUB_LEN;
use super::iq4::{inverse, load_values, search, store_codes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

const LEN: usize = 256;
const BYTES: usize = 136;
/// Sub-blocks in a super-block.
const SUBS: usize = LEN / SUB_LEN;
/// Where the low nibbles of the scales, and then the codes, start in a block.
const LOW_AT: usize = 4;
const CODES_AT: usize = LOW_AT + SUBS / 2;

/// The codec; see the module.
pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
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
        let mut scales = [0.0f32; SUBS];
        let (mut largest, mut extreme) = (0.0f32, 0.0f32);
        for (scale, x) in scales.iter_mut().zip(x.chunks_exact(SUB_LEN)) {
            *scale = search(x);
            if scale.abs() > largest {
                (largest, extreme) = (scale.abs(), *scale);
            }
        }
        let d = -extreme / 32.0;
        let mut high = 0u16;
        let (head, codes) = y.split_at_mut(CODES_AT);
        head.fill(0);
        let subs = x.chunks_exact(SUB_LEN).zip(codes.chunks_exact_mut(SUB_LEN / 2));
        for (j, (scale, (x, codes))) in scales.iter().zip(subs).enumerate() {
            let scale = nearest_int(inverse(d) * scale).clamp(-32, 31);
            store_codes(x, inverse(d * scale as f32), codes);
            let scale = (scale + 32) as u8;
            head[LOW_AT + j / 2] |= (scale & 15) << (j % 2 * 4);
            high |= u16::from(scale >> 4) << (2 * j);
        }
        head[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        head[2..4].copy_from_slice(&high.to_le_bytes());
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        let high = u16::from_le_bytes([y[2], y[3]]);
        let subs = x.chunks_exact_mut(SUB_LEN).zip(y[CODES_AT..].chunks_exact(SUB_LEN / 2));
        for (j, (x, codes)) in subs.enumerate() {
            let low = i32::from(y[LOW_AT + j / 2] >> (j % 2 * 4) & 15);
            let scale = low | i32::from(high >> (2 * j) & 3) << 4;
            load_values(codes, d * (scale - 32) as f32, x);
        }
    }
}
