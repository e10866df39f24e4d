//! TQ2_0: super-blocks of 256 weights as minus one, zero or one times their largest magnitude (`ternary`), two bits each.
//!
//! 66 bytes: 64 of codes (`two_bits`), `d` (f16). Code 3, which is never written, is two times `d`.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_tq2_0_ref`.

use super::Ladder;
use super::block::{self, Block};
use super::ternary::{self, LEN};
use super::two_bits;
use crate::rounding::f16_bits_to_f32;

const BYTES: usize = two_bits::BYTES + 2;

/// The codec; see the module.
pub(super) struct Tq2;

impl Block for Tq2 {
    const NAME: &'static str = "TQ2_0";
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
        let (packed, stored) = y.split_at_mut(two_bits::BYTES);
        two_bits::pack(&codes, packed);
        stored.copy_from_slice(&d);
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 3, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        let Some(codes) = codes.first_chunk() else { return };
        two_bits::pack(codes, &mut y[..two_bits::BYTES]);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[BYTES - 2], y[BYTES - 1]]));
        let codes = two_bits::unpack(&y[..two_bits::BYTES]);
        for (v, code) in x.iter_mut().zip(codes) {
            *v = (f32::from(code) - 1.0) * d;
        }
    }
}
