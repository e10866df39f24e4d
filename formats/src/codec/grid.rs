//! Groups as whole multiples of a step: what the integer formats have in common, so that a group of one
//! becomes a group of another without any loss.
//!
//! ```text
//! x_i = step * (code_i - zero)
//! ```
//!
//! A format that decodes to this gives its groups as a [`Grid`]; one that can hold such a group exactly takes
//! it. Whether it can depends on its scale's number format: a BF16 step fits a half unless it is tiny or huge.

use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits};

/// A group, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid<'a> {
    /// One code per weight, 0 to 15.
    pub codes: &'a [u8],
    /// The code of zero, 0 to 15.
    pub zero: u8,
    /// The weight of a code one above `zero`.
    pub step: f32,
}

impl Grid<'_> {
    /// The smallest weight that a code can have, in exact arithmetic if it is a float at all.
    pub(super) fn lowest(&self) -> f32 {
        // Five bits times a step of at most 24: exact unless the step has all of them.
        -(f32::from(self.zero) * self.step)
    }

    /// Codes of another format, in which `zero` is the code of zero and `top` the largest code.
    pub(super) fn shifted(&self, zero: u8, top: u8, codes: &mut [u8]) -> bool {
        debug_assert_eq!(codes.len(), self.codes.len());
        for (code, &own) in codes.iter_mut().zip(self.codes) {
            let Some(shifted) = (own + zero).checked_sub(self.zero).filter(|&shifted| shifted <= top) else {
                return false;
            };
            *code = shifted;
        }
        true
    }
}

/// The bits of a half that is exactly `value`.
pub(super) fn exact_f16(value: f32) -> Option<u16> {
    let bits = f32_to_f16_bits(value);
    (f16_bits_to_f32(bits).to_bits() == value.to_bits()).then_some(bits)
}

/// The bits of a BF16 that is exactly `value`.
pub(super) fn exact_bf16(value: f32) -> Option<u16> {
    let bits = f32_to_bf16_bits(value);
    (bf16_bits_to_f32(bits).to_bits() == value.to_bits()).then_some(bits)
}
