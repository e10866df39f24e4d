//! The same weights stored in other ways give the same results.

use requant_formats::Dtype;
use requant_formats::codec::fp8::{self, F8E4M3, F8E5M2, Fp8};

use crate::conversion::convert;
use crate::maker::{self, Checkpoint, Size, Storage};

/// Tensor digests of a conversion to `format`.
fn digests(checkpoint: &Checkpoint, format: &str) -> Vec<(String, String)> {
    let source = tempfile::tempdir().unwrap();
    checkpoint.write(source.path());
    maker::copy_tokenizer(source.path());
    let output = tempfile::tempdir().unwrap();
    let outcome = convert(source.path(), format, 2, &output.path().join("m")).unwrap();
    outcome.manifest.tensors.into_iter().map(|tensor| (tensor.name, tensor.sha256)).collect()
}

/// Decodes every FP8 weight by the definition and stores it as F32.
fn dequantized(checkpoint: &Checkpoint) -> Checkpoint {
    let mut plain = checkpoint.clone();
    plain.config.as_object_mut().unwrap().remove("quantization_config");
    plain.tensors.retain(|tensor| !tensor.name.ends_with("_scale_inv"));
    for tensor in &mut plain.tensors {
        let decode = match tensor.dtype {
            Dtype::F8_E4M3 => F8E4M3::to_f32,
            Dtype::F8_E5M2 => F8E5M2::to_f32,
            _ => continue,
        };
        let scale_name = format!("{}_scale_inv", tensor.name);
        let scale = checkpoint.tensors.iter().find(|tensor| tensor.name == scale_name).unwrap();
        let cols = tensor.shape[1];
        let mut bytes = Vec::new();
        for (at, &code) in tensor.bytes.iter().enumerate() {
            let block = at / cols / 128 * scale.shape[1] + at % cols / 128;
            let factor = match scale.dtype {
                Dtype::F32 => f32::from_le_bytes(scale.bytes[4 * block..][..4].try_into().unwrap()),
                _ => fp8::e8m0_to_f32(scale.bytes[block]),
            };
            bytes.extend((decode(code) * factor).to_le_bytes());
        }
        (tensor.dtype, tensor.bytes) = (Dtype::F32, bytes);
    }
    plain
}

const FP8: [Storage; 3] =
    [Storage::Fp8(Dtype::F8_E4M3), Storage::Fp8(Dtype::F8_E5M2), Storage::Fp8Exponents(Dtype::F8_E4M3)];

#[test]
fn fp8_equals_its_own_f32_copy() {
    // Ragged blocks: no dimension of an expert is a multiple of 128.
    let size = Size { hidden: 288, expert_width: 96, ..Size::default() };
    for storage in FP8 {
        let checkpoint = maker::checkpoint(size, storage);
        for format in ["f32", "q4_0", "mlx-4bit-g32"] {
            assert_eq!(digests(&checkpoint, format), digests(&dequantized(&checkpoint), format), "{format}");
        }
    }
}

#[test]
fn shards_and_order_do_not_matter() {
    let checkpoint = maker::checkpoint(Size::default(), FP8[0]);
    let expected = digests(&checkpoint, "q4_k_m");
    for shards in [2, 3, 11] {
        let mut spread = checkpoint.clone();
        spread.spread(shards);
        assert_eq!(digests(&spread, "q4_k_m"), expected);
    }
    let mut reversed = checkpoint.clone();
    reversed.tensors.reverse();
    reversed.indexed = false;
    assert_eq!(digests(&reversed, "q4_k_m"), expected);
}

#[test]
fn half_precision_copies_convert() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let checkpoint = maker::checkpoint(Size::default(), Storage::Plain(dtype));
        for format in ["bf16", "q6_k", "mlx-8bit"] {
            assert!(!digests(&checkpoint, format).is_empty());
        }
    }
}

#[test]
fn a_copy_without_the_prediction_layer_gives_the_same_tensors() {
    let checkpoint = maker::checkpoint(Size::default(), FP8[0]);
    let mut without = checkpoint.clone();
    without.tensors.retain(|tensor| !tensor.name.starts_with("model.layers.2."));
    assert_eq!(digests(&without, "q4_0"), digests(&checkpoint, "q4_0"));
}
