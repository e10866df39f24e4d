//! MLX's float modes: groups of a row as FP4 or FP8 codes with a one-byte scale and no bias.
//!
//! What the modes share: three element types, the scale of a group, two parts. A mode is
//! one [`Mode`], in a file of its own.
//!
//! The reference is a chain of array operations in the weights' own dtype, so every step is rounded
//! to BF16, F16 or F32, written `r` below. There is one codec per mode and dtype: `mlx_mxfp4` for BF16,
//! `mlx_mxfp4_f16` and `mlx_mxfp4_f32` for the others. They store the same kinds of bytes; how
//! encoder and decoder round is what differs. The input must already be rounded to the dtype.
//!
//! Byte layout, two parts. `weight`: the codes of a group in order, the first one lowest, in
//! tensors of U32 words. `scales`: one byte per group.
//!
//! A scale that is a power of two:
//!
//! ```text
//! s     = r(max |w| / largest)        largest: 6 for FP4, 448 for FP8
//! e     = 0 where s = 0, else ceil(log2(s))
//! byte  = e + 127                     q_i from r(w_i / 2^e)
//! ```
//!
//! So no weight lies beyond the largest code, unless `r` hides that `s` is a little more than a power
//! of two. NaN and infinities make `e` the smallest integer of 32 bits, scales below 2^-127 wrap around
//! in the byte; both as the reference does on x86-64.
//!
//! Source: ml-explore/mlx `mlx/ops.cpp` (`fp_quantize`, `fp_dequantize`) and
//! `mlx/backend/cpu/unary_ops.h` (`ToFP8`, `FromFP8`), checked against mlx 0.32.4 on x86-64, CPU. Versions
//! before pull request 4353 round the logarithm to the nearest integer.
//!
//! On one core of an AMD EPYC (CPU time), BF16: `mxfp4` 0.79 G weights/s with AVX-512 and 0.73 with AVX2,
//! `nvfp4` 1.13 and 0.55, `mxfp8` 1.08 and 0.72; the plain code of `mxfp4` makes 0.04.

use std::marker::PhantomData;

use super::fp8::{F8E4M3, Fp8};
use super::{Codec, Ladder, Part, e2m1};
use crate::dispatch::{self, Kernel};
use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits, truncate};

/// A dtype of weights.
pub(super) trait Element: Sync {
    /// Its place in [`Mode::NAMES`].
    const INDEX: usize;
    /// The nearest number of the dtype, ties to even.
    fn round(value: f32) -> f32;
}

pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct F32;

impl Element for Bf16 {
    const INDEX: usize = 0;
    #[inline(always)]
    fn round(value: f32) -> f32 {
        // MLX has one NaN of this type.
        if value.is_nan() { f32::NAN } else { bf16_bits_to_f32(f32_to_bf16_bits(value)) }
    }
}

impl Element for F16 {
    const INDEX: usize = 1;
    #[inline(always)]
    fn round(value: f32) -> f32 {
        f16_bits_to_f32(f32_to_f16_bits(value))
    }
}

impl Element for F32 {
    const INDEX: usize = 2;
    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }
}

/// One of the modes. Slices of weights have [`Mode::GROUP`] elements, slices of bytes those of a group.
pub(super) trait Mode: Sync {
    /// Codec names for BF16, F16 and F32.
    const NAMES: [&'static str; 3];
    /// Weights in a group.
    const GROUP: usize;
    const PARTS: &'static [Part];
    /// Whether groups are FP4 under a power of two.
    const HAS_POWERS: bool = false;

    /// Encodes a group and returns its scale.
    fn encode<E: Element>(src: &[f32], codes: &mut [u8]) -> u8;
    /// Decodes a group.
    fn decode<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]);
    /// As [`Mode::encode`], operation by operation.
    fn encode_scalar<E: Element>(src: &[f32], codes: &mut [u8]) -> u8;
    /// As [`Mode::decode`], operation by operation.
    fn decode_scalar<E: Element>(codes: &[u8], scale: u8, dst: &mut [f32]);
}

/// The two parts of a mode.
pub(super) const fn parts(code_bytes: usize) -> [Part; 2] {
    [
        Part { name: "weight", dtype: crate::Dtype::U32, bytes_per_group: code_bytes },
        Part { name: "scales", dtype: crate::Dtype::U8, bytes_per_group: 1 },
    ]
}

/// Largest magnitude of a group; NaN when there is one in it.
#[inline(always)]
pub(super) fn max_abs(group: &[f32]) -> f32 {
    // Magnitudes are ordered like their bits, and NaNs come after infinity.
    f32::from_bits(group.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff)))
}

/// The byte of a power-of-two scale, and the power that weights are divided by.
#[inline(always)]
pub(super) fn power_scale<E: Element>(max_abs: f32, largest: f32) -> (u8, f32) {
    let scale = E::round(max_abs / largest);
    let exponent = if scale == 0.0 {
        0
    } else if scale < f32::INFINITY {
        ceil_log2(scale)
    } else {
        i32::MIN
    };
    let exponent = E::round(exponent as f32);
    (truncate(E::round(exponent + 127.0)) as u8, power::<E>(exponent))
}

/// The least `e` for which `2^e` is not below a positive number.
#[inline(always)]
fn ceil_log2(value: f32) -> i32 {
    let is_subnormal = value < f32::MIN_POSITIVE;
    let bits = (if is_subnormal { value * 8_388_608.0 } else { value }).to_bits();
    let exponent = (bits >> 23) as i32 - if is_subnormal { 127 + 23 } else { 127 };
    exponent + i32::from(bits & 0x007f_ffff != 0)
}

/// `2^exponent`, rounded: zero or infinity far out.
#[inline(always)]
fn power<E: Element>(exponent: f32) -> f32 {
    // Both halves are in range for an exponent from -252 to 254, beyond which an f32 has no power of two.
    let exponent = exponent.clamp(-252.0, 254.0) as i32;
    let half = exponent / 2;
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    E::round(power(half) * power(exponent - half))
}

/// The value of a power-of-two scale.
#[inline(always)]
pub(super) fn power_of_byte<E: Element>(byte: u8) -> f32 {
    power::<E>(f32::from(byte) - 127.0)
}

/// E4M3 as the reference makes it: what is not a number becomes the largest one.
#[inline(always)]
pub(super) fn to_fp8(value: f32) -> u8 {
    let code = F8E4M3::from_f32(value);
    if code & 0x7f == 0x7f { code - 1 } else { code }
}

/// E4M3 as the reference reads it: the codes of NaN are 480 and -480.
#[inline(always)]
pub(super) fn from_fp8(code: u8) -> f32 {
    let sign = u32::from(code & 0x80) << 24;
    if code & 0x7f == 0x7f { f32::from_bits(480f32.to_bits() | sign) } else { F8E4M3::to_f32(code) }
}

/// FP4 codes of a group: those nearest to `r(w / divisor)`, differences rounded by `D`.
#[inline(always)]
pub(super) fn encode_fp4<E: Element, D: Element, const GROUP: usize>(
    group: &[f32; GROUP],
    divisor: f32,
    bytes: &mut [u8],
) {
    let mut codes = [0u8; GROUP];
    let mut is_far = false;
    for (code, value) in codes.iter_mut().zip(group) {
        let quotient = E::round(value / divisor);
        // Differences to the nearest codes are exact up to here, so that they decide; NaN is far too.
        is_far |= quotient.is_nan() || quotient.abs() >= 16.0;
        *code = e2m1::first_nearest(quotient);
    }
    if is_far {
        encode_fp4_scalar::<E, D>(group, divisor, bytes);
    } else {
        e2m1::pack(&codes, bytes);
    }
}

/// As [`encode_fp4`]: the first code of least `|r(q - value)|`, where nothing is less than NaN.
pub(super) fn encode_fp4_scalar<E: Element, D: Element>(group: &[f32], divisor: f32, bytes: &mut [u8]) {
    let code = |value: f32| {
        let quotient = E::round(value / divisor);
        let (mut code, mut least) = (0, D::round(quotient - e2m1::VALUES[0]).abs());
        for (candidate, value) in e2m1::VALUES.iter().enumerate().skip(1) {
            let error = D::round(quotient - value).abs();
            if error < least {
                (code, least) = (candidate as u8, error);
            }
        }
        code
    };
    for (byte, &[low, high]) in bytes.iter_mut().zip(group.as_chunks::<2>().0) {
        *byte = code(low) | code(high) << 4;
    }
}

/// FP4 values times a scale.
#[inline(always)]
pub(super) fn decode_fp4<E: Element>(bytes: &[u8], scale: f32, dst: &mut [f32]) {
    let values = e2m1::VALUES.map(|value| E::round(value * scale));
    for ([low, high], byte) in dst.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *low = values[usize::from(byte & 15)];
        *high = values[usize::from(byte >> 4)];
    }
}

/// The codec of a mode for one dtype.
pub(super) struct MlxFp<M, E>(PhantomData<(M, E)>);

impl<M, E> MlxFp<M, E> {
    pub(super) const CODEC: Self = Self(PhantomData);
}

struct Encode<'a, M, E>(&'a [f32], &'a mut [u8], &'a mut [u8], PhantomData<(M, E)>);
struct Decode<'a, M, E>(&'a [u8], &'a [u8], &'a mut [f32], PhantomData<(M, E)>);

impl<M: Mode, E: Element> Kernel for Encode<'_, M, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let groups = self.0.chunks_exact(M::GROUP).zip(self.1.chunks_exact_mut(M::PARTS[0].bytes_per_group));
        for ((src, codes), scale) in groups.zip(self.2) {
            *scale = M::encode::<E>(src, codes);
        }
    }
}

impl<M: Mode, E: Element> Kernel for Decode<'_, M, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let groups = self.2.chunks_exact_mut(M::GROUP).zip(self.0.chunks_exact(M::PARTS[0].bytes_per_group));
        for ((dst, codes), scale) in groups.zip(self.1) {
            M::decode::<E>(codes, *scale, dst);
        }
    }
}

impl<M: Mode, E: Element> MlxFp<M, E> {
    /// Checks the caller's slices: whole groups, and as many in both parts.
    fn check(&self, len_elems: usize, parts: [usize; 2]) {
        assert!(len_elems.is_multiple_of(M::GROUP), "{}: {len_elems} weights", self.name());
        for (part, len_bytes) in M::PARTS.iter().zip(parts) {
            assert_eq!(
                len_bytes,
                len_elems / M::GROUP * part.bytes_per_group,
                "{}: {}",
                self.name(),
                part.name
            );
        }
    }
}

impl<M: Mode, E: Element> Codec for MlxFp<M, E> {
    fn name(&self) -> &'static str {
        M::NAMES[E::INDEX]
    }

    fn group_len_elems(&self) -> usize {
        M::GROUP
    }

    fn parts(&self) -> &'static [Part] {
        M::PARTS
    }

    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        let [codes, scales] = dst else { panic!("{}: two parts", self.name()) };
        self.check(src.len(), [codes.len(), scales.len()]);
        dispatch::run(Encode::<M, E>(src, codes, scales, PhantomData));
    }

    fn decode(&self, src: &[&[u8]], dst: &mut [f32]) {
        let &[codes, scales] = src else { panic!("{}: two parts", self.name()) };
        self.check(dst.len(), [codes.len(), scales.len()]);
        dispatch::run(Decode::<M, E>(codes, scales, dst, PhantomData));
    }

    fn encode_powers(&self, power: u8, codes: &[u8], dst: &mut [&mut [u8]]) -> bool {
        // The dtype has to hold the largest value and the smallest.
        let value = power_of_byte::<F32>(power);
        let is_held = [0.5, e2m1::MAX].iter().all(|&code| E::round(code * value) == code * value);
        let is_taken = M::HAS_POWERS && codes.len() == M::GROUP && is_held && power < u8::MAX;
        if is_taken {
            e2m1::pack(codes, dst[0]);
            dst[1][0] = power;
        }
        is_taken
    }

    fn ladder(&self) -> Option<Ladder> {
        let is_fp4 = M::PARTS[0].bytes_per_group * 2 == M::GROUP;
        is_fp4.then_some(Ladder { codes: 16, even: false })
    }

    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        e2m1::pack(codes, dst[0]);
    }

    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        let [codes, scales] = dst else { panic!("{}: two parts", self.name()) };
        self.check(src.len(), [codes.len(), scales.len()]);
        let groups = src.chunks_exact(M::GROUP).zip(codes.chunks_exact_mut(M::PARTS[0].bytes_per_group));
        for ((src, codes), scale) in groups.zip(scales.iter_mut()) {
            *scale = M::encode_scalar::<E>(src, codes);
        }
    }

    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]) {
        let &[codes, scales] = src else { panic!("{}: two parts", self.name()) };
        self.check(dst.len(), [codes.len(), scales.len()]);
        let groups = dst.chunks_exact_mut(M::GROUP).zip(codes.chunks_exact(M::PARTS[0].bytes_per_group));
        for ((dst, codes), scale) in groups.zip(scales) {
            M::decode_scalar::<E>(codes, *scale, dst);
        }
    }
}

#[cfg(test)]
mod tests;
