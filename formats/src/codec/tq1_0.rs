//! TQ1_0: super-blocks of 256 weights as minus one, zero or one times their largest magnitude (`ternary`), five in a byte.
//!
//! A byte holds five digits of base 3, the first weight's the highest, times 256 / 243 rounded up: so that multiplied with 3, 9,
//! 27, ... the next digit stands above its top bit. 54 bytes: 32 with weights `i`, `i + 32`, ... `i + 128` in byte `i`; 16 with
//! weights `160 + i`, `176 + i`, ...; 4 with the last 16 weights, four in each and zero as the last digit; `d` (f16).
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_tq1_0_ref`.

use super::Ladder;
use super::block::{self, Block};
use super::ternary::{self, LEN};
use crate::rounding::f16_bits_to_f32;

const BYTES: usize = 54;
const D_AT: usize = 52;
/// First weight, first byte, bytes, and weights in a byte of each part.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4)];
/// Digits of a byte.
const DIGITS: usize = 5;

/// The codec; see the module.
pub(super) struct Tq1;

/// Stores the codes of a super-block.
#[inline(always)]
fn pack(codes: &[u8], y: &mut [u8]) {
    for (first, at, len, weights) in PARTS {
        for (i, y) in y[at..][..len].iter_mut().enumerate() {
            let digit = |n: usize| if n < weights { codes[first + n * len + i] } else { 0 };
            let value = (0..DIGITS).fold(0, |value, n| value * 3 + u16::from(digit(n)));
            *y = (value * 256).div_ceil(243) as u8;
        }
    }
}

impl Block for Tq1 {
    const NAME: &'static str = "TQ1_0";
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
        let Some(x) = x.first_chunk() else { return };
        let (d, codes) = ternary::codes(x);
        pack(&codes, y);
        y[D_AT..].copy_from_slice(&d);
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 3, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        pack(codes, y);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[D_AT], y[D_AT + 1]]));
        for (first, at, len, weights) in PARTS {
            for (i, &y) in y[at..][..len].iter().enumerate() {
                let mut rest = y;
                for n in 0..weights {
                    x[first + n * len + i] = (((u16::from(rest) * 3) >> 8) as f32 - 1.0) * d;
                    rest = rest.wrapping_mul(3);
                }
            }
        }
    }
}
