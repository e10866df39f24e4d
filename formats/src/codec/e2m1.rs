//! 4-bit floats (e2m1), rounded to nearest, ties to the even code, two to a byte.
//!
//! ```text
//! value = 0, 0.5, 1, 1.5, 2, 3, 4, 6 for codes 0 to 7, the same negated for codes 8 to 15
//! ```
//!
//! Magnitudes beyond 6, and NaN, become 6. A negative number that rounds to zero keeps its sign (code 8);
//! -0 is not negative. Byte `i` holds weight `2 i` in its low and weight `2 i + 1` in its high nibble.
//! Sources: OCP Microscaling Formats 1.0, section 5.3.3; compressed-tensors 0.20.0, `quantization/utils/fp4_utils.py`
//! (`cast_to_fp4`), `compressors/nvfp4/helpers.py` (`pack_fp4_to_uint8`, `unpack_fp4_from_uint8`).

/// Adding this leaves multiples of 0.5, ties to even, in the low bits.
const HALVES: f32 = 4_194_304.0;

/// The code of a number.
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

/// The code of a number, by the definition.
pub(super) fn encode_scalar(x: f32) -> u8 {
    let magnitude = x.abs();
    let index = match magnitude {
        m if m <= 0.25 => 0,
        m if m < 0.75 => 1,
        m if m <= 1.25 => 2,
        m if m < 1.75 => 3,
        m if m <= 2.5 => 4,
        m if m < 3.5 => 5,
        m if m <= 5.0 => 6,
        _ => 7,
    };
    if x < 0.0 { index | 8 } else { index }
}

/// The value of a code below 16, by the definition.
pub(super) fn decode_scalar(code: u8) -> f32 {
    let value = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code < 8 { value } else { -value }
}

/// Joins pairs of codes to bytes.
#[inline(always)]
pub(super) fn pack(codes: &[u8], bytes: &mut [u8]) {
    for (pair, byte) in codes.as_chunks::<2>().0.iter().zip(bytes) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair | pair >> 4) as u8;
    }
}

/// Splits bytes into codes.
#[inline(always)]
pub(super) fn unpack(bytes: &[u8], codes: &mut [u8]) {
    for (pair, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        let spread = u16::from(byte);
        *pair = ((spread | spread << 4) & 0x0f0f).to_le_bytes();
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
}
