//! The vector encoder of Q4_K and Q5_K: searches several super-blocks at once, then writes
//! their codes.

use std::marker::PhantomData;

use super::block::{self, Block};
use super::importance::{MAX_BATCH, batch_weights, of_block};
use super::scale_min::{HEAD_BYTES, Head, LEN, SUB_LEN, SUBS};
use super::scale_min_search::{Found, Given, Search, Squares, search_lanes};
use crate::dispatch::{LaneKernel, Lanes};

/// Vectors of sub-blocks whose sums are interleaved.
const VECTORS: usize = 2;
/// Packs of vectors that take turns.
const PACKS: usize = 2;
/// As many lanes as the widest instruction set has in all packs.
const MAX_SUBS: usize = PACKS * VECTORS * 16;

/// How a format writes the codes of a super-block.
pub(super) trait Layout: Block {
    /// Constants of its search.
    const SEARCH: &'static Search;
    /// The same with an importance of columns.
    const WEIGHTED_SEARCH: &'static Search;
    /// Whether multiples of the steps are clamped then.
    const CLAMPS: bool;
    /// Quantizes `x` with the scales of `head` and writes the codes to `y`.
    fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], head: &Head, y: &mut [u8]);
}

/// Encodes whole super-blocks.
pub(super) struct Encode<'a, B> {
    src: &'a [f32],
    dst: &'a mut [u8],
    format: PhantomData<B>,
}

impl<'a, B> Encode<'a, B> {
    pub(super) fn new(src: &'a [f32], dst: &'a mut [u8]) -> Self {
        Self { src, dst, format: PhantomData }
    }
}

/// Weights `at..` of sub-block `j` as codes: `clamp(round((x + min) / scale), 0, top)`.
#[inline(always)]
pub(super) fn quantize<L: Lanes>(
    lanes: L,
    x: &[f32; LEN],
    head: &Head,
    top: f32,
    j: usize,
    at: usize,
) -> L::F {
    let (scale, min) = (lanes.splat(head.scales[j]), lanes.splat(head.mins[j]));
    let code = lanes.round((lanes.load(&x[j * SUB_LEN + at..]) + min) / scale);
    lanes.min(lanes.max(code, lanes.splat(0.0)), lanes.splat(top))
}

/// Whether the codes of a super-block can be computed with vectors: every scale is there and
/// every quotient is far from the 22 bits that rounding can take.
#[inline(always)]
fn codes_fit(head: &Head, magnitude: &[f32]) -> bool {
    (0..SUBS).all(|j| {
        let (scale, min) = (head.scales[j].abs(), head.mins[j].abs());
        scale > 0.0 && scale < f32::INFINITY && magnitude[j] + min < scale * (1 << 21) as f32
    })
}

impl<B: Layout> LaneKernel for Encode<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch_subs = PACKS * VECTORS * L::LEN;
        let batch_blocks = batch_subs / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let batches = self.src.chunks(batch_blocks * LEN);
        for (x, y) in batches.zip(self.dst.chunks_mut(batch_blocks * B::LEN_BYTES)) {
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            let found: [Found<L, VECTORS>; PACKS] =
                search_lanes::<L, Squares, VECTORS, SUB_LEN>(lanes, full, &[], B::SEARCH);
            let [mut scales, mut mins, mut magnitudes, mut sums] = [[0.0f32; MAX_SUBS]; 4];
            let mut valid = 0u64;
            for (p, found) in found.iter().enumerate() {
                let at = p * VECTORS * L::LEN;
                let rows = [&mut scales[at..], &mut mins[at..], &mut magnitudes[at..], &mut sums[at..]];
                valid |= found.store(lanes, rows) << at;
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.chunks_exact_mut(B::LEN_BYTES));
            let subs =
                scales.as_chunks().0.iter().zip(mins.as_chunks().0).zip(magnitudes.as_chunks::<SUBS>().0);
            for (index, ((x, y), ((scales, mins), magnitudes))) in blocks.zip(subs).enumerate() {
                let head = Head::quantize(scales, mins);
                if valid >> (index * SUBS) & 0xff != 0xff || !codes_fit(&head, magnitudes) {
                    B::encode_block_scalar(x, y);
                    continue;
                }
                y[..HEAD_BYTES].copy_from_slice(&head.bytes);
                B::store_codes(lanes, x, &head, &mut y[HEAD_BYTES..]);
            }
        }
    }
}

/// Encodes whole rows of super-blocks, with errors weighed by the importance of columns.
pub(super) struct EncodeWeighted<'a, B> {
    importance: &'a [f32],
    src: &'a [f32],
    dst: &'a mut [u8],
    format: PhantomData<B>,
}

impl<'a, B> EncodeWeighted<'a, B> {
    pub(super) fn new(importance: &'a [f32], src: &'a [f32], dst: &'a mut [u8]) -> Self {
        Self { importance, src, dst, format: PhantomData }
    }
}

impl<B: Layout> LaneKernel for EncodeWeighted<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let batch_blocks = PACKS * VECTORS * L::LEN / SUBS;
        let mut padded = [0.0f32; MAX_SUBS * SUB_LEN];
        let mut weights = [0.0f32; MAX_BATCH];
        let batches =
            self.src.chunks(batch_blocks * LEN).zip(self.dst.chunks_mut(batch_blocks * B::LEN_BYTES));
        for (batch, (x, y)) in batches.enumerate() {
            let first = batch * batch_blocks;
            let full = block::pad(x, batch_blocks * LEN, &mut padded);
            batch_weights::<L, LEN>(lanes, x, first, self.importance, 2.0 / LEN as f32, &mut weights);
            let found: [Found<L, VECTORS>; PACKS] =
                search_lanes::<L, Given, VECTORS, SUB_LEN>(lanes, full, &weights, B::WEIGHTED_SEARCH);
            let [mut scales, mut mins, mut magnitudes, mut sums] = [[0.0f32; MAX_SUBS]; 4];
            let mut valid = 0u64;
            for (p, found) in found.iter().enumerate() {
                let at = p * VECTORS * L::LEN;
                let rows = [&mut scales[at..], &mut mins[at..], &mut magnitudes[at..], &mut sums[at..]];
                valid |= found.store(lanes, rows) << at;
            }
            let blocks = x.as_chunks::<LEN>().0.iter().zip(y.chunks_exact_mut(B::LEN_BYTES));
            let [scales, mins, magnitudes, sums] =
                [&scales, &mins, &magnitudes, &sums].map(|values| values.as_chunks::<SUBS>().0);
            for (index, (x, y)) in blocks.enumerate() {
                let head = Head::quantize_weighted(&scales[index], &mins[index], &sums[index], B::CLAMPS);
                if valid >> (index * SUBS) & 0xff != 0xff || !codes_fit(&head, &magnitudes[index]) {
                    B::encode_row_weighted_scalar(of_block::<LEN>(self.importance, first + index), x, y);
                    continue;
                }
                y[..HEAD_BYTES].copy_from_slice(&head.bytes);
                B::store_codes(lanes, x, &head, &mut y[HEAD_BYTES..]);
            }
        }
    }
}
