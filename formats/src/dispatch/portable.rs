//! Lanes for any CPU: eight `f32` in an array, which compilers put into vector registers.

use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

use super::Lanes;

const LEN: usize = 8;

/// Eight lanes without any particular instruction set.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[derive(Clone, Copy)]
pub(super) struct F32x8([f32; LEN]);

#[derive(Clone, Copy)]
pub(super) struct Mask8([bool; LEN]);

/// `f32` integers of up to 22 bits stand in the low mantissa bits after this is added.
const ROUND_MAGIC: f32 = 12_582_912.0;

macro_rules! lane_operator {
    ($vector:ident, $trait:ident, $method:ident, $operator:tt) => {
        impl $trait for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(from_fn(|i| self.0[i] $operator other.0[i]))
            }
        }
    };
}

lane_operator!(F32x8, Add, add, +);
lane_operator!(F32x8, Sub, sub, -);
lane_operator!(F32x8, Mul, mul, *);
lane_operator!(F32x8, Div, div, /);
lane_operator!(Mask8, BitAnd, bitand, &);
lane_operator!(Mask8, BitOr, bitor, |);

impl Lanes for Portable {
    const LEN: usize = LEN;
    type F = F32x8;
    type M = Mask8;

    #[inline(always)]
    fn splat(self, value: f32) -> F32x8 {
        F32x8([value; LEN])
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> F32x8 {
        let src = &src[..LEN];
        F32x8(from_fn(|i| src[i]))
    }
    #[inline(always)]
    fn store(self, value: F32x8, dst: &mut [f32]) {
        dst[..LEN].copy_from_slice(&value.0);
    }
    #[inline(always)]
    fn load_columns(self, src: &[f32], stride: usize, dst: &mut [F32x8]) {
        for (i, vector) in dst.iter_mut().enumerate() {
            *vector = F32x8(from_fn(|j| src[j * stride + i]));
        }
    }
    #[inline(always)]
    fn store_bytes(self, value: F32x8, dst: &mut [u8]) {
        for (byte, lane) in dst[..LEN].iter_mut().zip(value.0) {
            *byte = (lane + ROUND_MAGIC).to_bits() as u8;
        }
    }
    #[inline(always)]
    fn lookup(self, table: F32x8, picks: &[u8]) -> F32x8 {
        let picks = &picks[..LEN];
        F32x8(from_fn(|j| table.0[usize::from(picks[j]) % LEN]))
    }
    #[inline(always)]
    fn abs(self, a: F32x8) -> F32x8 {
        F32x8(a.0.map(f32::abs))
    }
    #[inline(always)]
    fn sqrt(self, a: F32x8) -> F32x8 {
        F32x8(a.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn min(self, a: F32x8, b: F32x8) -> F32x8 {
        F32x8(from_fn(|i| if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn max(self, a: F32x8, b: F32x8) -> F32x8 {
        F32x8(from_fn(|i| if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn round(self, a: F32x8) -> F32x8 {
        F32x8(a.0.map(|v| (v + ROUND_MAGIC) - ROUND_MAGIC))
    }
    #[inline(always)]
    fn trunc(self, a: F32x8) -> F32x8 {
        F32x8(a.0.map(|v| v as i32 as f32))
    }
    #[inline(always)]
    fn copysign(self, a: F32x8, sign: F32x8) -> F32x8 {
        F32x8(from_fn(|i| a.0[i].copysign(sign.0[i])))
    }
    #[inline(always)]
    fn lt(self, a: F32x8, b: F32x8) -> Mask8 {
        Mask8(from_fn(|i| a.0[i] < b.0[i]))
    }
    #[inline(always)]
    fn eq(self, a: F32x8, b: F32x8) -> Mask8 {
        Mask8(from_fn(|i| a.0[i] == b.0[i]))
    }
    #[inline(always)]
    fn select(self, mask: Mask8, yes: F32x8, no: F32x8) -> F32x8 {
        F32x8(from_fn(|i| if mask.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn bits(self, mask: Mask8) -> u32 {
        mask.0.iter().enumerate().fold(0, |bits, (i, &set)| bits | u32::from(set) << i)
    }
    #[inline(always)]
    fn reduce_max(self, a: F32x8) -> f32 {
        a.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
