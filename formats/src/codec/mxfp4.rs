//! MXFP4: 32 weights as 4-bit floats (e2m1) with one power of two, in GGUF's layout.
//!
//! ```text
//! e = floor(log2(max |x|)) - 2 + 127, or 0 where all weights are zero
//! q_i = the first code whose value is nearest to x_i      x_i ~ 2^(e - 127) * fp4[q_i]
//! fp4 = 0, 0.5, 1, 1.5, 2, 3, 4, 6, then the same negated
//! ```
//!
//! The logarithm is that of `f32`: just below a power of two it rounds up to it. 17 bytes: `e`,
//! then 16 bytes of codes: byte `i` holds weight `i` in its low and weight `i + 16` in its high nibble.
//! The plain code runs as the compiler vectorizes it.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_mxfp4_ref`; OCP Microscaling Formats 1.0.

use super::block::{self, Block};
use super::block32::LEN;
use crate::rounding::truncate;

const BYTES: usize = 17;

/// Twice the value of each code.
pub(super) const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The codec; see the module.
pub(super) struct Mxfp4;

/// Half of `2^(e - 127)`, which doubled values are multiplied with.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The first code of the nearest value.
#[inline(always)]
pub(super) fn nearest(values: &[f32; 16], x: f32) -> u8 {
    let (mut code, mut least) = (0, (values[0] - x).abs());
    for (candidate, value) in values.iter().enumerate().skip(1) {
        let error = (value - x).abs();
        if error < least {
            (code, least) = (candidate as u8, error);
        }
    }
    code
}

impl Block for Mxfp4 {
    const NAME: &'static str = "MXFP4";
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
        let largest = x.iter().fold(0.0f32, |largest, v| if largest < v.abs() { v.abs() } else { largest });
        y[0] = 0;
        if largest > 0.0 {
            // Rounding the 53-bit logarithm gives the same f32 as the reference's function
            // wherever the floor depends on it.
            let logarithm = f64::from(largest).log2() as f32;
            // Below 2^-125 the exponent wraps around, as the reference's conversion does on x86.
            y[0] = truncate(logarithm.floor() - 2.0 + 127.0) as u8;
        }
        let d = half_scale(y[0]);
        let values = DOUBLED.map(|value| value * d);
        for i in 0..LEN / 2 {
            y[1 + i] = nearest(&values, x[i]) | nearest(&values, x[LEN / 2 + i]) << 4;
        }
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let values = DOUBLED.map(|value| value * half_scale(y[0]));
        for i in 0..LEN / 2 {
            x[i] = values[usize::from(y[1 + i] & 15)];
            x[LEN / 2 + i] = values[usize::from(y[1 + i] >> 4)];
        }
    }
}
