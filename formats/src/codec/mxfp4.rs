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
//! The fast encoder compares with half-way points and looks logarithms up in the exponent: 1.3 G weights/s on
//! one core of an AMD EPYC (AVX-512, CPU time), 1.1 with AVX2, where the plain code makes 0.25.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_mxfp4_ref`; OCP Microscaling Formats 1.0.

use super::Ladder;
use super::block::{self, Block};
use super::block32::LEN;
use super::e2m1;
use crate::dispatch::{self, Kernel};
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

/// The scale's byte for a positive largest magnitude.
#[inline(always)]
fn exponent_byte(largest: f32) -> u8 {
    // Rounding the 53-bit logarithm gives the same f32 as the reference's function wherever the
    // floor depends on it.
    let logarithm = f64::from(largest).log2() as f32;
    // Below 2^-125 the exponent wraps around, as the reference's conversion does on x86.
    truncate(logarithm.floor() - 2.0 + 127.0) as u8
}

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let blocks = self.0.as_chunks::<LEN>().0.iter();
        for (x, y) in blocks.zip(self.1.as_chunks_mut::<BYTES>().0) {
            // Magnitudes are ordered like their bits.
            let bits = x.iter().fold(0, |largest, v| largest.max(v.to_bits() & 0x7fff_ffff));
            // Where an `f32` of the logarithm cannot have been rounded up to the next integer, its floor is
            // the exponent.
            let is_clear = bits & 0x007f_ffff < 0x007f_ff00;
            y[0] = if is_clear {
                (bits >> 23).wrapping_sub(2) as u8
            } else {
                exponent_byte(f32::from_bits(bits))
            };
            match e2m1::first_nearest_under(x, 2.0 * half_scale(y[0])) {
                Some(codes) if bits >= 0x0100_0000 => e2m1::pack_halves(&codes, &mut y[1..]),
                _ => Mxfp4::encode_block_scalar(x, y),
            }
        }
    }
}

impl Block for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    #[inline(always)]
    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let largest = x.iter().fold(0.0f32, |largest, v| if largest < v.abs() { v.abs() } else { largest });
        y[0] = 0;
        if largest > 0.0 {
            y[0] = exponent_byte(largest);
        }
        let d = half_scale(y[0]);
        let values = DOUBLED.map(|value| value * d);
        for i in 0..LEN / 2 {
            y[1 + i] = nearest(&values, x[i]) | nearest(&values, x[LEN / 2 + i]) << 4;
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 16, even: false });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        e2m1::pack_halves(codes, &mut y[1..]);
    }

    fn encode_block_powers(power: u8, codes: &[u8], y: &mut [u8]) -> bool {
        // The last byte is a power of two here and none elsewhere.
        if power == u8::MAX {
            return false;
        }
        y[0] = power;
        e2m1::pack_halves(codes, &mut y[1..]);
        true
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
