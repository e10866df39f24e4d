//! Lanes for AVX-512 (F, BW, VL, DQ): sixteen `f32` in a register.
#![expect(unsafe_code, reason = "vector intrinsics; the token proves that the CPU has them")]

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

use super::Lanes;

const LEN: usize = 16;

/// Proof that this CPU has AVX-512. Vectors of this module are made through it only.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The caller runs under
    /// `#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]`.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F32x16(__m512);

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Mask16(__mmask16);

macro_rules! lane_operator {
    ($trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for F32x16 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the operands were made with an `Avx512`.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}

lane_operator!(Add, add, _mm512_add_ps);
lane_operator!(Sub, sub, _mm512_sub_ps);
lane_operator!(Mul, mul, _mm512_mul_ps);
lane_operator!(Div, div, _mm512_div_ps);

impl BitAnd for Mask16 {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Mask16 {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Lanes for Avx512 {
    const LEN: usize = LEN;
    type F = F32x16;
    type M = Mask16;

    #[inline(always)]
    fn splat(self, value: f32) -> F32x16 {
        // SAFETY: `self` proves AVX-512; the same holds for every method below.
        F32x16(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> F32x16 {
        let src = &src[..LEN];
        // SAFETY: `src` has `LEN` values.
        F32x16(unsafe { _mm512_loadu_ps(src.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, value: F32x16, dst: &mut [f32]) {
        let dst = &mut dst[..LEN];
        // SAFETY: `dst` has room for `LEN` values.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), value.0) }
    }
    #[inline(always)]
    fn load_columns(self, src: &[f32], stride: usize, dst: &mut [F32x16]) {
        assert!(stride < 1 << 24, "the gather's indices are 32 bits wide");
        for (i, vector) in dst.iter_mut().enumerate() {
            let column = &src[i..(LEN - 1) * stride + i + 1];
            // SAFETY: lane j reads `column[j * stride]`, and `column` ends with the last one.
            *vector = F32x16(unsafe {
                let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride as i32));
                _mm512_i32gather_ps::<4>(index, column.as_ptr())
            });
        }
    }
    #[inline(always)]
    fn store_bytes(self, value: F32x16, dst: &mut [u8]) {
        let dst = &mut dst[..LEN];
        // SAFETY: `dst` has room for `LEN` bytes.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(value.0));
            _mm_storeu_si128(dst.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn lookup(self, table: F32x16, picks: &[u8]) -> F32x16 {
        let picks = &picks[..LEN];
        // SAFETY: `picks` has `LEN` bytes.
        F32x16(unsafe {
            let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(picks.as_ptr().cast()));
            _mm512_permutexvar_ps(index, table.0)
        })
    }
    #[inline(always)]
    fn abs(self, a: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe { _mm512_abs_ps(a.0) })
    }
    #[inline(always)]
    fn sqrt(self, a: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe { _mm512_sqrt_ps(a.0) })
    }
    #[inline(always)]
    fn min(self, a: F32x16, b: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe { _mm512_min_ps(a.0, b.0) })
    }
    #[inline(always)]
    fn max(self, a: F32x16, b: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe { _mm512_max_ps(a.0, b.0) })
    }
    #[inline(always)]
    fn round(self, a: F32x16) -> F32x16 {
        // SAFETY: AVX-512. Immediate 0: no fraction bits, nearest even.
        F32x16(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(a.0) })
    }
    #[inline(always)]
    fn trunc(self, a: F32x16) -> F32x16 {
        // SAFETY: AVX-512. Immediate 3: no fraction bits, towards zero.
        F32x16(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO }>(a.0) })
    }
    #[inline(always)]
    fn copysign(self, a: F32x16, sign: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a.0), _mm512_and_ps(bit, sign.0))
        })
    }
    #[inline(always)]
    fn lt(self, a: F32x16, b: F32x16) -> Mask16 {
        // SAFETY: AVX-512.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0) })
    }
    #[inline(always)]
    fn eq(self, a: F32x16, b: F32x16) -> Mask16 {
        // SAFETY: AVX-512.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a.0, b.0) })
    }
    #[inline(always)]
    fn select(self, mask: Mask16, yes: F32x16, no: F32x16) -> F32x16 {
        // SAFETY: AVX-512.
        F32x16(unsafe { _mm512_mask_blend_ps(mask.0, no.0, yes.0) })
    }
    #[inline(always)]
    fn bits(self, mask: Mask16) -> u32 {
        u32::from(mask.0)
    }
    #[inline(always)]
    fn reduce_max(self, a: F32x16) -> f32 {
        // SAFETY: AVX-512.
        unsafe { _mm512_reduce_max_ps(a.0) }
    }
}
