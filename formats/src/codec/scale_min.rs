//! What Q4_K and Q5_K share: the scale and minimum of each sub-block, written as 6-bit
//! multiples of two halves per super-block.
//!
//! ```text
//! 256 weights = 8 sub-blocks of 32;  sub-block j:  x_i ~ d * sc_j * q_i - dmin * m_j
//!
//! 1. per sub-block, search scale s_j and minimum n_j >= 0 with the least weighted error
//!    (`scale_min_search`)
//! 2. d = max s / 63, dmin = max n / 63 (stored as halves)
//!    sc_j = min(63, round(s_j * (63 / max s))), m_j likewise
//! 3. q_i = clamp(round((x_i + dmin * m_j) / (d * sc_j)), 0, top), with the halves' values;
//!    where d * sc_j is zero the codes of the search stay
//! ```
//!
//! Rounding is to nearest, ties to even. The 12 bytes of 6-bit numbers: bytes 0-3 hold sc_0-3
//! and bytes 4-7 m_0-3, with the two top bits of sc_4-7 and m_4-7 above them; bytes 8-11 hold
//! the low nibbles of sc_4-7 and m_4-7.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q4_K_ref`, `get_scale_min_k4`.

use super::importance::{error_weights, multiples, sum, sum_squares};
use super::scale_min_search::{Search, search_scalar, search_weighted};
use super::{MAX_SUBS, Scales, TwoLevels, Units};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

/// Weights in a super-block.
pub(super) const LEN: usize = 256;
/// Weights in a sub-block.
pub(super) const SUB_LEN: usize = 32;
/// Sub-blocks in a super-block.
pub(super) const SUBS: usize = LEN / SUB_LEN;
/// Bytes of `d`, `dmin` and the twelve bytes of 6-bit numbers, which open both formats.
pub(super) const HEAD_BYTES: usize = 16;

/// The opening bytes of a super-block and what they decode to.
pub(super) struct Head {
    /// `d`, `dmin`, 6-bit numbers.
    pub(super) bytes: [u8; HEAD_BYTES],
    /// `d * sc_j` of each sub-block.
    pub(super) scales: [f32; SUBS],
    /// `dmin * m_j` of each sub-block.
    pub(super) mins: [f32; SUBS],
}

impl Head {
    /// Step 2 of the module's recipe.
    #[inline]
    pub(super) fn quantize(scales: &[f32; SUBS], mins: &[f32; SUBS]) -> Self {
        let max_scale = largest(scales);
        let max_min = largest(mins);
        let inverse_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
        let inverse_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
        // The reference stores the integer in a byte before it takes the minimum.
        let scales = scales.map(|scale| (nearest_int(inverse_scale * scale) as u8).min(63));
        let mins = mins.map(|min| (nearest_int(inverse_min * min) as u8).min(63));
        Self::of((max_scale / 63.0, &scales), (max_min / 63.0, &mins))
    }

    /// The same with errors weighed by the importance of columns: `weights` are the sums of each sub-block's.
    #[inline]
    pub(super) fn quantize_weighted(
        scales: &[f32; SUBS],
        mins: &[f32; SUBS],
        weights: &[f32; SUBS],
        clamps: bool,
    ) -> Self {
        let (mut of_scales, mut of_mins) = ([0u8; SUBS], [0u8; SUBS]);
        let d = multiples(scales, weights, 63, &mut of_scales);
        let dmin = multiples(mins, weights, 63, &mut of_mins);
        if clamps {
            (of_scales, of_mins) = (of_scales.map(|l| l.min(63)), of_mins.map(|l| l.min(63)));
        }
        Self::of((d, &of_scales), (dmin, &of_mins))
    }

    /// `d` with the scales as multiples of it, `dmin` with the minima.
    #[inline(always)]
    fn of((d, scales): (f32, &[u8; SUBS]), (dmin, mins): (f32, &[u8; SUBS])) -> Self {
        let mut bytes = [0u8; HEAD_BYTES];
        bytes[..2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
        bytes[2..4].copy_from_slice(&f32_to_f16_bits(dmin).to_le_bytes());
        for j in 0..SUBS {
            let (scale, min) = (scales[j], mins[j]);
            let packed = &mut bytes[4..];
            if j < 4 {
                packed[j] = scale;
                packed[j + 4] = min;
            } else {
                packed[j + 4] = scale & 15 | min << 4;
                packed[j - 4] |= scale >> 4 << 6;
                packed[j] |= min >> 4 << 6;
            }
        }
        Self::decode(bytes)
    }

    /// Reads the opening bytes of a super-block.
    #[inline(always)]
    pub(super) fn decode(bytes: [u8; HEAD_BYTES]) -> Self {
        let (d, dmin, scales, mins) = Self::multiples(&bytes);
        let scales = scales.map(|multiple| d * f32::from(multiple));
        Self { bytes, scales, mins: mins.map(|multiple| dmin * f32::from(multiple)) }
    }

    /// `d`, `dmin`, and the multiples of them.
    #[inline(always)]
    fn multiples(bytes: &[u8; HEAD_BYTES]) -> (f32, f32, [u8; SUBS], [u8; SUBS]) {
        let d = f16_bits_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
        let dmin = f16_bits_to_f32(u16::from_le_bytes([bytes[2], bytes[3]]));
        let packed = &bytes[4..];
        let (mut scales, mut mins) = ([0; SUBS], [0; SUBS]);
        for j in 0..4 {
            scales[j] = packed[j] & 63;
            mins[j] = packed[j + 4] & 63;
            scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
            mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
        }
        (d, dmin, scales, mins)
    }

    /// How scales hang together, in both formats.
    pub(super) const TWO_LEVELS: TwoLevels =
        TwoLevels { sub_len: SUB_LEN, scales: (0, 63), top_min: 63, units: Units::From(0.0) };

    /// The scales of the super-block that opens with these bytes.
    pub(super) fn scales_of(y: &[u8]) -> Scales {
        let mut found = Scales::default();
        let Some(bytes) = y.first_chunk() else { return found };
        let (d, dmin, scales, mins) = Self::multiples(bytes);
        (found.d, found.dmin) = (d, dmin);
        found.scales.iter_mut().zip(scales).for_each(|(to, multiple)| *to = i16::from(multiple));
        found.mins.iter_mut().zip(mins).for_each(|(to, multiple)| *to = i16::from(multiple));
        found
    }

    /// Replaces them.
    pub(super) fn put_scales(scales: &Scales, y: &mut [u8]) {
        let of = |multiples: &[i16; MAX_SUBS]| std::array::from_fn(|j| multiples[j] as u8);
        let head = Self::of((scales.d, &of(&scales.scales)), (scales.dmin, &of(&scales.mins)));
        y[..HEAD_BYTES].copy_from_slice(&head.bytes);
    }
}

/// The largest value above zero, or zero.
fn largest(values: &[f32; SUBS]) -> f32 {
    values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest })
}

/// The whole recipe for one super-block in plain code: the opening bytes and the codes.
pub(super) fn encode_scalar(x: &[f32], search: &Search) -> ([u8; HEAD_BYTES], [u8; LEN]) {
    let mut codes = [0u8; LEN];
    let (mut scales, mut mins) = ([0.0; SUBS], [0.0; SUBS]);
    for (j, (x, codes)) in x.chunks_exact(SUB_LEN).zip(codes.chunks_exact_mut(SUB_LEN)).enumerate() {
        (scales[j], mins[j]) = search_scalar(x, search, codes);
    }
    let head = Head::quantize(&scales, &mins);
    requantize(x, &head, search.top, &mut codes);
    (head.bytes, codes)
}

/// Searches with an importance matrix: 37 candidates, from `top - 0.9` to `top + 0.9` levels over the range.
pub(super) const fn weighted_search(top: i32) -> Search {
    Search { top, first: -0.9, step: 0.05, steps: 36 }
}

/// As [`encode_scalar`], with errors weighed by the importance of columns.
pub(super) fn encode_weighted_scalar(
    x: &[f32],
    importance: &[f32],
    search: &Search,
    clamps: bool,
) -> ([u8; HEAD_BYTES], [u8; LEN]) {
    let mut codes = [0u8; LEN];
    let [mut scales, mut mins, mut sums] = [[0.0; SUBS]; 3];
    let m = 2.0 * sum_squares(x) / LEN as f32;
    let subs = x.chunks_exact(SUB_LEN).zip(importance.chunks_exact(SUB_LEN));
    for (j, ((x, importance), codes)) in subs.zip(codes.chunks_exact_mut(SUB_LEN)).enumerate() {
        let weights: [f32; SUB_LEN] = error_weights(x, importance, m);
        sums[j] = sum(&weights);
        (scales[j], mins[j]) =
            search_weighted(x, &weights, search, |difference| difference * difference, codes);
    }
    let head = Head::quantize_weighted(&scales, &mins, &sums, clamps);
    requantize(x, &head, search.top, &mut codes);
    (head.bytes, codes)
}

/// Step 3 of the module's recipe.
fn requantize(x: &[f32], head: &Head, top: i32, codes: &mut [u8; LEN]) {
    for (j, (x, codes)) in x.chunks_exact(SUB_LEN).zip(codes.chunks_exact_mut(SUB_LEN)).enumerate() {
        let (scale, min) = (head.scales[j], head.mins[j]);
        if scale == 0.0 {
            continue;
        }
        for (code, v) in codes.iter_mut().zip(x) {
            *code = nearest_int((v + min) / scale).clamp(0, top) as u8;
        }
    }
}
