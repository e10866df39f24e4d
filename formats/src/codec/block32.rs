//! What the blocks of 32 weights share: finding the extremes of a block with vectors, with
//! the choices that a scan from first to last makes.

use crate::dispatch::Lanes;

/// Weights in a block of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
pub(super) const LEN: usize = 32;

/// Extremes of a block of finite weights.
pub(super) struct Range {
    /// Smallest weight; of zeros of both signs, the first one in the block.
    pub(super) min: f32,
    /// Largest weight.
    pub(super) max: f32,
}

/// Bit `i` says whether `x[i] == value`.
#[inline(always)]
fn positions<L: Lanes>(lanes: L, x: &[f32; LEN], value: f32, magnitude: bool) -> u32 {
    let mut bits = 0;
    for at in (0..LEN).step_by(L::LEN) {
        let v = lanes.load(&x[at..]);
        let v = if magnitude { lanes.abs(v) } else { v };
        bits |= lanes.bits(lanes.eq(v, lanes.splat(value))) << at;
    }
    bits
}

/// The largest magnitude, or `None` when a weight is infinite or NaN.
#[inline(always)]
pub(super) fn largest_magnitude<L: Lanes>(lanes: L, x: &[f32; LEN]) -> Option<f32> {
    let mut largest = lanes.abs(lanes.load(x));
    let mut finite = lanes.lt(largest, lanes.splat(f32::INFINITY));
    for at in (L::LEN..LEN).step_by(L::LEN) {
        let v = lanes.abs(lanes.load(&x[at..]));
        finite = finite & lanes.lt(v, lanes.splat(f32::INFINITY));
        largest = lanes.max(largest, v);
    }
    lanes.all(finite).then(|| lanes.reduce_max(largest))
}

/// The weight of largest magnitude with its sign, the first one where several tie; `None`
/// when a weight is infinite or NaN.
#[inline(always)]
pub(super) fn signed_extreme<L: Lanes>(lanes: L, x: &[f32; LEN]) -> Option<f32> {
    let magnitude = largest_magnitude(lanes, x)?;
    // The reference starts from +0 and only takes what is larger.
    if magnitude == 0.0 {
        return Some(0.0);
    }
    Some(x[positions(lanes, x, magnitude, true).trailing_zeros() as usize % LEN])
}

/// Smallest and largest weight; `None` when a weight is infinite or NaN.
#[inline(always)]
pub(super) fn range<L: Lanes>(lanes: L, x: &[f32; LEN]) -> Option<Range> {
    let mut max = lanes.load(x);
    let mut negated_min = lanes.splat(0.0) - max;
    let mut finite = lanes.lt(lanes.abs(max), lanes.splat(f32::INFINITY));
    for at in (L::LEN..LEN).step_by(L::LEN) {
        let v = lanes.load(&x[at..]);
        finite = finite & lanes.lt(lanes.abs(v), lanes.splat(f32::INFINITY));
        max = lanes.max(max, v);
        negated_min = lanes.max(negated_min, lanes.splat(0.0) - v);
    }
    if !lanes.all(finite) {
        return None;
    }
    let (min, max) = (-lanes.reduce_max(negated_min), lanes.reduce_max(max));
    if min != 0.0 {
        return Some(Range { min, max });
    }
    let min = x[positions(lanes, x, 0.0, false).trailing_zeros() as usize % LEN];
    // All zeros: the scan's largest weight is the first zero too.
    Some(Range { min, max: if max == 0.0 { min } else { max } })
}

/// Packs 4-bit codes: byte `i` holds code `i` in its low and code `i + 16` in its high nibble.
pub(super) fn pack_4_bits(codes: &[u8; LEN], y: &mut [u8]) {
    let (low, high) = codes.split_at(LEN / 2);
    for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
        *y = low | high << 4;
    }
}

/// Packs 5-bit codes: a u32 of top bits, then nibbles. Only the low five bits of a code count.
pub(super) fn pack_5_bits(codes: &[u8; LEN], y: &mut [u8]) {
    let mut top = 0u32;
    for i in 0..LEN / 2 {
        y[4 + i] = codes[i] & 15 | codes[LEN / 2 + i] << 4;
    }
    for (i, code) in codes.iter().enumerate() {
        top |= u32::from(code >> 4 & 1) << i;
    }
    y[..4].copy_from_slice(&top.to_le_bytes());
}

/// The inverse of [`pack_5_bits`].
#[inline(always)]
pub(super) fn unpack_5_bits(y: &[u8]) -> [u8; LEN] {
    let y: &[u8; 4 + LEN / 2] = y.first_chunk().unwrap_or(&[0; 4 + LEN / 2]);
    let mut codes = [0u8; LEN];
    for i in 0..LEN / 2 {
        codes[i] = y[4 + i] & 15;
        codes[LEN / 2 + i] = y[4 + i] >> 4;
    }
    for i in 0..LEN {
        codes[i] |= u8::from(y[i / 8] & 1 << (i % 8) != 0) << 4;
    }
    codes
}

/// Writes the codes `min(31, trunc((x_i - min) * inverse + offset))` as [`pack_5_bits`] does.
#[inline(always)]
pub(super) fn store_5_bits<L: Lanes>(
    lanes: L,
    x: &[f32; LEN],
    min: L::F,
    inverse: f32,
    offset: f32,
    y: &mut [u8],
) {
    let (inverse, offset) = (lanes.splat(inverse), lanes.splat(offset));
    let (top, sixteen) = (lanes.splat(31.0), lanes.splat(16.0));
    let mut top_bits = 0u32;
    for at in (0..LEN / 2).step_by(L::LEN) {
        let low = (lanes.load(&x[at..]) - min) * inverse + offset;
        let high = (lanes.load(&x[LEN / 2 + at..]) - min) * inverse + offset;
        let low = lanes.min(lanes.trunc(low), top);
        let high = lanes.min(lanes.trunc(high), top);
        let (small_low, small_high) = (lanes.lt(low, sixteen), lanes.lt(high, sixteen));
        top_bits |= lanes.bits(small_low) << at | lanes.bits(small_high) << (LEN / 2 + at);
        let low = lanes.select(small_low, low, low - sixteen);
        let high = lanes.select(small_high, high, high - sixteen);
        lanes.store_bytes(low + high * sixteen, &mut y[4 + at..]);
    }
    y[..4].copy_from_slice(&(!top_bits).to_le_bytes());
}
