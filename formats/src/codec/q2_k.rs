//! Q2_K: super-blocks of 256 weights as 2-bit codes, with a 4-bit scale and minimum for each 16.
//!
//! ```text
//! x_i ~ d * sc_j * q_i - dmin * m_j      q in 0..=3, sc and m in 0..=15
//!
//! 1. per sub-block, search scale s_j and minimum n_j >= 0 (`scale_min_search`: 16 candidates,
//!    from 2.5 to 4 levels over the range; error weights |x|, absolute differences)
//! 2. d = max s / 15, dmin = max n / 15 (stored as halves)
//!    sc_j = round(s_j * (15 / max s)), m_j likewise
//! 3. q_i = clamp(round((x_i + dmin * m_j) / (d * sc_j)), 0, 3), with the halves' values;
//!    where d * sc_j is zero the codes of the search stay
//! ```
//!
//! Rounding is to nearest, ties to even. 84 bytes: 16 of `sc_j` in the low and `m_j` in the high
//! nibble, 64 of codes (`two_bits`), `d` (f16), `dmin` (f16).
//! On one core of an AMD EPYC (a virtual machine, counted in CPU time) the vector encoder makes 423 M weights/s
//! with AVX-512 and 247 with AVX2, the plain code 14.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q2_K_ref`.

use super::block::{self, Block};
use super::importance::{MAX_BATCH, batch_weights, error_weights, multiples, of_block, sum, sum_squares};
use super::scale_min::weighted_search;
use super::scale_min_search::{Found, Given, Magnitudes, Search, search_lanes, search_weighted};
use super::two_bits::{self, LEN, SUB_LEN, SUBS};
use super::{Ladder, Scales, TwoLevels, Units};
use crate::dispatch::{self, LaneKernel, Lanes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

const BYTES: usize = 84;
/// Where `d` stands in a block.
const D_AT: usize = SUBS + two_bits::BYTES;

const SEARCH: Search = Search { top: 3, first: -0.5, step: 0.1, steps: 15 };
const WEIGHTED_SEARCH: Search = weighted_search(SEARCH.top);

/// The codec; see the module.
pub(super) struct Q2K;

/// `d` and `dmin` of a stored block.
#[inline(always)]
fn factors(y: &[u8]) -> (f32, f32) {
    let at = |at: usize| f16_bits_to_f32(u16::from_le_bytes([y[at], y[at + 1]]));
    (at(D_AT), at(D_AT + 2))
}

/// Scale and minimum of each sub-block as a stored block has them.
#[inline(always)]
fn scales_and_mins(y: &[u8]) -> ([f32; SUBS], [f32; SUBS]) {
    let (d, dmin) = factors(y);
    (std::array::from_fn(|j| d * f32::from(y[j] & 15)), std::array::from_fn(|j| dmin * f32::from(y[j] >> 4)))
}

/// The largest value above zero, or zero; and what makes it fifteen.
#[inline(always)]
fn largest(values: &[f32; SUBS]) -> (f32, f32) {
    let largest = values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    (largest, if largest > 0.0 { 15.0 / largest } else { 0.0 })
}

/// Step 2 of the module's recipe: everything but the codes.
#[inline(always)]
fn write_scales(scales: &[f32; SUBS], mins: &[f32; SUBS], y: &mut [u8]) {
    let (max_scale, inverse_scale) = largest(scales);
    let (max_min, inverse_min) = largest(mins);
    let of_scales = scales.map(|v| if max_scale > 0.0 { nearest_int(inverse_scale * v) as u8 } else { 0 });
    let of_mins = mins.map(|v| if max_min > 0.0 { nearest_int(inverse_min * v) as u8 } else { 0 });
    write_multiples((max_scale / 15.0, &of_scales), (max_min / 15.0, &of_mins), y);
}

/// Writes `d` with the scales as multiples of it, `dmin` with the minima.
#[inline(always)]
fn write_multiples((d, scales): (f32, &[u8; SUBS]), (dmin, mins): (f32, &[u8; SUBS]), y: &mut [u8]) {
    for (y, (scale, min)) in y.iter_mut().zip(scales.iter().zip(mins)) {
        // As the reference has it: what does not fit the nibble spills over.
        *y = scale | min << 4;
    }
    y[D_AT..D_AT + 2].copy_from_slice(&f32_to_f16_bits(d).to_le_bytes());
    y[D_AT + 2..].copy_from_slice(&f32_to_f16_bits(dmin).to_le_bytes());
}

/// As [`write_scales`], with errors weighed by the importance of columns: `weights` are the sums of each sub-block's.
#[inline(always)]
fn write_scales_weighted(scales: &[f32; SUBS], mins: &[f32; SUBS], weights: &[f32; SUBS], y: &mut [u8]) {
    let (mut of_scales, mut of_mins) = ([0u8; SUBS], [0u8; SUBS]);
    let d = multiples(scales, weights, 15, &mut of_scales);
    let dmin = multiples(mins, weights, 15, &mut of_mins);
    write_multiples((d, &of_scales), (dmin, &of_mins), y);
}

/// Step 3 of the module's recipe in plain code; `codes` are those of the search.
fn write_codes(x: &[f32], codes: &mut [u8; LEN], y: &mut [u8]) {
    let (scales, mins) = scales_and_mins(y);
    let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
    for ((x, codes), (scale, min)) in subs.zip(scales.into_iter().zip(mins)) {
        if scale == 0.0 {
            continue;
        }
        for (code, v) in codes.iter_mut().zip(x) {
            *code = nearest_int((v + min) / scale).clamp(0, SEARCH.top) as u8;
        }
    }
    two_bits::pack(codes, &mut y[SUBS..D_AT]);
}

/// Whether vectors can compute the codes: every scale is there and every quotient is far from
/// the 22 bits that rounding can take.
#[inline(always)]
fn codes_fit(scales: &[f32; SUBS], mins: &[f32; SUBS], magnitudes: &[f32; SUBS]) -> bool {
    (0..SUBS).all(|j| {
        let (scale, min) = (scales[j].abs(), mins[j].abs());
        scale > 0.0 && scale < f32::INFINITY && magnitudes[j] + min < scale * (1 << 21) as f32
    })
}

/// Writes the codes of a super-block.
#[inline(always)]
fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], scales: &[f32; SUBS], mins: &[f32; SUBS], y: &mut [u8]) {
    let (bottom, top) = (lanes.splat(0.0), lanes.splat(SEARCH.top as f32));
    for (half, y) in y.chunks_exact_mut(two_bits::ROW_LEN).enumerate() {
        for at in (0..two_bits::ROW_LEN).step_by(L::LEN) {
            let mut byte = bottom;
            // From the highest bits down.
            for row in (0..4).rev() {
                let index = (half * 4 + row) * two_bits::ROW_LEN + at;
                let (scale, min) = (scales[index / SUB_LEN], mins[index / SUB_LEN]);
                let code = lanes.round((lanes.load(&x[index..]) + lanes.splat(min)) / lanes.splat(scale));
                let code = lanes.min(lanes.max(code, bottom), top);
                byte = byte * lanes.splat(4.0) + code;
            }
            lanes.store_bytes(byte, &mut y[at..]);
        }
    }
}

/// Vectors of sub-blocks whose sums are interleaved, and packs of them that take turns.
const VECTORS: usize = 2;
const PACKS: usize = 2;
/// As many lanes as the widest instruction set has in all packs.
const MAX_SUBS: usize = PACKS * VECTORS * 16;

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch = PACKS * VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        for (x, y) in self.0.chunks(batch * LEN).zip(self.1.chunks_mut(batch * BYTES)) {
            let full = block::pad(x, batch * LEN, &mut padded);
            let found: [Found<L, VECTORS>; PACKS] =
                search_lanes::<L, Magnitudes, VECTORS, SUB_LEN>(lanes, full, &[], &SEARCH);
            let [mut scales, mut mins, mut magnitudes, mut sums] = [[0.0f32; MAX_SUBS]; 4];
            let mut valid = 0u64;
            for (p, found) in found.iter().enumerate() {
                let at = p * VECTORS * L::LEN;
                let rows = [&mut scales[at..], &mut mins[at..], &mut magnitudes[at..], &mut sums[at..]];
                valid |= found.store(lanes, rows) << at;
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            let [scales, mins, magnitudes] =
                [&scales, &mins, &magnitudes].map(|values| values.as_chunks::<SUBS>().0);
            for (index, (x, y)) in blocks.enumerate() {
                write_scales(&scales[index], &mins[index], y);
                let (scales, mins) = scales_and_mins(y);
                if valid >> (index * SUBS) & 0xffff == 0xffff && codes_fit(&scales, &mins, &magnitudes[index])
                {
                    store_codes(lanes, x, &scales, &mins, &mut y[SUBS..D_AT]);
                } else {
                    Q2K::encode_block_scalar(x, y);
                }
            }
        }
    }
}

/// Encodes whole rows, with errors weighed by the importance of columns.
struct EncodeWeighted<'a>(&'a [f32], &'a [f32], &'a mut [u8]);

impl LaneKernel for EncodeWeighted<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self(importance, src, dst) = self;
        let batch_blocks = PACKS * VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let mut weights = [0.0f32; MAX_BATCH];
        let batches = src.chunks(batch_blocks * LEN).zip(dst.chunks_mut(batch_blocks * BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * batch_blocks;
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            batch_weights::<L, LEN>(lanes, x, first, importance, 1.0 / LEN as f32, &mut weights);
            let found: [Found<L, VECTORS>; PACKS] =
                search_lanes::<L, Given, VECTORS, SUB_LEN>(lanes, full, &weights, &WEIGHTED_SEARCH);
            let [mut scales, mut mins, mut magnitudes, mut sums] = [[0.0f32; MAX_SUBS]; 4];
            let mut valid = 0u64;
            for (p, found) in found.iter().enumerate() {
                let at = p * VECTORS * L::LEN;
                let rows = [&mut scales[at..], &mut mins[at..], &mut magnitudes[at..], &mut sums[at..]];
                valid |= found.store(lanes, rows) << at;
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
            let [scales, mins, magnitudes, sums] =
                [&scales, &mins, &magnitudes, &sums].map(|values| values.as_chunks::<SUBS>().0);
            for (index, (x, y)) in blocks.enumerate() {
                write_scales_weighted(&scales[index], &mins[index], &sums[index], y);
                let (scales, mins) = scales_and_mins(y);
                if valid >> (index * SUBS) & 0xffff == 0xffff && codes_fit(&scales, &mins, &magnitudes[index])
                {
                    store_codes(lanes, x, &scales, &mins, &mut y[SUBS..D_AT]);
                } else {
                    Q2K::encode_row_weighted_scalar(of_block::<LEN>(importance, first + index), x, y);
                }
            }
        }
    }
}

impl Block for Q2K {
    const NAME: &'static str = "Q2_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        block::decode_plain::<Self>(src, dst);
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let mut codes = [0u8; LEN];
        let (mut scales, mut mins) = ([0.0; SUBS], [0.0; SUBS]);
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
        for (j, (x, codes)) in subs.enumerate() {
            (scales[j], mins[j]) = search_weighted(x, &x.map(f32::abs), &SEARCH, f32::abs, codes);
        }
        write_scales(&scales, &mins, y);
        write_codes(x, &mut codes, y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted(importance, src, dst));
    }

    /// Squares, not absolute differences, and other candidates.
    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            let mut codes = [0u8; LEN];
            let [mut scales, mut mins, mut sums] = [[0.0; SUBS]; 3];
            let m = sum_squares(x) / LEN as f32;
            let subs = x.chunks_exact(SUB_LEN).zip(importance.chunks_exact(SUB_LEN));
            for (j, ((x, importance), codes)) in subs.zip(codes.chunks_exact_mut(SUB_LEN)).enumerate() {
                let weights: [f32; SUB_LEN] = error_weights(x, importance, m);
                sums[j] = sum(&weights);
                (scales[j], mins[j]) = search_weighted(
                    x,
                    &weights,
                    &WEIGHTED_SEARCH,
                    |difference| difference * difference,
                    codes,
                );
            }
            write_scales_weighted(&scales, &mins, &sums, y);
            write_codes(x, &mut codes, y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 4, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        let Some(codes) = codes.first_chunk() else { return };
        two_bits::pack(codes, &mut y[SUBS..D_AT]);
    }

    const TWO_LEVELS: Option<TwoLevels> =
        Some(TwoLevels { sub_len: SUB_LEN, scales: (0, 15), top_min: 15, units: Units::From(0.0) });

    fn block_scales(y: &[u8]) -> Scales {
        let (d, dmin) = factors(y);
        let multiple = |shift: u8| std::array::from_fn(|j| i16::from(y[j] >> shift & 15));
        Scales { d, dmin, scales: multiple(0), mins: multiple(4) }
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        let of = |multiples: &[i16; SUBS]| multiples.map(|multiple| multiple as u8);
        write_multiples((scales.d, &of(&scales.scales)), (scales.dmin, &of(&scales.mins)), y);
    }

    #[inline(always)]
    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let (scales, mins) = scales_and_mins(y);
        let codes = two_bits::unpack(&y[SUBS..D_AT]);
        for (i, (v, code)) in x.iter_mut().zip(codes).enumerate() {
            *v = scales[i / SUB_LEN] * f32::from(code) - mins[i / SUB_LEN];
        }
    }
}
