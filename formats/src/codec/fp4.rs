//! 4-bit floats (e2m1) as a search over their values finds them: what MLX and llama.cpp do. `e2m1` rounds ties to
//! even.
//!
//! ```text
//! value = 0, 0.5, 1, 1.5, 2, 3, 4, 6 for codes 0 to 7, the same negated for codes 8 to 15
//! ```
//!
//! Source: OCP Microscaling Formats 1.0, section 5.3.3.

/// The value of each code.
pub(super) const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Half-way points between neighbouring magnitudes.
const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// The largest magnitude.
pub(super) const MAX: f32 = 6.0;

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

/// The codes of `x` in GGUF's order: byte `i` holds weight `i` in its low and weight `i + LEN / 2` in its
/// high nibble.
#[inline(always)]
pub(super) fn pack_halves(codes: &[u8], bytes: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low | high << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
