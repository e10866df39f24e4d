//! Q6_K: super-blocks of 256 weights as 6-bit codes around 32, with an 8-bit scale for each 16.
//!
//! ```text
//! x_i ~ d * sc_j * (q_i - 32)      q in 0..=63, sc in -128..=127
//!
//! s_j = searched scale of sub-block j (`scale_search`);  m = the first of largest magnitude
//! d = 1 / (-128 / m) (stored as a half),  sc_j = min(127, round(s_j * (-128 / m)))
//! q_i = clamp(round(x_i / (d * sc_j)), -32, 31) + 32, with the half's value of d;
//!       where d * sc_j is zero the codes of the search stay
//! ```
//!
//! Rounding is to nearest, ties to even. When no `|s_j|` reaches 1e-15, all bytes are zero.
//! 210 bytes: 128 of low nibbles, 64 of top bit pairs, 16 x i8 scales, `d` (f16). Each half of
//! the super-block has 64 + 32 of them: with `q0..q3` the codes `i`, `i + 32`, `i + 64`,
//! `i + 96` of the half, byte `i` holds the nibbles of `q0` and `q2`, byte `i + 32` those of
//! `q1` and `q3`, and byte `i` of the pairs those of `q0..q3` from the lowest bits up.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q6_K_ref`.

use super::block::{self, Block};
use super::importance::of_block;
use super::scale_search::{
    EPSILON, Found, SUB_LEN, search_given_lanes, search_lanes, search_scalar, search_weighted,
};
use super::{Ladder, Scales, TwoLevels, Units};
use crate::dispatch::{self, Kernel, LaneKernel, Lanes};
use crate::rounding::{f16_bits_to_f32, f32_to_f16_bits, nearest_int};

const LEN: usize = 256;
const BYTES: usize = 210;
/// Sub-blocks in a super-block.
const SUBS: usize = LEN / SUB_LEN;
/// Weights that share their bytes: half a super-block.
const HALF_LEN: usize = LEN / 2;
/// Distance of the weights that share a byte.
const ROW_LEN: usize = 32;
/// Where scales, and then `d`, start in a block.
const SCALES_AT: usize = 192;

/// Vectors of sub-blocks searched at a time.
const VECTORS: usize = 2;
/// More lanes than any instruction set has, in [`VECTORS`] vectors.
const MAX_SUBS: usize = 32;

/// The codec; see the module.
pub(super) struct Q6K;

/// The closing bytes of a super-block and what they decode to.
struct Tail {
    bytes: [u8; BYTES - SCALES_AT],
    /// `d * sc_j` of each sub-block.
    scales: [f32; SUBS],
}

impl Tail {
    /// Quantizes the searched scales; `None` when they all count as zero.
    #[inline]
    fn quantize(scales: &[f32; SUBS]) -> Option<Self> {
        let (mut largest, mut extreme) = (0.0f32, 0.0f32);
        for &scale in scales {
            if scale.abs() > largest {
                largest = scale.abs();
                extreme = scale;
            }
        }
        if largest < EPSILON {
            return None;
        }
        let inverse = -128.0 / extreme;
        let mut bytes = [0u8; BYTES - SCALES_AT];
        for (byte, scale) in bytes.iter_mut().zip(scales) {
            *byte = nearest_int(inverse * scale).min(127) as u8;
        }
        bytes[SUBS..].copy_from_slice(&f32_to_f16_bits(1.0 / inverse).to_le_bytes());
        Some(Self::decode(bytes))
    }

    #[inline(always)]
    fn decode(bytes: [u8; BYTES - SCALES_AT]) -> Self {
        let d = f16_bits_to_f32(u16::from_le_bytes([bytes[SUBS], bytes[SUBS + 1]]));
        let mut scales = [0.0; SUBS];
        for (scale, &byte) in scales.iter_mut().zip(&bytes) {
            *scale = d * f32::from(byte as i8);
        }
        Self { bytes, scales }
    }

    /// Whether vectors can compute the codes: every scale is there and every quotient is far
    /// from the 22 bits that rounding can take.
    #[inline(always)]
    fn codes_fit(&self, magnitude: &[f32; SUBS]) -> bool {
        self.scales.iter().zip(magnitude).all(|(scale, magnitude)| {
            let scale = scale.abs();
            scale > 0.0 && scale < f32::INFINITY && *magnitude < scale * (1 << 21) as f32
        })
    }
}

/// Writes the codes of a super-block.
#[inline(always)]
fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], tail: &Tail, y: &mut [u8]) {
    let (nibbles, pairs) = y.split_at_mut(LEN / 2);
    let (bottom, top) = (lanes.splat(-32.0), lanes.splat(31.0));
    let (four, sixteen) = (lanes.splat(4.0), lanes.splat(16.0));
    for half in 0..2 {
        for at in (0..ROW_LEN).step_by(L::LEN) {
            // Nibbles and pairs of the four weights, as whole floats.
            let (mut low, mut high) = ([lanes.splat(0.0); 4], [lanes.splat(0.0); 4]);
            for row in 0..4 {
                let index = half * HALF_LEN + row * ROW_LEN + at;
                let scale = lanes.splat(tail.scales[index / SUB_LEN]);
                let code = lanes.round(lanes.load(&x[index..]) / scale);
                let code = lanes.min(lanes.max(code, bottom), top) - bottom;
                high[row] = lanes.trunc(code * lanes.splat(1.0 / 16.0));
                low[row] = code - high[row] * sixteen;
            }
            let nibbles = &mut nibbles[half * 2 * ROW_LEN + at..];
            lanes.store_bytes(low[0] + low[2] * sixteen, nibbles);
            lanes.store_bytes(low[1] + low[3] * sixteen, &mut nibbles[ROW_LEN..]);
            let pair = (high[0] + high[1] * four) + (high[2] + high[3] * four) * sixteen;
            lanes.store_bytes(pair, &mut pairs[half * ROW_LEN + at..]);
        }
    }
}

/// What [`search_weighted`] takes a code of this format to be around.
const REACH: i8 = 32;

/// Steps 2 and 3 of the module's recipe in plain code; `codes` are those of the search.
fn write_block(x: &[f32], scales: &[f32; SUBS], codes: &mut [u8; LEN], y: &mut [u8]) {
    y.fill(0);
    let Some(tail) = Tail::quantize(scales) else { return };
    for (i, (code, v)) in codes.iter_mut().zip(x).enumerate() {
        let scale = tail.scales[i / SUB_LEN];
        if scale != 0.0 {
            *code = (nearest_int(v / scale).clamp(-32, 31) + 32) as u8;
        }
    }
    pack_codes(codes, y);
    y[SCALES_AT..].copy_from_slice(&tail.bytes);
}

/// Stores the codes of a super-block where there are zeros.
fn pack_codes(codes: &[u8], y: &mut [u8]) {
    for (i, code) in codes.iter().enumerate() {
        let (half, row, i) = (i / HALF_LEN, i % HALF_LEN / ROW_LEN, i % ROW_LEN);
        y[half * 2 * ROW_LEN + row % 2 * ROW_LEN + i] |= (code & 15) << (row / 2 * 4);
        y[LEN / 2 + half * ROW_LEN + i] |= code >> 4 << (2 * row);
    }
}

/// Writes the super-blocks of a batch from what was searched, or with `plain`, by number in the batch.
#[inline(always)]
fn write_batch<L: Lanes>(
    lanes: L,
    x: &[f32],
    found: &Found<L, VECTORS>,
    y: &mut [u8],
    plain: impl Fn(usize, &[f32], &mut [u8]),
) {
    let [mut scales, mut magnitudes] = [[0.0f32; MAX_SUBS]; 2];
    let mut valid = 0u32;
    for g in 0..VECTORS {
        lanes.store(found.scale[g], &mut scales[g * L::LEN..]);
        lanes.store(found.magnitude[g], &mut magnitudes[g * L::LEN..]);
        valid |= lanes.bits(found.valid[g]) << (g * L::LEN);
    }
    let blocks = x.as_chunks::<LEN>().0.iter().zip(y.as_chunks_mut::<BYTES>().0);
    let subs = scales.as_chunks().0.iter().zip(magnitudes.as_chunks().0);
    for (index, ((x, y), (scales, magnitudes))) in blocks.zip(subs).enumerate() {
        let tail = Tail::quantize(scales)
            .filter(|tail| valid >> (index * SUBS) & 0xffff == 0xffff && tail.codes_fit(magnitudes));
        let Some(tail) = tail else {
            plain(index, x, y);
            continue;
        };
        store_codes(lanes, x, &tail, &mut y[..SCALES_AT]);
        y[SCALES_AT..].copy_from_slice(&tail.bytes);
    }
}

struct Encode<'a>(&'a [f32], &'a mut [u8]);

impl LaneKernel for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch_blocks = VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let batches = self.0.chunks(batch_blocks * LEN);
        for (x, y) in batches.zip(self.1.chunks_mut(batch_blocks * BYTES)) {
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            write_batch(lanes, x, &search_lanes(lanes, full), y, |_, x, y| Q6K::encode_block_scalar(x, y));
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
        let batch_blocks = VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let mut weights = [0.0f32; MAX_SUBS * SUB_LEN];
        let batches = src.chunks(batch_blocks * LEN).zip(dst.chunks_mut(batch_blocks * BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * batch_blocks;
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            for (index, weights) in weights.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
                weights.copy_from_slice(of_block::<LEN>(importance, first + index));
            }
            let found = search_given_lanes(lanes, full, Some(&weights), REACH);
            write_batch(lanes, x, &found, y, |index, x, y| {
                Q6K::encode_row_weighted_scalar(of_block::<LEN>(importance, first + index), x, y);
            });
        }
    }
}

struct Decode<'a>(&'a [u8], &'a mut [f32]);

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let blocks = self.0.as_chunks::<BYTES>().0.iter();
        for (y, x) in blocks.zip(self.1.as_chunks_mut::<LEN>().0) {
            let Some((codes, tail)) = y.split_last_chunk() else { return };
            let tail = Tail::decode(*tail);
            for half in 0..2 {
                let nibbles = &codes[half * 2 * ROW_LEN..][..2 * ROW_LEN];
                let pairs = &codes[LEN / 2 + half * ROW_LEN..][..ROW_LEN];
                for row in 0..4 {
                    let x = &mut x[half * HALF_LEN + row * ROW_LEN..][..ROW_LEN];
                    let nibbles = &nibbles[row % 2 * ROW_LEN..][..ROW_LEN];
                    let scales = &tail.scales[(half * HALF_LEN + row * ROW_LEN) / SUB_LEN..][..2];
                    for i in 0..ROW_LEN {
                        let low = i32::from(nibbles[i]) >> (row / 2 * 4) & 15;
                        let high = i32::from(pairs[i]) >> (2 * row) & 3;
                        x[i] = scales[i / SUB_LEN] * ((low | high << 4) - 32) as f32;
                    }
                }
            }
        }
    }
}

impl Block for Q6K {
    const NAME: &'static str = "Q6_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst));
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        let mut codes = [0u8; LEN];
        let mut scales = [0.0; SUBS];
        let subs = x.as_chunks::<SUB_LEN>().0.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0);
        for (scale, (x, codes)) in scales.iter_mut().zip(subs) {
            *scale = search_scalar(x, codes);
        }
        write_block(x, &scales, &mut codes, y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted(importance, src, dst));
    }

    /// The importance itself weighs errors here.
    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.as_chunks::<LEN>().0.iter().zip(importance.as_chunks::<LEN>().0);
        for ((x, importance), y) in blocks.zip(y.as_chunks_mut::<BYTES>().0) {
            let mut codes = [0u8; LEN];
            let mut scales = [0.0; SUBS];
            let subs = x.chunks_exact(SUB_LEN).zip(importance.chunks_exact(SUB_LEN));
            let slots = scales.iter_mut().zip(codes.chunks_exact_mut(SUB_LEN));
            for ((x, importance), (scale, codes)) in subs.zip(slots) {
                *scale = search_weighted(x, importance, REACH, codes);
            }
            write_block(x, &scales, &mut codes, y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 64, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        y[..SCALES_AT].fill(0);
        pack_codes(codes, y);
    }

    const TWO_LEVELS: Option<TwoLevels> =
        Some(TwoLevels { sub_len: SUB_LEN, scales: (-128, 127), top_min: 0, units: Units::From(32.0) });

    fn block_scales(y: &[u8]) -> Scales {
        let d = f16_bits_to_f32(u16::from_le_bytes([y[SCALES_AT + SUBS], y[SCALES_AT + SUBS + 1]]));
        let scales = std::array::from_fn(|j| i16::from(y[SCALES_AT + j] as i8));
        Scales { d, scales, ..Scales::default() }
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        let y = &mut y[SCALES_AT..];
        y.iter_mut().zip(scales.scales).for_each(|(byte, multiple)| *byte = multiple as i8 as u8);
        y[SUBS..].copy_from_slice(&f32_to_f16_bits(scales.d).to_le_bytes());
    }

    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let Some((codes, tail)) = y.split_last_chunk() else { return };
        let tail = Tail::decode(*tail);
        for (i, v) in x.iter_mut().enumerate() {
            let scale = tail.scales[i / SUB_LEN];
            let (half, row, i) = (i / HALF_LEN, i % HALF_LEN / ROW_LEN, i % ROW_LEN);
            let low = codes[half * 2 * ROW_LEN + row % 2 * ROW_LEN + i] >> (row / 2 * 4) & 15;
            let high = codes[LEN / 2 + half * ROW_LEN + i] >> (2 * row) & 3;
            *v = scale * (i32::from(low | high << 4) - 32) as f32;
        }
    }
}
