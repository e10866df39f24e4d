//! The same weights stored in other ways give the same results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use requant::error::Result;
use requant::plan::budget::{self, Watch};
use requant::plan::{self, Budget, Options};
use requant::source::{Source, SourceFile};
use requant_formats::Dtype;
use requant_formats::codec::fp8::{self, F8E4M3, F8E5M2, Fp8};

use crate::conversion::{convert, open};
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

/// Gives every FP8 weight one scale per row or one for all, and the config that says so.
fn scaled_by(checkpoint: &Checkpoint, per_row: bool, dtype: Dtype, section: serde_json::Value) -> Checkpoint {
    let mut other = checkpoint.clone();
    other.config["quantization_config"] = section;
    for tensor in &mut other.tensors {
        let Some(weight) = tensor.name.strip_suffix("_scale_inv") else { continue };
        let rows = checkpoint.tensors.iter().find(|tensor| tensor.name == weight).unwrap().shape[0];
        let count = if per_row { rows } else { 1 };
        tensor.name = format!("{weight}_scale");
        tensor.shape = if per_row { vec![rows, 1] } else { vec![1] };
        tensor.dtype = dtype;
        tensor.bytes.clear();
        for row in 0..count {
            let scale = 1e-3 * (1.0 + (row * 37 % 101) as f32 / 101.0);
            match dtype {
                Dtype::BF16 => tensor.bytes.extend(((scale.to_bits() >> 16) as u16).to_le_bytes()),
                _ => tensor.bytes.extend(scale.to_le_bytes()),
            }
        }
    }
    other
}

/// Decodes FP8 weights with a scale per row or one for all; `rounded` to BF16 when the scale is.
fn dequantized_by_row(checkpoint: &Checkpoint, rounded: bool) -> Checkpoint {
    let mut plain = checkpoint.clone();
    plain.config.as_object_mut().unwrap().remove("quantization_config");
    plain.tensors.retain(|tensor| !tensor.name.ends_with("_scale"));
    for tensor in plain.tensors.iter_mut().filter(|tensor| tensor.dtype == Dtype::F8_E4M3) {
        let scale_name = format!("{}_scale", tensor.name);
        let scale = checkpoint.tensors.iter().find(|tensor| tensor.name == scale_name).unwrap();
        let cols = tensor.shape[1];
        let mut bytes = Vec::new();
        for (at, &code) in tensor.bytes.iter().enumerate() {
            let row = at / cols % scale.shape[0];
            let factor = match scale.dtype {
                Dtype::BF16 => f32::from_bits(
                    u32::from(u16::from_le_bytes(scale.bytes[2 * row..][..2].try_into().unwrap())) << 16,
                ),
                _ => f32::from_le_bytes(scale.bytes[4 * row..][..4].try_into().unwrap()),
            };
            let product = F8E4M3::to_f32(code) * factor;
            let value = if rounded && scale.dtype == Dtype::BF16 {
                half::bf16::from_f32(product).to_f32()
            } else {
                product
            };
            bytes.extend(value.to_le_bytes());
        }
        (tensor.dtype, tensor.bytes) = (Dtype::F32, bytes);
    }
    plain
}

#[test]
fn fp8_with_a_scale_per_row_or_per_tensor() {
    let size = Size { hidden: 288, expert_width: 96, ..Size::default() };
    let blocks = maker::checkpoint(size, Storage::Fp8(Dtype::F8_E4M3));
    let fp8 = serde_json::json!({"quant_method": "fp8", "activation_scheme": "dynamic"});
    let compressed = |strategy: &str| {
        serde_json::json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true, "dynamic": false
            }}}
        })
    };
    for (per_row, dtype, section, rounded) in [
        (false, Dtype::F32, fp8.clone(), false),
        (true, Dtype::F32, fp8, false),
        (false, Dtype::BF16, compressed("tensor"), true),
        (true, Dtype::BF16, compressed("channel"), true),
    ] {
        let source = scaled_by(&blocks, per_row, dtype, section);
        let expected = digests(&dequantized_by_row(&source, rounded), "f32");
        assert_eq!(digests(&source, "f32"), expected, "per row {per_row}, {dtype}");

        // Such scales are no blocks that could be carried over as those of a block format.
        let directory = tempfile::tempdir().unwrap();
        source.write(directory.path());
        let opened = open(directory.path()).unwrap();
        let blueprint = |format| plan::blueprint(&opened, format, &Options::default());
        let error = blueprint("compressed-tensors-fp8-block").err().unwrap().to_string();
        assert!(error.contains("FP8 blocks") && error.contains("none"), "{error}");
        let base = blueprint("compressed-tensors-w4a16-g32").unwrap();
        let (budget, stop) = (Budget::Bytes(2 * base.len_bytes()), AtomicBool::new(false));
        let watch = Watch { begin: &|_| {}, advance: &|_| {} };
        let format = "compressed-tensors-w4a16-g32";
        let fitted = budget::fit(&opened, format, &Options::default(), budget, 2, &watch, &stop).unwrap();
        assert!(fitted.blueprint.tensors.iter().all(|tensor| tensor.type_name != "F8_E4M3"));
    }
}

#[test]
fn a_scale_of_another_shape_is_named() {
    let mut source = scaled_by(
        &maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3)),
        true,
        Dtype::F32,
        serde_json::json!({"quant_method": "fp8"}),
    );
    let name = "model.layers.0.self_attn.o_proj.weight_scale";
    let scale = source.tensor(name);
    scale.shape = vec![2, 128];
    let directory = tempfile::tempdir().unwrap();
    source.write(directory.path());
    let error = Box::new(requant::source::LocalDirectory::open(directory.path()).unwrap());
    let error = requant::checkpoint::Checkpoint::open(error).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("[2, 128]") && error.contains("[256, 1]"), "{error}");
}

#[test]
fn an_unknown_method_is_named_with_the_known_ones() {
    let mut source = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    for (section, word) in [
        (serde_json::json!({"quant_method": "bitsandbytes"}), "compressed-tensors"),
        (serde_json::json!({"quant_method": "gptq", "bits": 4, "desc_act": true}), "act-order"),
        (serde_json::json!({"quant_method": "gptq", "bits": 3}), "4 bits"),
        (serde_json::json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemm"),
        (
            serde_json::json!({"quant_method": "compressed-tensors", "format": "int-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}),
            "pack-quantized",
        ),
    ] {
        source.config["quantization_config"] = section;
        let directory = tempfile::tempdir().unwrap();
        source.write(directory.path());
        let local = Box::new(requant::source::LocalDirectory::open(directory.path()).unwrap());
        let error = requant::checkpoint::Checkpoint::open(local).err().unwrap().to_string();
        assert!(error.contains("quantization_config") && error.contains(word), "{error}");
    }
}

/// A source that does everything its own way.
struct Peculiar(Vec<SourceFile>);

impl Source for Peculiar {
    fn location(&self) -> String {
        "here".into()
    }

    fn model_name(&self) -> String {
        "its own".into()
    }

    fn files(&self) -> &[SourceFile] {
        &self.0
    }

    fn read_at(&self, _: usize, _: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(7);
        Ok(())
    }

    fn find(&self, _: &str) -> Option<usize> {
        Some(41)
    }

    fn read_small(&self, _: &str) -> Result<Option<Vec<u8>>> {
        Ok(Some(vec![42]))
    }

    fn is_at_hand(&self) -> bool {
        false
    }

    fn sample(&self, on: bool) -> bool {
        !on
    }

    fn reread(&self, _: usize) -> Result<bool> {
        Ok(true)
    }

    fn unverified_bytes(&self, files: &[usize]) -> u64 {
        43 + files.len() as u64
    }

    fn verify(&self, _: &[usize], on_bytes: &(dyn Fn(u64) + Sync), _: &AtomicBool) -> Result<()> {
        on_bytes(44);
        Ok(())
    }
}

#[test]
fn a_shared_source_does_everything_as_the_source_itself() {
    let shared: Box<dyn Source> = Box::new(Arc::new(Peculiar(Vec::new())));
    assert_eq!((shared.location().as_str(), shared.model_name().as_str()), ("here", "its own"));
    let mut buf = [0; 2];
    shared.read_at(0, 0, &mut buf).unwrap();
    assert_eq!((buf, shared.files().len(), shared.find("x")), ([7, 7], 0, Some(41)));
    assert_eq!(shared.read_small("x").unwrap(), Some(vec![42]));
    assert!(!shared.is_at_hand() && !shared.sample(true) && shared.sample(false));
    assert!(shared.reread(0).unwrap() && shared.supply().is_none());
    assert_eq!(shared.unverified_bytes(&[1, 2]), 45);
    let told = AtomicU64::new(0);
    let on_bytes = |bytes| {
        told.fetch_add(bytes, Ordering::Relaxed);
    };
    shared.verify(&[], &on_bytes, &AtomicBool::new(false)).unwrap();
    assert_eq!(told.into_inner(), 44);
}
