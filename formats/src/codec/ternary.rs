//! What TQ1_0 and TQ2_0 share: super-blocks of 256 weights as minus one, zero or one times their largest magnitude.
//!
//! ```text
//! x_i ~ d * (q_i - 1)       q in 0..=2, d = max |x| (stored as a half)
//!
//! q_i = round(x_i / d) + 1, ties away from zero
//! ```
//!
//! Where `1 / d` is too large for an `f32`, all `q` are 1.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`.

use crate::rounding::f32_to_f16_bits;

/// Weights in a super-block.
pub(super) const LEN: usize = 256;

/// `d` as it is stored, and the codes of a super-block.
#[inline(always)]
pub(super) fn codes(x: &[f32; LEN]) -> ([u8; 2], [u8; LEN]) {
    let d = x.iter().fold(0.0f32, |largest, v| if largest > v.abs() { largest } else { v.abs() });
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    (f32_to_f16_bits(d).to_le_bytes(), x.map(|v| code(v * inverse)))
}

/// No quotient is above one by more than rounding.
#[inline(always)]
fn code(t: f32) -> u8 {
    let is_number = t.abs() < 2.0;
    1 + u8::from(is_number & (t >= 0.5)) - u8::from(is_number & (t <= -0.5))
}
