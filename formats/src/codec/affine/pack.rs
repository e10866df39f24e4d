//! Codes in bytes to a little-endian bit stream and back, eight codes at a time.
//!
//! Eight codes of `BITS` bits are `BITS` whole bytes for every width, so a `u64` with one code
//! per byte becomes a `u64` whose low `8 * BITS` bits are the stream, in three steps that join
//! neighbours: pairs, fours, eights.

/// Joins eight byte-sized codes; the first one ends up lowest.
#[inline(always)]
fn join<const BITS: usize>(codes: u64) -> u64 {
    let pairs = (codes & 0x00ff_00ff_00ff_00ff) | ((codes & 0xff00_ff00_ff00_ff00) >> (8 - BITS));
    let fours = (pairs & 0x0000_ffff_0000_ffff) | ((pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS));
    (fours & 0xffff_ffff) | ((fours >> 32) << (4 * BITS))
}

/// Undoes [`join`]: bits above `8 * BITS` are ignored.
#[inline(always)]
fn split<const BITS: usize>(stream: u64) -> u64 {
    let half = (1u64 << (4 * BITS)) - 1;
    let fours = (stream & half) | ((stream >> (4 * BITS)) & half) << 32;
    let pair = 0x0000_0001_0000_0001 * ((1u64 << (2 * BITS)) - 1);
    let pairs = (fours & pair) | ((fours >> (2 * BITS)) & pair) << 16;
    let one = 0x0001_0001_0001_0001 * ((1u64 << BITS) - 1);
    (pairs & one) | ((pairs >> BITS) & one) << 8
}

/// Packs `codes`, a multiple of eight, into `codes.len() * BITS / 8` bytes.
#[inline(always)]
pub(super) fn pack<const BITS: usize>(codes: &[u8], stream: &mut [u8]) {
    if BITS == 8 {
        stream.copy_from_slice(codes);
        return;
    }
    for (eight, bytes) in codes.as_chunks::<8>().0.iter().zip(stream.chunks_exact_mut(BITS)) {
        bytes.copy_from_slice(&join::<BITS>(u64::from_le_bytes(*eight)).to_le_bytes()[..BITS]);
    }
}

/// Unpacks `codes.len()` codes, a multiple of eight.
#[inline(always)]
pub(super) fn unpack<const BITS: usize>(stream: &[u8], codes: &mut [u8]) {
    if BITS == 8 {
        codes.copy_from_slice(stream);
        return;
    }
    for (bytes, eight) in stream.chunks_exact(BITS).zip(codes.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        *eight = split::<BITS>(u64::from_le_bytes(word)).to_le_bytes();
    }
}
