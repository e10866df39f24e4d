//! Formats whose groups are opaque fixed-size blocks in one byte stream: all of GGUF's.
//!
//! A [`Block`] format is a [`Codec`] with one part; this file checks the sizes and cuts the
//! slices into blocks.

use std::marker::PhantomData;

use super::{Codec, Grid, Ladder, Part, Scales, TwoLevels};
use crate::dispatch::{self, Kernel};
use crate::dtype::Dtype;

/// A format of fixed-size blocks.
pub(crate) trait Block: Sync {
    /// See [`Codec::name`].
    const NAME: &'static str;
    /// Weights in a block.
    const LEN_ELEMS: usize;
    /// Stored bytes of a block.
    const LEN_BYTES: usize;
    /// Element type for containers that need one.
    const DTYPE: Dtype = Dtype::U8;
    /// See [`Codec::parts`].
    const PARTS: &'static [Part] =
        &[Part { name: "weight", dtype: Self::DTYPE, bytes_per_group: Self::LEN_BYTES }];

    /// Encodes whole blocks.
    fn encode_blocks(src: &[f32], dst: &mut [u8]);
    /// Decodes whole blocks.
    fn decode_blocks(src: &[u8], dst: &mut [f32]);
    /// Encodes one block: plain code in the reference's order of operations.
    fn encode_block_scalar(src: &[f32], dst: &mut [u8]);
    /// Decodes one block: plain code in the reference's order of operations.
    fn decode_block_scalar(src: &[u8], dst: &mut [f32]);
    /// See [`Codec::weighs`].
    const WEIGHS: bool = false;
    /// Encodes rows of as many weights as `importance` has, weighing errors by it.
    fn encode_weighted(importance: &[f32], src: &[f32], dst: &mut [u8]) {
        if !Self::WEIGHS {
            return Self::encode_blocks(src, dst);
        }
        encode_rows_scalar::<Self>(importance, src, dst);
    }
    /// The same for one row: plain code in the reference's order of operations.
    fn encode_row_weighted_scalar(_importance: &[f32], src: &[f32], dst: &mut [u8]) {
        for (x, y) in src.chunks_exact(Self::LEN_ELEMS).zip(dst.chunks_exact_mut(Self::LEN_BYTES)) {
            Self::encode_block_scalar(x, y);
        }
    }
    /// See [`Codec::ladder`].
    const LADDER: Option<Ladder> = None;
    /// See [`Codec::put_codes`].
    fn put_block_codes(_codes: &[u8], _y: &mut [u8]) {}
    /// See [`Codec::two_levels`].
    const TWO_LEVELS: Option<TwoLevels> = None;
    /// See [`Codec::scales`].
    fn block_scales(_y: &[u8]) -> Scales {
        Scales::default()
    }
    /// See [`Codec::put_scales`].
    fn put_block_scales(_scales: &Scales, _y: &mut [u8]) {}
    /// See [`Codec::encode_powers`].
    fn encode_block_powers(_power: u8, _codes: &[u8], _: &mut [u8]) -> bool {
        false
    }
    /// See [`Codec::encode_grid`].
    fn encode_block_grid(_: Grid<'_>, _: &mut [u8]) -> bool {
        false
    }
}

/// Decodes with the plain code, compiled for the widest instruction set of this CPU. For formats
/// without a vector version; their plain functions are `#[inline(always)]`.
pub(super) fn decode_plain<B: Block>(src: &[u8], dst: &mut [f32]) {
    struct Decode<'a, B>(&'a [u8], &'a mut [f32], PhantomData<B>);
    impl<B: Block> Kernel for Decode<'_, B> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (y, x) in self.0.chunks_exact(B::LEN_BYTES).zip(self.1.chunks_exact_mut(B::LEN_ELEMS)) {
                B::decode_block_scalar(y, x);
            }
        }
    }
    dispatch::run(Decode::<B>(src, dst, PhantomData));
}

/// Encodes with the plain code, as [`decode_plain`] decodes.
pub(super) fn encode_plain<B: Block>(src: &[f32], dst: &mut [u8]) {
    struct Encode<'a, B>(&'a [f32], &'a mut [u8], PhantomData<B>);
    impl<B: Block> Kernel for Encode<'_, B> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (x, y) in self.0.chunks_exact(B::LEN_ELEMS).zip(self.1.chunks_exact_mut(B::LEN_BYTES)) {
                B::encode_block_scalar(x, y);
            }
        }
    }
    dispatch::run(Encode::<B>(src, dst, PhantomData));
}

/// Encodes every block of a row with the importance of its columns, if there is one. `encode` writes all bytes of a block.
#[inline(always)]
pub(super) fn each<const LEN: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    y: &mut [u8],
    block_bytes: usize,
    encode: impl Fn(&[f32; LEN], Option<&[f32; LEN]>, &mut [u8]),
) {
    let blocks = x.as_chunks().0.iter().zip(y.chunks_exact_mut(block_bytes));
    for (block, (x, y)) in blocks.enumerate() {
        encode(x, importance.map(|importance| &importance.as_chunks().0[block]), y);
    }
}

/// # Panics
/// See [`Codec`].
fn check_lengths<B: Block>(len_elems: usize, len_bytes: usize) {
    assert!(len_elems.is_multiple_of(B::LEN_ELEMS), "{}: {len_elems} weights", B::NAME);
    assert_eq!(len_elems / B::LEN_ELEMS * B::LEN_BYTES, len_bytes, "{}: bytes", B::NAME);
}

/// Encodes rows with the plain code.
fn encode_rows_scalar<B: Block + ?Sized>(importance: &[f32], src: &[f32], dst: &mut [u8]) {
    let row_bytes = importance.len() / B::LEN_ELEMS * B::LEN_BYTES;
    for (x, y) in src.chunks_exact(importance.len()).zip(dst.chunks_exact_mut(row_bytes)) {
        B::encode_row_weighted_scalar(importance, x, y);
    }
}

/// # Panics
/// See [`Codec`].
fn check_rows<B: Block>(importance: &[f32], src: &[f32], dst: &[u8]) {
    check_lengths::<B>(src.len(), dst.len());
    let row = importance.len();
    assert!(row > 0 && row.is_multiple_of(B::LEN_ELEMS), "{}: {row} columns", B::NAME);
    assert!(src.len().is_multiple_of(row), "{}: {} weights in rows of {row}", B::NAME, src.len());
}

impl<B: Block> Codec for B {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn group_len_elems(&self) -> usize {
        B::LEN_ELEMS
    }

    fn parts(&self) -> &'static [Part] {
        B::PARTS
    }

    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        check_lengths::<B>(src.len(), dst[0].len());
        B::encode_blocks(src, dst[0]);
    }

    fn decode(&self, src: &[&[u8]], dst: &mut [f32]) {
        check_lengths::<B>(dst.len(), src[0].len());
        B::decode_blocks(src[0], dst);
    }

    fn encode_grid(&self, grid: Grid<'_>, dst: &mut [&mut [u8]]) -> bool {
        check_lengths::<B>(grid.codes.len(), dst[0].len());
        B::encode_block_grid(grid, dst[0])
    }

    fn encode_powers(&self, power: u8, codes: &[u8], dst: &mut [&mut [u8]]) -> bool {
        check_lengths::<B>(codes.len(), dst[0].len());
        B::encode_block_powers(power, codes, dst[0])
    }

    fn weighs(&self) -> bool {
        B::WEIGHS
    }

    fn ladder(&self) -> Option<Ladder> {
        B::LADDER
    }

    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        check_lengths::<B>(codes.len(), dst[0].len());
        B::put_block_codes(codes, dst[0]);
    }

    fn two_levels(&self) -> Option<TwoLevels> {
        B::TWO_LEVELS
    }

    fn scales(&self, src: &[&[u8]]) -> Scales {
        check_lengths::<B>(B::LEN_ELEMS, src[0].len());
        B::block_scales(src[0])
    }

    fn put_scales(&self, scales: &Scales, dst: &mut [&mut [u8]]) {
        check_lengths::<B>(B::LEN_ELEMS, dst[0].len());
        B::put_block_scales(scales, dst[0]);
    }

    fn encode_weighted(&self, importance: &[f32], src: &[f32], dst: &mut [&mut [u8]]) {
        check_rows::<B>(importance, src, dst[0]);
        B::encode_weighted(importance, src, dst[0]);
    }

    fn encode_weighted_scalar(&self, importance: &[f32], src: &[f32], dst: &mut [&mut [u8]]) {
        check_rows::<B>(importance, src, dst[0]);
        encode_rows_scalar::<B>(importance, src, dst[0]);
    }

    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        check_lengths::<B>(src.len(), dst[0].len());
        for (x, y) in src.chunks_exact(B::LEN_ELEMS).zip(dst[0].chunks_exact_mut(B::LEN_BYTES)) {
            B::encode_block_scalar(x, y);
        }
    }

    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]) {
        check_lengths::<B>(dst.len(), src[0].len());
        for (x, y) in src[0].chunks_exact(B::LEN_BYTES).zip(dst.chunks_exact_mut(B::LEN_ELEMS)) {
            B::decode_block_scalar(x, y);
        }
    }
}

/// `x` itself when it has `len` numbers, as many as fill all lanes, else with what is in `padded` behind it.
#[inline(always)]
pub(super) fn pad<'a>(x: &'a [f32], len: usize, padded: &'a mut [f32]) -> &'a [f32] {
    if x.len() == len {
        return x;
    }
    padded[..x.len()].copy_from_slice(x);
    &padded[..len]
}
