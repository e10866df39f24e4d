//! Number formats of scales, and rounding to them as vectors can do it.
//!
//! The quotients and products here are within what the short roundings need: a quotient's only use is the
//! integer next to it, so what is under 2^-14 may stay as it is; a product of an F16 number and an
//! integer below 16 is exact when it is that small.

use super::scalar::Format;
use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits};

/// A number format, as a type so that kernels are compiled for each.
pub(super) trait Number: Sync + 'static {
    /// Its name for the plain code.
    const FORMAT: Format;
    /// Bytes of a number.
    const LEN: usize;
    /// The distance from 1 to the next number.
    const EPSILON: f32;

    /// The nearest number, ties to even.
    fn round(value: f32) -> f32;
    /// As `round`, save that results below 2^-14 and above 65504 may be finer or larger numbers.
    fn round_quotient(value: f32) -> f32;
    /// As `round`, for the product of a number and an integer below 16.
    fn round_product(value: f32) -> f32;
    /// Writes a number.
    fn store(value: f32, dst: &mut [u8]);
    /// Reads a number.
    fn load(src: &[u8]) -> f32;
}

/// Scales of BF16 weights.
pub(super) struct Bf16;
/// Scales of F16 weights.
pub(super) struct F16;
/// Scales of F32 weights.
pub(super) struct F32;

/// Drops the low `bits` bits of the mantissa, ties to even.
#[inline(always)]
fn shorten(value: f32, bits: u32) -> f32 {
    let raw = value.to_bits();
    let odd = raw >> bits & 1;
    f32::from_bits(raw.wrapping_add((1 << (bits - 1)) - 1 + odd) & (u32::MAX << bits))
}

impl Number for Bf16 {
    const FORMAT: Format = Format::Bf16;
    const LEN: usize = 2;
    const EPSILON: f32 = 0.007_812_5;

    #[inline(always)]
    fn round(value: f32) -> f32 {
        bf16_bits_to_f32(f32_to_bf16_bits(value))
    }
    #[inline(always)]
    fn round_quotient(value: f32) -> f32 {
        shorten(value, 16)
    }
    #[inline(always)]
    fn round_product(value: f32) -> f32 {
        shorten(value, 16)
    }
    #[inline(always)]
    fn store(value: f32, dst: &mut [u8]) {
        dst.copy_from_slice(&f32_to_bf16_bits(value).to_le_bytes());
    }
    #[inline(always)]
    fn load(src: &[u8]) -> f32 {
        bf16_bits_to_f32(u16::from_le_bytes([src[0], src[1]]))
    }
}

impl Number for F16 {
    const FORMAT: Format = Format::F16;
    const LEN: usize = 2;
    const EPSILON: f32 = 0.000_976_562_5;

    #[inline(always)]
    fn round(value: f32) -> f32 {
        f16_bits_to_f32(f32_to_f16_bits(value))
    }
    #[inline(always)]
    fn round_quotient(value: f32) -> f32 {
        shorten(value, 13)
    }
    #[inline(always)]
    fn round_product(value: f32) -> f32 {
        let short = shorten(value, 13);
        let infinite = f32::from_bits(short.to_bits() & 0x8000_0000 | 0x7f80_0000);
        if short.abs() >= 65_536.0 { infinite } else { short }
    }
    #[inline(always)]
    fn store(value: f32, dst: &mut [u8]) {
        dst.copy_from_slice(&f32_to_f16_bits(value).to_le_bytes());
    }
    #[inline(always)]
    fn load(src: &[u8]) -> f32 {
        f16_bits_to_f32(u16::from_le_bytes([src[0], src[1]]))
    }
}

impl Number for F32 {
    const FORMAT: Format = Format::F32;
    const LEN: usize = 4;
    const EPSILON: f32 = f32::EPSILON;

    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn round_quotient(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn round_product(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn store(value: f32, dst: &mut [u8]) {
        dst.copy_from_slice(&value.to_le_bytes());
    }
    #[inline(always)]
    fn load(src: &[u8]) -> f32 {
        f32::from_le_bytes([src[0], src[1], src[2], src[3]])
    }
}
