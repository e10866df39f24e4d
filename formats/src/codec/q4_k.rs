//! Q4_K: super-blocks of 256 weights as 4-bit codes, with a 6-bit scale and minimum for each
//! 32.
//!
//! ```text
//! x_i ~ d * sc_j * q_i - dmin * m_j      q in 0..=15, sc and m in 0..=63
//! ```
//!
//! How scales, minima and codes are found: `scale_min` (21 candidates, from 14 to 16 levels
//! over the range). 144 bytes: `d` (f16), `dmin` (f16), 12 bytes of 6-bit numbers, then per
//! pair of sub-blocks 32 bytes, the first one's codes in the low nibbles.
//! Source: llama.cpp, `ggml-quants.c`, `quantize_row_q4_K_ref`.

use super::block::Block;
use super::scale_min::{
    HEAD_BYTES, Head, LEN, SUB_LEN, SUBS, encode_scalar, encode_weighted_scalar, weighted_search,
};
use super::scale_min_encode::{Encode, EncodeWeighted, Layout, quantize};
use super::scale_min_search::Search;
use super::{Ladder, Scales, TwoLevels};
use crate::dispatch::{self, Kernel, Lanes};

const BYTES: usize = 144;

const SEARCH: Search = Search { top: 15, first: -1.0, step: 0.1, steps: 20 };

const WEIGHTED_SEARCH: Search = weighted_search(SEARCH.top);

/// The codec; see the module.
pub(super) struct Q4K;

/// Writes opening bytes and codes.
fn write_block((head, codes): &([u8; HEAD_BYTES], [u8; LEN]), y: &mut [u8]) {
    y[..HEAD_BYTES].copy_from_slice(head);
    pack_codes(codes, &mut y[HEAD_BYTES..]);
}

/// Stores the codes of a super-block.
fn pack_codes(codes: &[u8], y: &mut [u8]) {
    for (pair, y) in y.chunks_exact_mut(SUB_LEN).enumerate() {
        let (low, high) = codes[2 * pair * SUB_LEN..].split_at(SUB_LEN);
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            *y = low | high << 4;
        }
    }
}

impl Layout for Q4K {
    const SEARCH: &'static Search = &SEARCH;
    const WEIGHTED_SEARCH: &'static Search = &WEIGHTED_SEARCH;
    const CLAMPS: bool = false;

    #[inline(always)]
    fn store_codes<L: Lanes>(lanes: L, x: &[f32; LEN], head: &Head, y: &mut [u8]) {
        let sixteen = lanes.splat(16.0);
        for pair in 0..SUBS / 2 {
            for at in (0..SUB_LEN).step_by(L::LEN) {
                let low = quantize(lanes, x, head, 15.0, 2 * pair, at);
                let high = quantize(lanes, x, head, 15.0, 2 * pair + 1, at);
                lanes.store_bytes(low + high * sixteen, &mut y[pair * SUB_LEN + at..]);
            }
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
            let Some((bytes, codes)) = y.split_first_chunk() else { return };
            let head = Head::decode(*bytes);
            let pairs = x.as_chunks_mut::<{ 2 * SUB_LEN }>().0.iter_mut();
            for (pair, (x, codes)) in pairs.zip(codes.as_chunks::<SUB_LEN>().0).enumerate() {
                let (low, high) = x.split_at_mut(SUB_LEN);
                for i in 0..SUB_LEN {
                    let codes = i32::from(codes[i]);
                    low[i] = head.scales[2 * pair] * (codes & 15) as f32 - head.mins[2 * pair];
                    high[i] = head.scales[2 * pair + 1] * (codes >> 4) as f32 - head.mins[2 * pair + 1];
                }
            }
        }
    }
}

impl Block for Q4K {
    const NAME: &'static str = "Q4_K";
    const LEN_ELEMS: usize = LEN;
    const LEN_BYTES: usize = BYTES;

    fn encode_blocks(src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(Encode::<Self>::new(src, dst));
    }

    fn decode_blocks(src: &[u8], dst: &mut [f32]) {
        dispatch::run(Decode(src, dst));
    }

    fn encode_block_scalar(x: &[f32], y: &mut [u8]) {
        write_block(&encode_scalar(x, &SEARCH), y);
    }

    const WEIGHS: bool = true;

    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        dispatch::run_lanes(EncodeWeighted::<Self>::new(importance, src, dst));
    }

    fn encode_row_weighted_scalar(importance: &[f32], x: &[f32], y: &mut [u8]) {
        let blocks = x.chunks_exact(LEN).zip(importance.chunks_exact(LEN));
        for ((x, importance), y) in blocks.zip(y.chunks_exact_mut(BYTES)) {
            write_block(&encode_weighted_scalar(x, importance, &WEIGHTED_SEARCH, Self::CLAMPS), y);
        }
    }

    const LADDER: Option<Ladder> = Some(Ladder { codes: 16, even: true });

    fn put_block_codes(codes: &[u8], y: &mut [u8]) {
        pack_codes(codes, &mut y[HEAD_BYTES..]);
    }

    const TWO_LEVELS: Option<TwoLevels> = Some(Head::TWO_LEVELS);

    fn block_scales(y: &[u8]) -> Scales {
        Head::scales_of(y)
    }

    fn put_block_scales(scales: &Scales, y: &mut [u8]) {
        Head::put_scales(scales, y);
    }

    fn decode_block_scalar(y: &[u8], x: &mut [f32]) {
        let Some((bytes, codes)) = y.split_first_chunk() else { return };
        let head = Head::decode(*bytes);
        for (j, x) in x.chunks_exact_mut(SUB_LEN).enumerate() {
            for (v, code) in x.iter_mut().zip(&codes[j / 2 * SUB_LEN..]) {
                let code = if j % 2 == 0 { code & 15 } else { code >> 4 };
                *v = head.scales[j] * f32::from(code) - head.mins[j];
            }
        }
    }
}
