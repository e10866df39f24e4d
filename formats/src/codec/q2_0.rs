//! Q2_0: blocks of 64 weights as minus one, zero or one times their largest magnitude.
//!
//! ```text
//! x_i ~ d * (q_i - 1)       q in 0..=3, d = max |x| (stored as a half)
//!
//! q_i = round(x_i / d) + 1, ties away from zero; 3 is written with error feedback only
//! ```
//!
//! Where `1 / d` is too large for an `f32`, all `q` are 0. 18 bytes: `d` (f16), then the codes, four in a byte from the lowest
//! bits up.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q2_0_ref`.

use super::Ladder;
use super::block::{self, Block};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits};

const LEN: usize = 64;
const BYTES: usize = 18;

/// The codec; see the module.
pub(super) struct Q2;

/// No quotient is above one by more than rounding.
#[inline(always)]
fn code(t: f32) -> u8 {
    let is_number = u8::from(t.abs() < 2.0);
    is_number * (1 + u8::from(t >= 0.5) - u8::from(t <= -0.5))
}

impl Block for Q2 {
    const NAME: &'static str = "Q2_0";
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
        let d = x.iter().fold(0.0f32, |largest, v| if v.abs() > largest { v.abs() } else { largest });
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        y[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        for (x, y) in x.as_chunks::<4>().0.iter().zip(&mut y[2..]) {
            *y = x.iter().rev().fold(0, |codes, v| codes << 2 | code(v * inverse));
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 4, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        for (codes, y) in codes.as_chunks::<4>().0.iter().zip(&mut y[2..]) {
            *y = codes.iter().rev().fold(0, |all, code| all << 2 | code);
        }
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[0], y[1]]));
        for (x, y) in x.as_chunks_mut::<4>().0.iter_mut().zip(&y[2..]) {
            *x = std::array::from_fn(|i| (f32::from(y >> (2 * i) & 3) - 1.0) * d);
        }
    }
}
