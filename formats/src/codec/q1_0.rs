//! Q1_0: blocks of 128 weights as signs, with their mean magnitude.
//!
//! ```text
//! x_i ~ d * (2 q_i - 1)       q in 0..=1
//!
//! d = sum |x| / 128, from the first to the last (stored as a half);  q_i = 1 where x_i >= 0
//! ```
//!
//! 18 bytes: `d` (f16), then the signs, eight in a byte from the lowest bit up.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q1_0_ref`.

use super::Ladder;
use super::block::{self, Block};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const LEN: usize = 128;
const BYTES: usize = 18;

/// The codec; see the module.
pub(super) struct Q1;

impl Block for Q1 {
    const NAME: &'static str = "Q1_0";
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
        let d = x.iter().fold(0.0f32, |sum, v| sum + v.abs()) / LEN as f32;
        y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        for (x, y) in x.as_chunks::<8>().0.iter().zip(&mut y[2..]) {
            *y = x.iter().enumerate().fold(0, |bits, (i, &v)| bits | u8::from(v >= 0.0) << i);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 2, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        for (codes, y) in codes.as_chunks::<8>().0.iter().zip(&mut y[2..]) {
            *y = codes.iter().rev().fold(0, |bits, code| bits << 1 | code);
        }
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        for (x, y) in x.as_chunks_mut::<8>().0.iter_mut().zip(&y[2..]) {
            *x = std::array::from_fn(|i| if y >> i & 1 != 0 { d } else { -d });
        }
    }
}
