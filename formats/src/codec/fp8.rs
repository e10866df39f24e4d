//! FP8: E4M3 (no infinities) and E5M2 numbers, alone or with one `f32` scale per tile.
//!
//! ```text
//! value = fp8[row, col] * scale[row / block_rows, col / block_cols]      (one rounding)
//! ```
//!
//! Encoding rounds to nearest, ties to even. E4M3 saturates: what is beyond 448, infinities
//! too, becomes 448; E5M2 overflows to infinity; NaN becomes `0x7f` with its sign.
//! Sources: OCP 8-bit floating point specification 1.0; the overflow rules are those of
//! PyTorch 2.15, `Tensor.to(torch.float8_e4m3fn)`. Block scales: DeepSeek-V3's
//! `weight_scale_inv`. E8M0: OCP microscaling formats 1.0.

use super::block::Block;
use crate::dispatch::{self, Kernel};
use crate::dtype::Dtype;
use crate::rounding::f16_bits_to_f32;

/// 4 exponent bits, 3 mantissa bits, largest value 448, no infinities.
pub struct F8E4M3;
/// 5 exponent bits, 2 mantissa bits: the upper byte of an IEEE half.
pub struct F8E5M2;

/// One of the FP8 formats; a zero-sized type so that kernels are compiled for each.
pub trait Fp8 {
    /// The value of a code.
    fn to_f32(code: u8) -> f32;
    /// The code nearest to `value`.
    fn from_f32(value: f32) -> u8;
}

impl Fp8 for F8E4M3 {
    #[inline(always)]
    fn to_f32(code: u8) -> f32 {
        let magnitude = u32::from(code & 0x7f);
        let sign = u32::from(code & 0x80) << 24;
        let normal = (magnitude << 20) + ((127 - 7) << 23);
        // Subnormals count units of 2^-9, the unit of codes whose value is 2^-6 and up:
        // with that exponent's implied one put in and taken off again.
        let subnormal = (f32::from_bits((magnitude << 20) | 0x3c80_0000) - 0.015_625).to_bits();
        let finite = if magnitude < 8 { subnormal } else { normal };
        f32::from_bits(sign | if magnitude == 0x7f { 0x7ff0_0000 } else { finite })
    }

    #[inline(always)]
    fn from_f32(value: f32) -> u8 {
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let sign = (value.to_bits() >> 24) & 0x80;
        let odd = (magnitude >> 20) & 1;
        let normal = magnitude.wrapping_add(0x7_ffff + odd).wrapping_sub((127 - 7) << 23) >> 20;
        // 2^14 has the subnormals' unit of 2^-9, so adding it rounds to them.
        let subnormal = (f32::from_bits(magnitude) + 16_384.0).to_bits().wrapping_sub(0x4680_0000);
        let finite = if magnitude < 0x3c80_0000 { subnormal } else { normal };
        let saturated = if magnitude >= 0x43e0_0000 { 0x7e } else { finite };
        (sign | if magnitude > 0x7f80_0000 { 0x7f } else { saturated }) as u8
    }
}

impl Fp8 for F8E5M2 {
    #[inline(always)]
    fn to_f32(code: u8) -> f32 {
        f16_bits_to_f32(u16::from(code) << 8)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> u8 {
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let sign = (value.to_bits() >> 24) & 0x80;
        let odd = (magnitude >> 21) & 1;
        let normal = magnitude.wrapping_add(0xf_ffff + odd).wrapping_sub((127 - 15) << 23) >> 21;
        // 2^7 has the subnormals' unit of 2^-16, so adding it rounds to them.
        let subnormal = (f32::from_bits(magnitude) + 128.0).to_bits().wrapping_sub(0x4300_0000);
        let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let overflowed = if magnitude >= 0x4770_0000 { 0x7c } else { finite };
        (sign | if magnitude > 0x7f80_0000 { 0x7f } else { overflowed }) as u8
    }
}

/// The value of an E8M0 scale: `2^(code - 127)`, NaN for 255.
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// Scales of a matrix cut into tiles of `block_rows` x `block_cols`, `[row tiles, column
/// tiles]` in row-major order; the last tile of a row or column may be ragged.
#[derive(Debug, Clone, Copy)]
pub struct BlockScales<'a> {
    /// One scale per tile, `scales[row / block_rows * tiles_per_row + col / block_cols]`.
    pub scales: &'a [f32],
    /// Rows of a tile.
    pub block_rows: usize,
    /// Columns of a tile.
    pub block_cols: usize,
}

/// Decodes the FP8 rows that start at `first_row` of a matrix `cols` wide and multiplies them
/// with their tiles' scales. `codes` holds those rows only, `scales` the whole matrix's tiles.
///
/// # Panics
/// When `codes` is not whole rows, `dst` has another length, or a row has no scale.
pub fn decode_scaled<T: Fp8>(
    codes: &[u8],
    cols: usize,
    first_row: usize,
    scales: BlockScales<'_>,
    dst: &mut [f32],
) {
    assert_eq!(codes.len(), dst.len(), "one value per code");
    assert!(scales.block_rows > 0 && scales.block_cols > 0, "tiles are not empty");
    if codes.is_empty() {
        return;
    }
    assert!(codes.len().is_multiple_of(cols), "{} codes in rows of {cols}", codes.len());
    dispatch::run(DecodeScaled::<T> {
        codes,
        cols,
        first_row,
        scales,
        dst,
        format: std::marker::PhantomData,
    });
}

struct DecodeScaled<'a, T: Fp8> {
    codes: &'a [u8],
    cols: usize,
    first_row: usize,
    scales: BlockScales<'a>,
    dst: &'a mut [f32],
    format: std::marker::PhantomData<T>,
}

impl<T: Fp8> Kernel for DecodeScaled<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let BlockScales { scales, block_rows, block_cols } = self.scales;
        let tiles_per_row = self.cols.div_ceil(block_cols);
        let rows = self.codes.chunks_exact(self.cols).zip(self.dst.chunks_exact_mut(self.cols));
        for (row, (codes, values)) in rows.enumerate() {
            let first_tile = (self.first_row + row) / block_rows * tiles_per_row;
            let tile_scales = &scales[first_tile..][..tiles_per_row];
            let tiles = codes.chunks(block_cols).zip(values.chunks_mut(block_cols));
            for ((codes, values), scale) in tiles.zip(tile_scales) {
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = T::to_f32(*code) * scale;
                }
            }
        }
    }
}

struct Encode<'a, T: Fp8>(&'a [f32], &'a mut [u8], T);
struct Decode<'a, T: Fp8>(&'a [u8], &'a mut [f32], T);

impl<T: Fp8> Kernel for Encode<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = T::from_f32(*x);
        }
    }
}

impl<T: Fp8> Kernel for Decode<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = T::to_f32(*x);
        }
    }
}

macro_rules! fp8_codec {
    ($format:ident, $name:literal, $dtype:expr) => {
        impl Block for $format {
            const NAME: &'static str = $name;
            const LEN_ELEMS: usize = 1;
            const LEN_BYTES: usize = 1;
            const DTYPE: Dtype = $dtype;

            fn encode_blocks(src: &[f32], dst: &mut [u8]) {
                dispatch::run(Encode(src, dst, Self));
            }
            fn decode_blocks(src: &[u8], dst: &mut [f32]) {
                dispatch::run(Decode(src, dst, Self));
            }
            fn encode_block_scalar(src: &[f32], dst: &mut [u8]) {
                dst[0] = Self::from_f32(src[0]);
            }
            fn decode_block_scalar(src: &[u8], dst: &mut [f32]) {
                dst[0] = Self::to_f32(src[0]);
            }
        }
    };
}

fp8_codec!(F8E4M3, "F8_E4M3", Dtype::F8_E4M3);
fp8_codec!(F8E5M2, "F8_E5M2", Dtype::F8_E5M2);

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: `(-1)^s * 2^(e - bias) * (1 + m / 2^bits)`, without the one for e = 0.
    fn by_definition(code: u8, mantissa_bits: u32, bias: i32) -> f64 {
        let (exponent, mantissa) =
            (i32::from(code & 0x7f) >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
        let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
        let value = if exponent == 0 {
            fraction * f64::from(1 - bias).exp2()
        } else {
            (1.0 + fraction) * f64::from(exponent - bias).exp2()
        };
        if code & 0x80 == 0 { value } else { -value }
    }

    #[test]
    fn every_code_decodes_to_its_definition_and_encodes_back() {
        for code in 0..=u8::MAX {
            let value = F8E4M3::to_f32(code);
            if code & 0x7f == 0x7f {
                assert!(value.is_nan());
            } else {
                assert_eq!(f64::from(value), by_definition(code, 3, 7), "{code:#x}");
            }
            assert_eq!(value.is_sign_negative(), code >= 0x80);
            assert_eq!(F8E4M3::from_f32(value), code);

            let value = F8E5M2::to_f32(code);
            match code & 0x7f {
                0x7c => assert!(value.is_infinite()),
                0x7d.. => assert!(value.is_nan()),
                _ => assert_eq!(f64::from(value), by_definition(code, 2, 15), "{code:#x}"),
            }
            assert_eq!(value.is_sign_negative(), code >= 0x80);
            assert_eq!(F8E5M2::from_f32(value), if value.is_nan() { code | 0x7f } else { code });
        }
    }

    #[test]
    fn encoding_rounds_to_the_nearest_code_ties_to_even() {
        fn check<T: Fp8>(top: u8) {
            for code in 0..top {
                let (low, high) = (T::to_f32(code), T::to_f32(code + 1));
                let middle = low + (high - low) / 2.0;
                assert_eq!(T::from_f32(middle), (code + 1) & !1, "{middle}");
                assert_eq!(T::from_f32(middle.next_down()), code, "{middle}");
                assert_eq!(T::from_f32(-middle.next_up()), 0x80 | (code + 1), "{middle}");
            }
        }
        check::<F8E4M3>(0x7e);
        check::<F8E5M2>(0x7b);
    }

    #[test]
    fn overflow_is_torchs() {
        for (value, e4m3, e5m2) in [
            (464.0, 126, 95),
            (464.1, 126, 95),
            (480.0, 126, 96),
            (61_439.0, 126, 123),
            (61_440.0, 126, 124),
            (f32::INFINITY, 126, 124),
            (f32::NEG_INFINITY, 254, 252),
            (f32::NAN, 127, 127),
        ] {
            assert_eq!((F8E4M3::from_f32(value), F8E5M2::from_f32(value)), (e4m3, e5m2), "{value}");
        }
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        for code in 0..255u8 {
            assert_eq!(f64::from(e8m0_to_f32(code)), f64::from(i32::from(code) - 127).exp2());
        }
        assert!(e8m0_to_f32(255).is_nan());
    }

    #[test]
    fn scaled_rows_use_their_own_tile_even_at_ragged_edges() {
        let (rows, cols, block_rows, block_cols) = (7, 11, 3, 4);
        let scales: Vec<f32> = (0..9).map(|tile| 0.1 + tile as f32).collect();
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 37 % 256) as u8).collect();
        let grid = BlockScales { scales: &scales, block_rows, block_cols };
        for (first, end) in [(0, 7), (2, 5), (6, 7), (3, 3)] {
            let mut values = vec![0.0; (end - first) * cols];
            decode_scaled::<F8E4M3>(&codes[first * cols..end * cols], cols, first, grid, &mut values);
            for (i, value) in values.iter().enumerate() {
                let (row, col) = (first + i / cols, i % cols);
                let scale = scales[row / block_rows * 3 + col / block_cols];
                let expected = F8E4M3::to_f32(codes[row * cols + col]) * scale;
                assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan());
            }
        }
    }
}
