//! Groups of a row as 4-bit integers with a scale and, in some formats, a zero point: the weights of
//! compressed-tensors, GPTQ and AWQ checkpoints.
//!
//! ```text
//! x_i ~ scale * (code_i - zero)        code, zero in 0 ..= 15
//! ```
//!
//! How scale, zero and codes are found is a [`Scheme`], one file each: `compressed`, `gptq`, `awq`. All of
//! them round to nearest (ties to even), without calibration. Decoding is the same for all: the
//! difference is exact, the product is rounded to the scales' number format.
//!
//! Byte layout, row-major parts. Codes: eight per I32 word, weight `i` of a word in bits `4i ..`, rows padded
//! with zeros to a whole word. Scales: one number per group. Zero points: one U8 per group; symmetric
//! compressed-tensors has none (the zero is 8). How these become a checkpoint's tensors is the business of
//! the layouts `pack-quantized`, `gptq` and `awq`.
//!
//! NaNs are passed over in the search for extremes and get the lowest code: sources are checked before.

use super::{Codec, Grid, Ladder, Part};
use crate::dtype::Dtype;

mod awq;
mod compressed;
mod gptq;
mod kernel;
mod made;
mod number;
mod scalar;
#[cfg(test)]
mod tests;

use awq::Awq;
use compressed::{Asymmetric, Symmetric};
use gptq::Gptq;
pub(super) use made::find as find_made;
pub use made::{ChannelScale, int4_channel};
use number::{Bf16, F16, F32, Number};

/// Weights in a word of codes.
const WORD: usize = 8;
/// The code of zero where no zero point is stored.
const SYMMETRIC_ZERO: u8 = 8;

/// How a format derives scale and zero point from a group's extremes.
trait Scheme: Sync + 'static {
    /// Number format of the scales.
    type Scale: Number;
    /// Names of codes, scales and zero points.
    const PARTS: [&'static str; 3];
    /// Whether the zero point is stored.
    const HAS_ZERO: bool;
    /// Whether the zero point is added to the quotient before that is rounded to the scales' format.
    const ADDS_ZERO_FIRST: bool;
    /// Whether the quotient is rounded to the scales' number format before it becomes an integer.
    const ROUNDS_QUOTIENT: bool;
    /// What the plain code does for this scheme.
    const KIND: scalar::Kind;

    /// From the smallest and the largest weight of a group.
    fn parameters(low: f32, high: f32) -> Parameters;
}

/// What quantizes a group.
#[derive(Debug, Clone, Copy)]
struct Parameters {
    /// Weights are divided by this.
    divisor: f32,
    /// The scale as it is stored: a number of the scales' format.
    scale: f32,
    /// The code of zero.
    zero: u8,
}

/// A format with groups of one length.
struct Int4<S: Scheme> {
    name: &'static str,
    group_len: usize,
    parts: &'static [Part],
    scheme: std::marker::PhantomData<S>,
}

impl<S: Scheme> Int4<S> {
    const fn new(name: &'static str, group_len: usize, parts: &'static [Part]) -> Self {
        Self { name, group_len, parts, scheme: std::marker::PhantomData }
    }

    /// Checks the caller's slices: whole groups, and as many in every part.
    fn check(&self, len_elems: usize, mut part_len: impl FnMut(usize) -> usize) {
        assert!(len_elems.is_multiple_of(self.group_len), "{}: {len_elems} weights", self.name);
        let groups = len_elems / self.group_len;
        for (at, part) in self.parts.iter().enumerate() {
            assert_eq!(part_len(at), groups * part.bytes_per_group, "{}: {}", self.name, part.name);
        }
    }
}

impl<S: Scheme> Codec for Int4<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn group_len_elems(&self) -> usize {
        self.group_len
    }

    fn parts(&self) -> &'static [Part] {
        self.parts
    }

    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        self.check(src.len(), |part| dst[part].len());
        let [codes, scales, zeros @ ..] = dst else { panic!("{}: two or three parts", self.name) };
        let zeros = zeros.first_mut().map_or(&mut [][..], |zeros| zeros);
        kernel::encode::<S>(self.group_len, src, codes, scales, zeros);
    }

    fn decode(&self, src: &[&[u8]], dst: &mut [f32]) {
        self.check(dst.len(), |part| src[part].len());
        let [codes, scales, zeros @ ..] = src else { panic!("{}: two or three parts", self.name) };
        let zeros = zeros.first().map_or(&[][..], |zeros| zeros);
        kernel::decode::<S, true>(self.group_len, codes, scales, zeros, dst);
    }

    fn decode_unrounded(&self, _: f32, src: &[&[u8]], dst: &mut [f32]) {
        self.check(dst.len(), |part| src[part].len());
        let [codes, scales, zeros @ ..] = src else { panic!("{}: two or three parts", self.name) };
        let zeros = zeros.first().map_or(&[][..], |zeros| zeros);
        kernel::decode::<S, false>(self.group_len, codes, scales, zeros, dst);
    }

    fn grid<'a>(&self, src: &[&[u8]], group: usize, codes: &'a mut [u8]) -> Option<Grid<'a>> {
        let words = &src[0][group * self.parts[0].bytes_per_group..];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = words[i / 2] >> (4 * (i % 2)) & 15;
        }
        let step = S::Scale::load(&src[1][group * S::Scale::LEN..]);
        Some(Grid { codes, zero: src.get(2).map_or(SYMMETRIC_ZERO, |zeros| zeros[group]), step })
    }

    fn encode_grid(&self, grid: Grid<'_>, dst: &mut [&mut [u8]]) -> bool {
        self.check(grid.codes.len(), |part| dst[part].len());
        let zero = if S::HAS_ZERO { grid.zero } else { SYMMETRIC_ZERO };
        let mut codes = vec![0; grid.codes.len()];
        let is_held = S::Scale::round(grid.step).to_bits() == grid.step.to_bits();
        if !is_held || !grid.shifted(zero, 15, &mut codes) {
            return false;
        }
        self.put_codes(&codes, dst);
        let [_, scale, zeros @ ..] = dst else { panic!("{}: two or three parts", self.name) };
        S::Scale::store(grid.step, scale);
        if let Some(zeros) = zeros.first_mut() {
            zeros[0] = zero;
        }
        true
    }

    fn ladder(&self) -> Option<Ladder> {
        Some(Ladder { codes: 16, even: true })
    }

    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        dst[0].fill(0);
        for (i, code) in codes.iter().enumerate() {
            dst[0][i / 2] |= code << (4 * (i % 2));
        }
    }

    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        self.check(src.len(), |part| dst[part].len());
        scalar::encode(S::KIND, S::Scale::FORMAT, self.group_len, src, dst);
    }

    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]) {
        self.check(dst.len(), |part| src[part].len());
        scalar::decode(S::Scale::FORMAT, self.group_len, src, dst);
    }
}

/// Codes and scales.
const fn two_parts(names: [&'static str; 3], group_len: usize, scale: Dtype) -> [Part; 2] {
    let [codes, scales, _] = three_parts(names, group_len, scale);
    [codes, scales]
}

/// Codes, scales and zero points.
const fn three_parts(names: [&'static str; 3], group_len: usize, scale: Dtype) -> [Part; 3] {
    let scale_len = if matches!(scale, Dtype::F32) { 4 } else { 2 };
    [
        Part { name: names[0], dtype: Dtype::I32, bytes_per_group: group_len.div_ceil(WORD) * 4 },
        Part { name: names[1], dtype: scale, bytes_per_group: scale_len },
        Part { name: names[2], dtype: Dtype::U8, bytes_per_group: 1 },
    ]
}

/// The parts of compressed-tensors.
const CT: [&str; 3] = ["weight_packed", "weight_scale", "weight_zero_point"];
/// The parts of GPTQ and AWQ.
const Q: [&str; 3] = ["qweight", "scales", "qzeros"];

/// Entries for each group length: name, scheme, parts.
macro_rules! int4_table {
    ($($prefix:literal $suffix:literal: $scheme:ty, $parts:ident($names:ident, $dtype:ident);)*) => {
        int4_table!(@ $($prefix $suffix $scheme, $parts $names $dtype, "_g32" 32;)*
            $($prefix $suffix $scheme, $parts $names $dtype, "_g64" 64;)*
            $($prefix $suffix $scheme, $parts $names $dtype, "_g128" 128;)*)
    };
    (@ $($prefix:literal $suffix:literal $scheme:ty, $parts:ident $names:ident $dtype:ident, $g:literal $group:literal;)*) => {
        &[$(&Int4::<$scheme>::new(
            concat!($prefix, $g, $suffix),
            $group,
            const { &$parts($names, $group, Dtype::$dtype) },
        ),)* &made::SYMMETRIC_100, &made::ASYMMETRIC_100]
    };
}

/// Every format, and two of those with a group per row; `_f16` and `_f32` are for weights of these dtypes.
pub(super) const INT4: &[&dyn Codec] = int4_table![
    "ct_int4" "": Symmetric<Bf16>, two_parts(CT, BF16);
    "ct_int4" "_f16": Symmetric<F16>, two_parts(CT, F16);
    "ct_int4" "_f32": Symmetric<F32>, two_parts(CT, F32);
    "ct_int4_asym" "": Asymmetric<Bf16>, three_parts(CT, BF16);
    "ct_int4_asym" "_f16": Asymmetric<F16>, three_parts(CT, F16);
    "ct_int4_asym" "_f32": Asymmetric<F32>, three_parts(CT, F32);
    "gptq_int4" "": Gptq<true>, three_parts(Q, F16);
    "gptq_int4_asym" "": Gptq<false>, three_parts(Q, F16);
    "awq_int4" "": Awq, three_parts(Q, F16);
];
