//! MLX's quantization modes: what `quantization` of its config.json names, and the codecs behind it.
//!
//! Source: ml-explore/mlx `mlx/ops.cpp` (`quantization_params_from_mode`); mlx-lm `mlx_lm/utils.py`.

use super::Codec;
use crate::dtype::Dtype;

/// `mode` of a quantized layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxMode {
    /// A scale and a bias per group, in the weights' own dtype.
    Affine,
    /// 4-bit floats with a power of two per group.
    Mxfp4,
    /// 4-bit floats with an FP8 scale per group.
    Nvfp4,
    /// FP8 with a power of two per group.
    Mxfp8,
}

impl MlxMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Nvfp4, Self::Mxfp8];

    /// Its name in config.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
    }

    /// Finds a mode by name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Bits of a code where nothing is said, the only ones that a float mode has.
    pub const fn default_bits(self) -> usize {
        match self {
            Self::Affine | Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Weights in a group where nothing is said, the only ones that a float mode has.
    pub const fn default_group_len(self) -> usize {
        match self {
            Self::Affine => 64,
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// The codec for weights of type `dtype`; `None` for what MLX does not have.
    pub fn codec(self, bits: usize, group_len: usize, dtype: Dtype) -> Option<&'static dyn Codec> {
        let suffix = match dtype {
            Dtype::BF16 => "",
            Dtype::F16 => "_f16",
            Dtype::F32 => "_f32",
            _ => return None,
        };
        match self {
            Self::Affine => super::find(&format!("affine{bits}_g{group_len}{suffix}")),
            _ if (bits, group_len) == (self.default_bits(), self.default_group_len()) => {
                super::find(&format!("mlx_{}{suffix}", self.name()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_has_a_codec_for_each_dtype_and_its_group() {
        for mode in MlxMode::ALL {
            assert_eq!(MlxMode::find(mode.name()), Some(mode));
            for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
                let (bits, group_len) = (mode.default_bits(), mode.default_group_len());
                let codec = mode.codec(bits, group_len, dtype).unwrap();
                assert_eq!(codec.group_len_elems(), group_len);
                assert_eq!(codec.parts()[0].bytes_per_group * 8, bits * group_len, "{}", codec.name());
                assert!(mode.codec(bits + 3, group_len, dtype).is_none(), "{}", mode.name());
            }
        }
        assert!(MlxMode::Mxfp4.codec(4, 64, Dtype::BF16).is_none());
        assert!(MlxMode::Affine.codec(4, 64, Dtype::U8).is_none());
        assert_eq!(MlxMode::find("nvfp8"), None);
    }
}
