//! 4-bit floats (e2m1): their values, and the two ways in which tools round to them.
//!
//! ```text
//! value = 0, 0.5, 1, 1.5, 2, 3, 4, 6 for codes 0 to 7, the same negated for codes 8 to 15
//! ```
//!
//! - To nearest, ties to the even code ([`encode`]): compressed-tensors. Magnitudes beyond 6, and NaN, become 6. A
//!   negative number that rounds to zero keeps its sign (code 8); -0 is not negative.
//! - As a search over the values finds it, ties to the smaller magnitude ([`first_nearest`]): MLX and llama.cpp. Zero is
//!   always code 0.
//!
//! Sources: OCP Microscaling Formats 1.0, section 5.3.3; compressed-tensors 0.20.0, `quantization/utils/fp4_utils.py`
//! (`cast_to_fp4`), `compressors/nvfp4/helpers.py` (`pack_fp4_to_uint8`, `unpack_fp4_from_uint8`).

/// The value of each code.
pub(super) const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Half-way points between neighbouring magnitudes.
const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// The largest magnitude.
pub(super) const MAX: f32 = VALUES[7];

/// Adding this leaves multiples of 0.5, ties to even, in the low bits.
const HALVES: f32 = 4_194_304.0;

/// The code nearest to a number, of two as near the even one.
#[inline(always)]
pub(super) fn encode(x: f32) -> u8 {
    let magnitude = x.abs();
    let magnitude = if magnitude < 6.0 { magnitude } else { 6.0 };
    let bits = magnitude.to_bits();
    // From 1 on a code is exponent and first bit of the mantissa.
    let normal = ((bits + 0x1f_ffff + (bits >> 22 & 1)) >> 22).wrapping_sub(252);
    let subnormal = (magnitude + HALVES).to_bits();
    let index = if magnitude < 1.0 { subnormal } else { normal };
    (index & 7) as u8 | if x < 0.0 { 8 } else { 0 }
}

/// The value of a code below 16.
#[inline(always)]
pub(super) fn decode(code: u8) -> f32 {
    let index = u32::from(code & 7);
    let normal = (index + 252) << 22;
    let subnormal = if index == 1 { 0.5f32.to_bits() } else { 0 };
    f32::from_bits(if index < 2 { subnormal } else { normal } | u32::from(code & 8) << 28)
}

/// [`encode`] by the definition.
pub(super) fn encode_scalar(x: f32) -> u8 {
    let magnitude = x.abs();
    // From a middle itself to the code above it where that is even.
    let is_past = |(at, middle): (usize, &f32)| magnitude > *middle || magnitude == *middle && at % 2 == 1;
    let index = MIDDLES.iter().enumerate().filter(|&middle| is_past(middle)).count() as u8;
    let index = if magnitude.is_nan() { 7 } else { index };
    if x < 0.0 { index | 8 } else { index }
}

/// The value of a code below 16, by the definition.
pub(super) fn decode_scalar(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

/// The first code whose value is nearest to a finite `x`: of two magnitudes as near, the smaller
/// one, and never code 8, the negative zero.
#[inline(always)]
pub(super) fn first_nearest(x: f32) -> u8 {
    first_above(x, &MIDDLES)
}

/// [`first_nearest`] where magnitudes change at `middles`.
#[inline(always)]
fn first_above(x: f32, middles: &[f32; 7]) -> u8 {
    let magnitude = x.abs();
    let index = middles.iter().map(|middle| u32::from(magnitude > *middle)).sum::<u32>();
    let sign = (x.to_bits() >> 28) & 8;
    (if index == 0 { 0 } else { index | sign }) as u8
}

/// The first codes whose values times `scale` are nearest to `x`, where comparing with half-way points gives
/// what comparing the errors in `f32` does: `scale` has at most four significant bits. `None` when a weight
/// is far beyond the largest value or not a number, or the scale is so extreme that products are not
/// exact; a search decides then.
///
/// Between two neighbours (one at most twice the other) both errors are exact; beyond them an error is not less
/// after rounding.
#[inline(always)]
pub(super) fn first_nearest_under<const LEN: usize>(x: &[f32; LEN], scale: f32) -> Option<[u8; LEN]> {
    let limit = scale * 16.0;
    let is_plain = (1e-30..1e30).contains(&scale) && x.iter().fold(true, |all, v| all & (v.abs() < limit));
    let middles = MIDDLES.map(|middle| middle * scale);
    is_plain.then(|| x.map(|v| first_above(v, &middles)))
}

/// Joins pairs of codes to bytes: byte `i` holds weight `2 i` in its low and weight `2 i + 1` in its high nibble.
#[inline(always)]
pub(super) fn pack(codes: &[u8], bytes: &mut [u8]) {
    for (pair, byte) in codes.as_chunks::<2>().0.iter().zip(bytes) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair | pair >> 4) as u8;
    }
}

/// Splits bytes into codes, the inverse of [`pack`].
#[inline(always)]
pub(super) fn unpack(bytes: &[u8], codes: &mut [u8]) {
    for (pair, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        let spread = u16::from(byte);
        *pair = ((spread | spread << 4) & 0x0f0f).to_le_bytes();
    }
}

/// The codes of `x` in GGUF's order: byte `i` holds weight `i` in its low and weight `i + LEN / 2` in its
/// high nibble.
#[inline(always)]
pub(super) fn pack_halves(codes: &[u8], bytes: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low | high << 4;
    }
}

/// The largest magnitude of a group, NaNs passed over.
#[inline(always)]
pub(super) fn max_abs<const GROUP: usize>(group: &[f32; GROUP]) -> f32 {
    const LANES: usize = 16;
    let mut most = [0.0f32; LANES];
    for values in group.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let magnitude = values[lane].abs();
            most[lane] = if magnitude > most[lane] { magnitude } else { most[lane] };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            most[lane] = if most[lane + width] > most[lane] { most[lane + width] } else { most[lane] };
        }
        width /= 2;
    }
    most[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_equals_the_definition_on_every_bf16_and_around_every_middle() {
        let mut numbers: Vec<f32> =
            (0..=u16::MAX).map(|high| f32::from_bits(u32::from(high) << 16)).collect();
        for middle in [0.25f32, 0.75, 1.0, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] {
            numbers.extend([middle, middle.next_up(), middle.next_down()].map(|x| [x, -x]).as_flattened());
        }
        for x in numbers {
            assert_eq!(encode(x), encode_scalar(x), "{x}");
        }
    }

    #[test]
    fn every_code_is_its_own_nearest() {
        for code in 0..16 {
            assert_eq!(decode(code).to_bits(), decode_scalar(code).to_bits(), "{code}");
            // -0 is not negative.
            assert_eq!(encode(decode(code)), if code == 8 { 0 } else { code });
        }
        assert_eq!((encode(-0.1), encode(f32::NAN), encode(f32::NEG_INFINITY)), (8, 7, 15));
    }

    #[test]
    fn nearest_is_the_first_of_the_nearest() {
        let by_search = |x: f32| {
            let errors = VALUES.map(|value| (value - x).abs());
            let least = errors.iter().copied().fold(f32::INFINITY, f32::min);
            errors.iter().position(|&error| error == least).unwrap() as u8
        };
        for sixteenth in -200..=200 {
            let x = f32::from(sixteenth as i16) / 16.0;
            for x in [x, x.next_up(), x.next_down()] {
                assert_eq!(first_nearest(x), by_search(x), "{x}");
            }
        }
        assert_eq!(first_nearest(-0.0), 0);
    }

    #[test]
    fn every_value_but_negative_zero_is_its_own_nearest() {
        for (code, value) in VALUES.iter().enumerate() {
            let expected = if code == 8 { 0 } else { code as u8 };
            assert_eq!(first_nearest(*value), expected);
        }
    }
}
