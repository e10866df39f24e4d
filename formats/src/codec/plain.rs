//! F32, F16 and BF16: one number per weight, little-endian, no blocks.
//!
//! F16 and BF16 round to nearest, ties to even. F16: NaN becomes `0x7e00` with its sign.
//! BF16: NaN is made quiet. Source: llama.cpp, `ggml-impl.h`, `ggml_compute_fp32_to_fp16` and
//! `ggml_compute_fp32_to_bf16`.

use super::block::Block;
use crate::dispatch::{self, Kernel};
use crate::dtype::Dtype;
use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits};

/// IEEE single precision, stored as it is.
pub(super) struct F32;
/// IEEE half precision.
pub(super) struct F16;
/// The upper half of an `f32`.
pub(super) struct BF16;

/// Rounds every value to the nearest BF16 (ties to even) and leaves it an `f32`.
pub fn round_to_bf16(values: &mut [f32]) {
    dispatch::run(RoundToBf16(values));
}

struct RoundToBf16<'a>(&'a mut [f32]);

impl Kernel for RoundToBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            *value = bf16_bits_to_f32(f32_to_bf16_bits(*value));
        }
    }
}

/// Rounds every value to the nearest IEEE half (ties to even, infinity beyond 65504) and leaves it an `f32`.
pub fn round_to_f16(values: &mut [f32]) {
    dispatch::run(RoundToF16(values));
}

struct RoundToF16<'a>(&'a mut [f32]);

impl Kernel for RoundToF16<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            *value = f16_bits_to_f32(f32_to_f16_bits(*value));
        }
    }
}

/// Applies a conversion to each element; `C` is a zero-sized type, so it is inlined.
struct Encode<'a, C: To16>(&'a [f32], &'a mut [u8], C);
struct Decode<'a, C: To16>(&'a [u8], &'a mut [f32], C);

/// A 16-bit float format.
trait To16 {
    fn encode(value: f32) -> u16;
    fn decode(bits: u16) -> f32;
}

impl To16 for F16 {
    #[inline(always)]
    fn encode(value: f32) -> u16 {
        f32_to_f16_bits(value)
    }
    #[inline(always)]
    fn decode(bits: u16) -> f32 {
        f16_bits_to_f32(bits)
    }
}

impl To16 for BF16 {
    #[inline(always)]
    fn encode(value: f32) -> u16 {
        f32_to_bf16_bits(value)
    }
    #[inline(always)]
    fn decode(bits: u16) -> f32 {
        bf16_bits_to_f32(bits)
    }
}

impl<C: To16> Kernel for Encode<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.as_chunks_mut().0.iter_mut().zip(self.0) {
            *y = C::encode(*x).to_le_bytes();
        }
    }
}

impl<C: To16> Kernel for Decode<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.iter_mut().zip(self.0.as_chunks().0) {
            *y = C::decode(u16::from_le_bytes(*x));
        }
    }
}

impl Block for F32 {
    const NAME: &'static str = "F32";
    const LEN_ELEMS: usize = 1;
    const LEN_BYTES: usize = 4;
    const DTYPE: Dtype = Dtype::F32;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        for (y, x) in dst.as_chunks_mut().0.iter_mut().zip(src) {
            *y = x.to_le_bytes();
        }
    }
    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        for (y, x) in dst.iter_mut().zip(src.as_chunks().0) {
            *y = f32::from_le_bytes(*x);
        }
    }
    fn encode_block_scalar(src: &[f32], dst: &mut [u8]) {
        dst.copy_from_slice(&src[0].to_le_bytes());
    }
    fn decode_block_scalar(src: &[u8], dst: &mut [f32]) {
        dst[0] = f32::from_le_bytes([src[0], src[1], src[2], src[3]]);
    }
}

impl Block for F16 {
    const NAME: &'static str = "F16";
    const LEN_ELEMS: usize = 1;
    const LEN_BYTES: usize = 2;
    const DTYPE: Dtype = Dtype::F16;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run(Encode(src, dst, Self));
    }
    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst, Self));
    }
    fn encode_block_scalar(src: &[f32], dst: &mut [u8]) {
        dst.copy_from_slice(&f32_to_f16_bits(src[0]).to_le_bytes());
    }
    fn decode_block_scalar(src: &[u8], dst: &mut [f32]) {
        dst[0] = f16_bits_to_f32(u16::from_le_bytes([src[0], src[1]]));
    }
}

impl Block for BF16 {
    const NAME: &'static str = "BF16";
    const LEN_ELEMS: usize = 1;
    const LEN_BYTES: usize = 2;
    const DTYPE: Dtype = Dtype::BF16;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run(Encode(src, dst, Self));
    }
    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst, Self));
    }
    fn encode_block_scalar(src: &[f32], dst: &mut [u8]) {
        dst.copy_from_slice(&f32_to_bf16_bits(src[0]).to_le_bytes());
    }
    fn decode_block_scalar(src: &[u8], dst: &mut [f32]) {
        dst[0] = bf16_bits_to_f32(u16::from_le_bytes([src[0], src[1]]));
    }
}
