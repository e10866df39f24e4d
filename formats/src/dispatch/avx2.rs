//! Lanes for AVX2: eight `f32` in a register.
#![expect(unsafe_code, reason = "vector intrinsics; the token proves that the CPU has them")]

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

use super::Lanes;

const LEN: usize = 8;

/// Proof that this CPU has AVX2. Vectors of this module are made through it only.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The caller runs under `#[target_feature(enable = "avx2")]`.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F32x8(__m256);

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Mask8(__m256);

macro_rules! lane_operator {
    ($vector:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the operands were made with an `Avx2`.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}

lane_operator!(F32x8, Add, add, _mm256_add_ps);
lane_operator!(F32x8, Sub, sub, _mm256_sub_ps);
lane_operator!(F32x8, Mul, mul, _mm256_mul_ps);
lane_operator!(F32x8, Div, div, _mm256_div_ps);
lane_operator!(Mask8, BitAnd, bitand, _mm256_and_ps);
lane_operator!(Mask8, BitOr, bitor, _mm256_or_ps);

/// Columns `at..at + 4` of rows `j` and `j + 4`, side by side in one register.
///
/// # Safety
/// AVX2, and both rows have `at + 4` values.
#[inline(always)]
unsafe fn row_pair(src: &[f32], stride: usize, j: usize, at: usize) -> __m256 {
    let (upper, lower) = (&src[j * stride + at..][..4], &src[(j + 4) * stride + at..][..4]);
    // SAFETY: both slices have four values; AVX2 is the caller's promise.
    unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(upper.as_ptr()));
        _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(lower.as_ptr()))
    }
}

/// Transposes an 8x8 tile whose row `j` starts at `src[j * stride]`.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn transpose(src: &[f32], stride: usize, dst: &mut [F32x8; LEN]) {
    let src = &src[..7 * stride + LEN];
    for at in [0, 4] {
        // SAFETY: AVX2 is the caller's promise. With rows j and j + 4 in one register, no
        // step has to cross the 128-bit halves.
        unsafe {
            let a = row_pair(src, stride, 0, at);
            let b = row_pair(src, stride, 1, at);
            let c = row_pair(src, stride, 2, at);
            let d = row_pair(src, stride, 3, at);
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            dst[at] = F32x8(_mm256_shuffle_ps::<0x44>(ab_low, cd_low));
            dst[at + 1] = F32x8(_mm256_shuffle_ps::<0xee>(ab_low, cd_low));
            dst[at + 2] = F32x8(_mm256_shuffle_ps::<0x44>(ab_high, cd_high));
            dst[at + 3] = F32x8(_mm256_shuffle_ps::<0xee>(ab_high, cd_high));
        }
    }
}

impl Lanes for Avx2 {
    const LEN: usize = LEN;
    type F = F32x8;
    type M = Mask8;

    #[inline(always)]
    fn splat(self, value: f32) -> F32x8 {
        // SAFETY: `self` proves AVX2; the same holds for every method below.
        F32x8(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> F32x8 {
        let src = &src[..LEN];
        // SAFETY: `src` has `LEN` values.
        F32x8(unsafe { _mm256_loadu_ps(src.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, value: F32x8, dst: &mut [f32]) {
        let dst = &mut dst[..LEN];
        // SAFETY: `dst` has room for `LEN` values.
        unsafe { _mm256_storeu_ps(dst.as_mut_ptr(), value.0) }
    }
    #[inline(always)]
    fn load_columns(self, src: &[f32], stride: usize, dst: &mut [F32x8]) {
        let (tiles, rest) = dst.as_chunks_mut::<LEN>();
        assert!(rest.is_empty(), "columns come in eights");
        for (index, tile) in tiles.iter_mut().enumerate() {
            // SAFETY: AVX2.
            unsafe { transpose(&src[index * LEN..], stride, tile) };
        }
    }
    #[inline(always)]
    fn store_bytes(self, value: F32x8, dst: &mut [u8]) {
        // SAFETY: AVX2.
        let bytes = unsafe {
            let words = _mm256_cvttps_epi32(value.0);
            let low = _mm256_shuffle_epi8(words, _mm256_set1_epi32(0x0c08_0400));
            let pair = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_cvtsi128_si64(pair)
        };
        dst[..LEN].copy_from_slice(&bytes.to_le_bytes());
    }
    #[inline(always)]
    fn lookup(self, table: F32x8, picks: &[u8]) -> F32x8 {
        let picks = &picks[..LEN];
        // SAFETY: `picks` has `LEN` bytes.
        F32x8(unsafe {
            let index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(picks.as_ptr().cast()));
            _mm256_permutevar8x32_ps(table.0, index)
        })
    }
    #[inline(always)]
    fn abs(self, a: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a.0) })
    }
    #[inline(always)]
    fn sqrt(self, a: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_sqrt_ps(a.0) })
    }
    #[inline(always)]
    fn min(self, a: F32x8, b: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_min_ps(a.0, b.0) })
    }
    #[inline(always)]
    fn max(self, a: F32x8, b: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_max_ps(a.0, b.0) })
    }
    #[inline(always)]
    fn round(self, a: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0) })
    }
    #[inline(always)]
    fn trunc(self, a: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a.0) })
    }
    #[inline(always)]
    fn copysign(self, a: F32x8, sign: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe {
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(bit, a.0), _mm256_and_ps(bit, sign.0))
        })
    }
    #[inline(always)]
    fn lt(self, a: F32x8, b: F32x8) -> Mask8 {
        // SAFETY: AVX2.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0) })
    }
    #[inline(always)]
    fn eq(self, a: F32x8, b: F32x8) -> Mask8 {
        // SAFETY: AVX2.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0) })
    }
    #[inline(always)]
    fn select(self, mask: Mask8, yes: F32x8, no: F32x8) -> F32x8 {
        // SAFETY: AVX2.
        F32x8(unsafe { _mm256_blendv_ps(no.0, yes.0, mask.0) })
    }
    #[inline(always)]
    fn bits(self, mask: Mask8) -> u32 {
        // SAFETY: AVX2.
        unsafe { _mm256_movemask_ps(mask.0) as u32 }
    }
    #[inline(always)]
    fn reduce_max(self, a: F32x8) -> f32 {
        // SAFETY: AVX2.
        unsafe {
            let m = _mm_max_ps(_mm256_castps256_ps128(a.0), _mm256_extractf128_ps::<1>(a.0));
            let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
            _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)))
        }
    }
}
