//! Containers against the reference writers, and against random damage.
//!
//! Belongs here: golden files of MLX, ggml and llama-gguf-split (`data/README.md`), round
//! trips, mutations, and the comparison with the `safetensors` crate. One malformed file per
//! error is in the unit tests beside each reader.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use requant_formats::Dtype;
use requant_formats::container::{gguf, safetensors};

const ALL_TYPES_GGUF: &[u8] = include_bytes!("data/all_types.gguf");
const MLX_SMALL: &[u8] = include_bytes!("data/mlx_small.safetensors");
const MLX_NO_METADATA: &[u8] = include_bytes!("data/mlx_no_metadata.safetensors");

fn read_gguf(bytes: &[u8]) -> requant_formats::Result<gguf::Gguf> {
    gguf::read(&mut &bytes[..], bytes.len() as u64)
}

fn read_safetensors(bytes: &[u8]) -> requant_formats::Result<safetensors::Header> {
    safetensors::read_header(&mut &bytes[..], bytes.len() as u64)
}

fn specs(gguf: &gguf::Gguf) -> Vec<gguf::TensorSpec> {
    let spec = |tensor: &gguf::TensorInfo| gguf::TensorSpec {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        ggml_type: tensor.ggml_type,
    };
    gguf.tensors.iter().map(spec).collect()
}

fn mlx_spec(name: &str, dtype: Dtype, shape: &[usize]) -> safetensors::TensorSpec {
    safetensors::TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

#[test]
fn mlx_header_equals_that_of_mlx() {
    let tensors = [
        mlx_spec("model.norm.weight", Dtype::BF16, &[3]),
        mlx_spec("lm_head.weight", Dtype::U32, &[2, 2]),
        mlx_spec("A", Dtype::F32, &[]),
        mlx_spec("odd \"name\"/\u{fc}\n\u{1}", Dtype::U8, &[3]),
        mlx_spec("zz.scales", Dtype::F16, &[1, 1]),
    ];
    let metadata = BTreeMap::from([("format".into(), "mlx".into()), ("a".into(), "b\\c".into())]);
    let (header, bytes) = safetensors::mlx::write_header(&tensors, &metadata).unwrap();
    assert_eq!(bytes, MLX_SMALL[..bytes.len()]);
    assert_eq!(read_safetensors(MLX_SMALL).unwrap(), header);

    let (header, bytes) =
        safetensors::mlx::write_header(&[mlx_spec("x", Dtype::F32, &[1])], &BTreeMap::new()).unwrap();
    assert_eq!(bytes, MLX_NO_METADATA[..bytes.len()]);
    assert_eq!(read_safetensors(MLX_NO_METADATA).unwrap(), header);
}

/// FNV-1a digests of the headers MLX wrote for so many tensors, as `data/make.py` prints
/// them: around each growth step of its hash map.
#[test]
fn mlx_file_order_equals_that_of_mlx_at_every_growth_step() {
    const DIGESTS: &[(usize, u64)] = &[
        (1, 0xcc0f_cbcd_ce8f_2b7e),
        (13, 0x87d0_e136_94e1_24f8),
        (14, 0x0fa6_9d7c_1f9a_f77d),
        (29, 0x6ba3_9495_9566_8413),
        (30, 0xf7f3_1dc2_7989_8471),
        (60, 0x9b6d_2b73_f504_b9f2),
        (128, 0x69f9_18cc_199d_7f4c),
        (541, 0xa840_a220_e8a1_e80f),
        (542, 0xf83e_45f3_9aae_dfe5),
        (1110, 0x0d93_5871_ba20_b43d),
        (2358, 0x5669_5808_f786_9a7c),
        (5088, 0xa2b7_520b_d244_c46f),
        (10274, 0x8cd0_55b4_0b42_4b39),
    ];
    let metadata = BTreeMap::from([("format".into(), "mlx".into())]);
    for &(count, expected) in DIGESTS {
        let tensors: Vec<_> = (0..count)
            .map(|index| format!("model.layers.{}.mlp.switch_mlp.part{}.weight", index / 7, index % 7))
            .map(|name| mlx_spec(&name, Dtype::U8, &[1]))
            .collect();
        let (_, bytes) = safetensors::mlx::write_header(&tensors, &metadata).unwrap();
        let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(digest, expected, "{count} tensors");
    }
}

#[test]
fn gguf_headers_of_ggml_are_read_and_written_back_unchanged() {
    let files: [&[u8]; 4] = [
        ALL_TYPES_GGUF,
        include_bytes!("data/parts-00001-of-00003.gguf"),
        include_bytes!("data/parts-00002-of-00003.gguf"),
        include_bytes!("data/parts-00003-of-00003.gguf"),
    ];
    for bytes in files {
        let read = read_gguf(bytes).unwrap();
        let (written, header) = gguf::write_header(read.metadata.clone(), specs(&read)).unwrap();
        assert_eq!(header, bytes[..header.len()]);
        assert_eq!(written, read);
        assert_eq!(read.file_len_bytes(), bytes.len() as u64);
    }
    let parts: Vec<_> = files[1..].iter().map(|bytes| read_gguf(bytes).unwrap()).collect();
    gguf::split::check(&parts).unwrap();
}

#[test]
fn gguf_values_of_every_type_are_read() {
    use gguf::{Array, GgmlType, Value};
    let gguf = read_gguf(ALL_TYPES_GGUF).unwrap();
    let strings = ["<s>", "", "\u{120}a"].map(String::from).to_vec();
    let expected = [
        ("general.architecture", Value::from("deepseek2")),
        ("test.u8", Value::U8(255)),
        ("test.i8", Value::I8(-128)),
        ("test.u16", Value::U16(65535)),
        ("test.i16", Value::I16(-32768)),
        ("test.u32", Value::U32(u32::MAX)),
        ("test.i32", Value::I32(i32::MIN)),
        ("test.f32", Value::F32(1e-6)),
        ("test.bool", Value::Bool(true)),
        ("test.string", Value::from("caf\u{e9} \u{2581}")),
        ("test.u64", Value::U64(u64::MAX)),
        ("test.i64", Value::I64(i64::MIN)),
        ("test.f64", Value::F64(0.1)),
        ("test.strings", Value::Array(Array::String(strings))),
        ("test.i32s", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("test.f32s", Value::Array(Array::F32(vec![0.5, -1.0]))),
        ("test.bools", Value::Array(Array::Bool(vec![true, false]))),
        ("test.u8s", Value::Array(Array::U8(vec![0, 255]))),
    ];
    for (key, value) in &expected {
        assert_eq!(gguf.metadata.get(key), Some(value), "{key}");
    }
    let tensors: Vec<_> = gguf
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), tensor.ggml_type, tensor.len_bytes))
        .collect();
    assert_eq!(
        tensors,
        [
            ("token_embd.weight", &[32, 3][..], GgmlType::F32, 384),
            ("blk.0.attn_q.weight", &[32, 2], GgmlType::Q4_0, 36),
            ("blk.0.attn_k.weight", &[256], GgmlType::Q4_K, 144),
            ("blk.0.ffn_down_exps.weight", &[32, 3, 2], GgmlType::Q8_0, 204),
            ("blk.0.exp_probs_b.bias", &[5], GgmlType::F32, 20),
            ("output.weight", &[256], GgmlType::Q6_K, 210),
            ("blk.0.one", &[2, 4], GgmlType::F16, 16),
        ]
    );
}

/// Tensors that meet, cross and exceed a limit of 1 MB; the headers are llama-gguf-split's.
#[test]
fn split_set_equals_that_of_llama_gguf_split() {
    let headers: [&[u8]; 6] = [
        include_bytes!("data/sizes-00001-of-00006.gguf.header"),
        include_bytes!("data/sizes-00002-of-00006.gguf.header"),
        include_bytes!("data/sizes-00003-of-00006.gguf.header"),
        include_bytes!("data/sizes-00004-of-00006.gguf.header"),
        include_bytes!("data/sizes-00005-of-00006.gguf.header"),
        include_bytes!("data/sizes-00006-of-00006.gguf.header"),
    ];
    let file_lens_bytes = [1_000_288, 1_000_192, 1_200_160, 1_000_160, 288, 1_000_096];
    let mut metadata = gguf::Metadata::new();
    metadata.set("general.architecture", "deepseek2");
    metadata.set("general.name", "sizes");
    let lens = [100_000, 150_000, 1, 249_992, 300_000, 250_000, 7, 9, 249_984];
    let spec = |(index, len)| gguf::TensorSpec {
        name: format!("t{index}"),
        shape: vec![len],
        ggml_type: gguf::GgmlType::F32,
    };
    let tensors: Vec<_> = lens.into_iter().enumerate().map(spec).collect();

    let max_size_bytes = gguf::split::parse_max_size("1M").unwrap();
    let parts = gguf::split::plan(metadata, tensors, max_size_bytes).unwrap();
    assert_eq!(parts.len(), headers.len());
    for ((part, expected), file_len_bytes) in parts.into_iter().zip(headers).zip(file_lens_bytes) {
        let (file, bytes) = gguf::write_header(part.metadata, part.tensors).unwrap();
        assert_eq!(bytes, expected);
        assert_eq!(file.file_len_bytes(), file_len_bytes);
    }
}

fn any_value() -> impl Strategy<Value = gguf::Value> {
    prop_oneof![
        any::<u8>().prop_map(gguf::Value::from),
        any::<i64>().prop_map(gguf::Value::from),
        any::<bool>().prop_map(gguf::Value::from),
        (-1e6f32..1e6).prop_map(gguf::Value::from),
        ".{0,12}".prop_map(gguf::Value::from),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(gguf::Value::from),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(gguf::Value::from),
        prop::collection::vec(".{0,5}", 0..5).prop_map(gguf::Value::from),
    ]
}

fn any_gguf_tensors() -> impl Strategy<Value = Vec<gguf::TensorSpec>> {
    let types: Vec<_> = gguf::GgmlType::all().collect();
    let shape = prop::collection::vec(1u64..5, 1..=4);
    let tensor = (prop::sample::select(types), shape).prop_map(|(ggml_type, mut shape)| {
        shape[0] *= ggml_type.block_len_elems();
        (ggml_type, shape)
    });
    prop::collection::btree_map(".{1,15}", tensor, 0..8).prop_map(|tensors| {
        let spec = |(name, (ggml_type, shape))| gguf::TensorSpec { name, shape, ggml_type };
        tensors.into_iter().map(spec).collect()
    })
}

fn any_mlx_tensors() -> impl Strategy<Value = Vec<safetensors::TensorSpec>> {
    let dtypes = vec![Dtype::F32, Dtype::BF16, Dtype::U32, Dtype::U8, Dtype::F8_E4M3];
    let tensor = (prop::sample::select(dtypes), prop::collection::vec(1usize..6, 0..4));
    prop::collection::btree_map(".{0,15}", tensor, 0..40).prop_map(|tensors| {
        tensors.into_iter().map(|(name, (dtype, shape))| mlx_spec(&name, dtype, &shape)).collect()
    })
}

/// Overwrites, inserts or removes a few bytes near the places given.
fn damage(bytes: &mut Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) {
    for (place, kind, value) in edits {
        if bytes.is_empty() {
            return;
        }
        let place = place.index(bytes.len());
        match kind % 4 {
            0 | 1 => bytes[place] = *value,
            2 => bytes.insert(place, *value),
            _ => drop(bytes.remove(place)),
        }
    }
}

/// What the `safetensors` crate thinks of the file.
fn oracle_accepts(bytes: &[u8]) -> bool {
    ::safetensors::SafeTensors::deserialize(bytes).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn gguf_round_trips(
        entries in prop::collection::btree_map("[a-z.]{1,12}", any_value(), 0..8),
        tensors in any_gguf_tensors(),
    ) {
        let mut metadata = gguf::Metadata::new();
        for (key, value) in entries {
            metadata.set(key, value);
        }
        let (written, mut bytes) = gguf::write_header(metadata, tensors).unwrap();
        bytes.resize(written.file_len_bytes() as usize, 0);
        let read = read_gguf(&bytes).unwrap();
        prop_assert_eq!(&read.metadata, &written.metadata);
        prop_assert_eq!(read.data_offset_bytes, written.data_offset_bytes);
        for (ours, theirs) in read.tensors.iter().zip(&written.tensors) {
            prop_assert_eq!(ours.offset_bytes, theirs.offset_bytes);
            prop_assert_eq!(ours.len_bytes, theirs.len_bytes);
            prop_assert_eq!(ours.len_elems(), theirs.len_elems());
        }
        // What was read writes the same bytes again.
        let (_, again) = gguf::write_header(read.metadata.clone(), specs(&read)).unwrap();
        prop_assert_eq!(&again[..], &bytes[..again.len()]);
    }

    #[test]
    fn safetensors_round_trips_and_the_crate_reads_it(tensors in any_mlx_tensors()) {
        let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
        let (written, mut bytes) = safetensors::mlx::write_header(&tensors, &metadata).unwrap();
        bytes.resize(written.file_len_bytes() as usize, 0);
        prop_assert_eq!(read_safetensors(&bytes).unwrap(), written);
        prop_assert!(oracle_accepts(&bytes));
    }

    #[test]
    fn damaged_gguf_never_panics(
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 1..6),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = ALL_TYPES_GGUF.to_vec();
        damage(&mut bytes, &edits);
        if cut {
            bytes.truncate(len.index(bytes.len()));
        }
        if let Ok(gguf) = read_gguf(&bytes) {
            for tensor in &gguf.tensors {
                prop_assert!(gguf.data_offset_bytes + tensor.offset_bytes + tensor.len_bytes <= bytes.len() as u64);
            }
            let writable = gguf.tensors.iter().all(|tensor| tensor.len_elems() > 0);
            prop_assert_eq!(gguf::write_header(gguf.metadata.clone(), specs(&gguf)).is_ok(), writable);
        }
    }

    #[test]
    fn damaged_safetensors_never_panics_and_agrees_with_the_crate(
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 1..6),
    ) {
        let mut bytes = MLX_SMALL.to_vec();
        damage(&mut bytes, &edits);
        let ours = read_safetensors(&bytes);
        if let Ok(header) = &ours {
            prop_assert_eq!(header.file_len_bytes(), bytes.len() as u64);
        }
        // We refuse some that it accepts: sub-byte types, duplicate names.
        prop_assert!(ours.is_err() || oracle_accepts(&bytes));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), claimed_len in any::<u64>()) {
        let _ = gguf::read(&mut &bytes[..], claimed_len);
        let _ = safetensors::read_header(&mut &bytes[..], claimed_len);
        let mut with_magic = b"GGUF\x03\0\0\0".to_vec();
        with_magic.extend(&bytes);
        let _ = gguf::read(&mut &with_magic[..], claimed_len);
    }
}
