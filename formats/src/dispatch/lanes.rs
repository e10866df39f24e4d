//! The vector that lane kernels are written over.

use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

/// A proof that some instruction set is there, and its vector of `f32`.
///
/// Every operation is the IEEE operation on each lane: what one lane computes is what the
/// same scalar code would compute. The few operations that leave something open (for
/// numbers out of range) say so, and callers must stay clear of that.
pub trait Lanes: Copy {
    /// Lanes in a vector.
    const LEN: usize;
    /// A vector of `f32`.
    type F: Copy
        + Add<Output = Self::F>
        + Sub<Output = Self::F>
        + Mul<Output = Self::F>
        + Div<Output = Self::F>;
    /// One boolean per lane.
    type M: Copy + BitAnd<Output = Self::M> + BitOr<Output = Self::M>;

    /// `value` in every lane.
    fn splat(self, value: f32) -> Self::F;
    /// The first [`Self::LEN`] values of `src`. Panics when there are fewer.
    fn load(self, src: &[f32]) -> Self::F;
    /// Writes to the first [`Self::LEN`] values of `dst`. Panics when there are fewer.
    fn store(self, value: Self::F, dst: &mut [f32]);
    /// Lane `j` of `dst[i]` becomes `src[j * stride + i]`, for `i` below `dst.len()`, which
    /// must be a multiple of 8. Panics when `src` is too short.
    fn load_columns(self, src: &[f32], stride: usize, dst: &mut [Self::F]);
    /// The low byte of each lane's integer, in lane order. Panics when `dst` is shorter than
    /// [`Self::LEN`]. Lanes hold integers from -128 to 255; anything else gives any byte.
    fn store_bytes(self, value: Self::F, dst: &mut [u8]);

    /// Lane `j` is lane `picks[j]`, modulo [`Self::LEN`], of `table`. Panics when there are fewer picks than that.
    fn lookup(self, table: Self::F, picks: &[u8]) -> Self::F;

    /// `|a|`, bit for bit.
    fn abs(self, a: Self::F) -> Self::F;
    /// The correctly rounded square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `a < b ? a : b`, so `b` when one of them is not a number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`, so `b` when one of them is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even, when `|a| < 2^22`; anything otherwise. The sign
    /// of a zero is open.
    fn round(self, a: Self::F) -> Self::F;
    /// The integer next to `a` towards zero, when `|a| < 2^22`; anything otherwise. The sign
    /// of a zero is open.
    fn trunc(self, a: Self::F) -> Self::F;
    /// `|a|` with the sign of `sign`.
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F;

    /// `a < b`, false when one of them is not a number.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`, false when one of them is not a number.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// `yes` where `mask` is set, `no` elsewhere.
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;
    /// Lane `i` as bit `i`.
    fn bits(self, mask: Self::M) -> u32;

    /// Whether `mask` is set in some lane.
    #[inline(always)]
    fn any(self, mask: Self::M) -> bool {
        self.bits(mask) != 0
    }

    /// Whether `mask` is set in every lane.
    #[inline(always)]
    fn all(self, mask: Self::M) -> bool {
        self.bits(mask) == u32::MAX >> (32 - Self::LEN)
    }

    /// The largest lane; lanes must be numbers.
    fn reduce_max(self, a: Self::F) -> f32;
}
