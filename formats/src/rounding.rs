//! Conversions of `f32` to integers and to 16-bit floats, with the GGUF reference's roundings.
//!
//! Bulk versions are plain loops meant to be run through [`crate::dispatch`].

/// Adding this to a number below 2^22 leaves its nearest integer, ties to even, in the low
/// mantissa bits: 1.5 * 2^23.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for `|value| < 2^22`.
///
/// Outside of that range, and for infinities and NaN, the result is what the reference's bit
/// trick yields: the low 23 bits of `value + 1.5 * 2^23`, less 2^22.
#[inline(always)]
pub fn nearest_int(value: f32) -> i32 {
    ((value + ROUND_MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Rounds towards zero; numbers that do not fit (and NaN) give `i32::MIN`, as x86 does.
#[inline(always)]
pub fn truncate(value: f32) -> i32 {
    if value.abs() < 2_147_483_648.0 { value as i32 } else { i32::MIN }
}

/// The bits of the nearest IEEE half, ties to even. Every NaN becomes `0x7e00` with its sign.
#[inline(always)]
pub fn f32_to_f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let sign = (bits >> 16) & 0x8000;
    // Rebias the exponent by 127 - 15 and drop 13 mantissa bits, ties to even. A carry out
    // of the mantissa correctly raises the exponent.
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0x0fff + odd).wrapping_sub(112 << 23) >> 13;
    // Below 2^-14 a half's unit is 2^-24, which is the unit of f32 numbers from 0.5 to 1:
    // the addition does the rounding.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let magnitude_f16 = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else {
        finite
    };
    (sign | magnitude_f16) as u16
}

/// The value of an IEEE half. Signalling NaNs become quiet ones.
#[inline(always)]
pub fn f16_bits_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    let normal = (magnitude << 13) + (112 << 23);
    // A subnormal counts units of 2^-24, the unit of f32 numbers from 0.5 to 1.
    let subnormal = (f32::from_bits(0.5f32.to_bits() | magnitude) - 0.5).to_bits();
    let special = (magnitude << 13) | 0x7f80_0000 | (u32::from(magnitude > 0x7c00) << 22);
    let finite = if magnitude < 0x0400 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
}

/// The upper half of an `f32`, nearest, ties to even. NaNs become quiet and keep their sign.
#[inline(always)]
pub fn f32_to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// The value of a `bf16`, bit for bit.
#[inline(always)]
pub fn bf16_bits_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_decodes_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, oracle) = (f16_bits_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == oracle.to_bits() || ours.is_nan() && oracle.is_nan(), "{bits:#x}");
            let back = f32_to_f16_bits(ours);
            let expected = if oracle.is_nan() { bits & 0x8000 | 0x7e00 } else { bits };
            assert_eq!(back, expected, "{bits:#x}");
        }
    }

    #[test]
    fn halves_round_like_the_oracle_around_every_boundary() {
        for bits in 0..0x7c00_u16 {
            let (low, high) = (f16_bits_to_f32(bits), f16_bits_to_f32(bits + 1).min(65_536.0));
            let middle = low + (high - low) / 2.0;
            for ulps in -2..=2 {
                let value = f32::from_bits(middle.to_bits().wrapping_add_signed(ulps));
                for value in [value, -value] {
                    let oracle = half::f16::from_f32_const(value).to_bits();
                    assert_eq!(f32_to_f16_bits(value), oracle, "{value:e}");
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_like_the_oracle() {
        for high in (0..=u16::MAX).step_by(7) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let oracle = half::bf16::from_f32(value).to_bits();
                assert_eq!(f32_to_bf16_bits(value), oracle, "{value:e}");
            }
        }
    }

    #[test]
    fn nearest_int_ties_to_even() {
        for (value, expected) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (4_194_303.0, 4_194_303)]
        {
            assert_eq!(nearest_int(value), expected, "{value}");
        }
    }

    #[test]
    fn truncate_follows_x86_outside_of_i32() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2_147_483_648.0] {
            assert_eq!(truncate(value), i32::MIN, "{value}");
        }
        assert_eq!((truncate(-1.9), truncate(1.9)), (-1, 1));
    }
}
