//! MLX's affine quantization: groups of a row as unsigned integers with a scale and a bias.
//!
//! Decoded value `q * scale + bias`, `q` in `0 ..= n` with `n = 2^bits - 1`. Encoding one
//! group, all in f32:
//!
//! ```text
//! lo, hi = smallest and largest weight, NaNs ignored
//! scale  = max((hi - lo) / n, 1e-7), negated unless |lo| > |hi|
//! edge   = lo when |lo| > |hi|, else hi
//! q0     = rint(edge / scale)
//! scale, bias = q0 == 0 ? (scale, 0) : (edge / q0, edge)
//! q      = clamp(rint((w - bias) / scale), 0, n), NaN gives 0
//! ```
//!
//! `rint` rounds ties to even. The codes follow from the f32 scale and bias; only then are
//! these two rounded to the weights' own dtype, BF16, F16 or F32. So the end of the range that is
//! larger in magnitude is met exactly, and zero is a code or nearly one.
//!
//! Byte layout, three parts. `weight`: the codes of a group as one little-endian bit stream,
//! code `i` at bit `i * bits`, `group * bits / 8` bytes, in tensors of U32 words. `scales`,
//! `biases`: one number per group. The input must already be rounded to the scales' dtype.
//!
//! Decoding rounds twice, as `mx.dequantize` does on the CPU: the product to the scales' dtype,
//! then the sum. Every NaN decodes to the same quiet NaN.
//!
//! Source: ml-explore/mlx `mlx/backend/cpu/quantized.cpp` (`quantize`) and `mlx/ops.cpp`
//! (`affine_dequantize`), checked against mlx 0.32.4 on x86-64 bit by bit, including groups with
//! infinities and NaNs.

use super::grid::{exact_bf16, exact_f16};
use super::{Codec, Grid, Ladder, Part};
use crate::dtype::Dtype;

mod kernel;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;

/// Smallest scale before the edge is made exact.
const EPSILON: f32 = 1e-7;

/// Three entries, one per scale dtype, for each `bits group`.
macro_rules! affine_table {
    ($($bits:literal $group:literal),*) => {
        &[$(
            &Affine::<$bits, $group> { name: concat!("affine", $bits, "_g", $group), scale: Scale::Bf16 },
            &Affine::<$bits, $group> { name: concat!("affine", $bits, "_g", $group, "_f16"), scale: Scale::F16 },
            &Affine::<$bits, $group> { name: concat!("affine", $bits, "_g", $group, "_f32"), scale: Scale::F32 },
        )*]
    };
}

/// Every combination that MLX can quantize to: `affine4_g64` has BF16 scales, `affine4_g64_f16`
/// and `affine4_g64_f32` have those of the other dtypes.
pub(super) const AFFINE: &[&dyn Codec] = affine_table![
    2 32, 2 64, 2 128, 3 32, 3 64, 3 128, 4 32, 4 64, 4 128,
    5 32, 5 64, 5 128, 6 32, 6 64, 6 128, 8 32, 8 64, 8 128
];

/// Number formats of scales and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Bf16,
    F16,
    F32,
}

impl Scale {
    fn len_bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// One combination of code width, group length and scale dtype.
struct Affine<const BITS: usize, const GROUP: usize> {
    name: &'static str,
    scale: Scale,
}

impl<const BITS: usize, const GROUP: usize> Affine<BITS, GROUP> {
    const BF16_PARTS: &[Part] = &Self::parts_with(Dtype::BF16);
    const F16_PARTS: &[Part] = &Self::parts_with(Dtype::F16);
    const F32_PARTS: &[Part] = &Self::parts_with(Dtype::F32);

    const fn parts_with(dtype: Dtype) -> [Part; 3] {
        let scale_len = if matches!(dtype, Dtype::F32) { 4 } else { 2 };
        [
            Part { name: "weight", dtype: Dtype::U32, bytes_per_group: GROUP * BITS / 8 },
            Part { name: "scales", dtype, bytes_per_group: scale_len },
            Part { name: "biases", dtype, bytes_per_group: scale_len },
        ]
    }

    /// Checks the caller's slices: whole groups, and as many in every part.
    fn check(&self, len_elems: usize, parts: [usize; 3]) {
        assert!(len_elems.is_multiple_of(GROUP), "{}: {len_elems} weights", self.name);
        for (part, len_bytes) in self.parts().iter().zip(parts) {
            assert_eq!(len_bytes, len_elems / GROUP * part.bytes_per_group, "{}: {}", self.name, part.name);
        }
    }
}

impl<const BITS: usize, const GROUP: usize> Codec for Affine<BITS, GROUP> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn group_len_elems(&self) -> usize {
        GROUP
    }

    fn parts(&self) -> &'static [Part] {
        match self.scale {
            Scale::Bf16 => Self::BF16_PARTS,
            Scale::F16 => Self::F16_PARTS,
            Scale::F32 => Self::F32_PARTS,
        }
    }

    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        let [weight, scales, biases] = dst else { panic!("{}: three parts", self.name) };
        self.check(src.len(), [weight.len(), scales.len(), biases.len()]);
        kernel::encode::<BITS, GROUP>(self.scale, src, [weight, scales, biases]);
    }

    fn decode(&self, src: &[&[u8]], dst: &mut [f32]) {
        let &[weight, scales, biases] = src else { panic!("{}: three parts", self.name) };
        self.check(dst.len(), [weight.len(), scales.len(), biases.len()]);
        kernel::decode::<BITS, GROUP>(self.scale, [weight, scales, biases], dst);
    }

    fn encode_grid(&self, grid: Grid<'_>, dst: &mut [&mut [u8]]) -> bool {
        let [weight, scales, biases] = dst else { panic!("{}: three parts", self.name) };
        self.check(grid.codes.len(), [weight.len(), scales.len(), biases.len()]);
        let is_held = |value: f32| match self.scale {
            Scale::Bf16 => exact_bf16(value).is_some(),
            Scale::F16 => exact_f16(value).is_some(),
            Scale::F32 => true,
        };
        let bias = grid.lowest();
        if BITS < 4 || !is_held(grid.step) || !is_held(bias) {
            return false;
        }
        pack::pack::<BITS>(grid.codes, weight);
        scalar::store(self.scale, grid.step, scales);
        scalar::store(self.scale, bias, biases);
        true
    }

    fn ladder(&self) -> Option<Ladder> {
        // Products and sums that are rounded to 16 bits make steps of uneven length.
        (BITS < 8).then_some(Ladder { codes: 1 << BITS, even: self.scale == Scale::F32 })
    }

    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        pack::pack::<BITS>(codes, dst[0]);
    }

    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        let [weight, scales, biases] = dst else { panic!("{}: three parts", self.name) };
        self.check(src.len(), [weight.len(), scales.len(), biases.len()]);
        scalar::encode(BITS, GROUP, self.scale, src, [weight, scales, biases]);
    }

    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]) {
        let &[weight, scales, biases] = src else { panic!("{}: three parts", self.name) };
        self.check(dst.len(), [weight.len(), scales.len(), biases.len()]);
        scalar::decode(BITS, GROUP, self.scale, [weight, scales, biases], dst);
    }
}
