//! What every layout must hold to: the suite iterates `LAYOUTS` with their example codecs. Exact bytes are
//! compared with what the reference packages store, where `fixtures/goldens/layouts` has them.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use proptest::prelude::*;
use requant_formats::codec;
use requant_formats::layout::{self, LAYOUTS, Layout, Matrix, StoredTensor};
use requant_formats::{CODECS, Codec};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Numbers with a fixed seed: splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

fn find(name: &str) -> &'static dyn Codec {
    codec::find(name).unwrap_or_else(|| panic!("no codec {name}"))
}

fn find_layout(name: &str) -> &'static dyn Layout {
    layout::find(name).unwrap_or_else(|| panic!("no layout {name}"))
}

/// Encoded rows of random weights, one buffer per part.
fn encoded(matrix: Matrix<'_>, random: &mut Random) -> Vec<Vec<u8>> {
    let weights: Vec<f32> = (0..matrix.rows() * matrix.cols())
        .map(|_| {
            let weight = (random.bits() >> 40) as f32 / f32::exp2(24.0) - 0.4;
            f32::from_bits(weight.to_bits() & 0xffff_0000)
        })
        .collect();
    let mut parts: Vec<Vec<u8>> =
        (0..matrix.codec.parts().len()).map(|part| vec![0; matrix.rows() * matrix.row_bytes(part)]).collect();
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    matrix.codec.encode_under(matrix.tensor_scale, &weights, &mut slices);
    parts
}

/// The rows `rows` of every part.
fn band<'a>(matrix: Matrix<'_>, parts: &'a [Vec<u8>], rows: &Range<usize>) -> Vec<&'a [u8]> {
    let slice = |(at, part): (usize, &'a Vec<u8>)| {
        &part[rows.start * matrix.row_bytes(at)..rows.end * matrix.row_bytes(at)]
    };
    parts.iter().enumerate().map(slice).collect()
}

/// The pieces that hold `rows` of every tensor, joined.
fn gathered(
    layout: &dyn Layout,
    matrix: Matrix<'_>,
    tensors: &[Vec<u8>],
    rows: &Range<usize>,
) -> Vec<Vec<u8>> {
    let pieces = |(at, tensor): (usize, &Vec<u8>)| {
        let runs = layout.runs(matrix, at, rows.clone());
        runs.pieces().flat_map(|(start, buffer)| tensor[start as usize..][..buffer.len()].to_vec()).collect()
    };
    tensors.iter().enumerate().map(pieces).collect()
}

/// Packs and unpacks a matrix in the bands that end at `cuts`.
fn check(layout: &dyn Layout, matrix: Matrix<'_>, cuts: &[usize], random: &mut Random) {
    let name = format!("{} of {} {:?} cut at {cuts:?}", layout.name(), matrix.codec.name(), matrix.shape);
    let stored = layout.tensors(matrix).unwrap_or_else(|error| panic!("{name}: {error}"));
    let parts = encoded(matrix, random);
    let whole = layout.pack(matrix, 0..matrix.rows(), &band(matrix, &parts, &(0..matrix.rows())));
    let lengths = |tensors: &[StoredTensor]| tensors.iter().map(StoredTensor::len_bytes).collect::<Vec<_>>();
    let whole: Vec<Vec<u8>> = whole.into_iter().map(Cow::into_owned).collect();

    // Bands, written where `runs` says, cover every byte once and make the same tensors.
    let mut written: Vec<Vec<u8>> = lengths(&stored).iter().map(|&len| vec![0; len as usize]).collect();
    let mut times: Vec<Vec<u8>> = written.clone();
    let mut start = 0;
    for &end in cuts.iter().chain([&matrix.rows()]) {
        let rows = start..end;
        let packed = layout.pack(matrix, rows.clone(), &band(matrix, &parts, &rows));
        assert_eq!(packed.len(), stored.len(), "{name}");
        for (at, bytes) in packed.iter().enumerate() {
            let runs = layout.runs(matrix, at, rows.clone());
            assert_eq!(bytes.len(), runs.len_bytes(), "{name}: tensor {at}, rows {rows:?}");
            for (to, from) in runs.pieces() {
                let to = to as usize..to as usize + from.len();
                written[at][to.clone()].copy_from_slice(&bytes[from]);
                times[at][to].iter_mut().for_each(|times| *times += 1);
            }
        }
        start = end;
    }
    assert!(times.iter().flatten().all(|&times| times == 1), "{name}: bytes written other than once");
    // The whole matrix as one band: its runs put it in order too.
    let whole_runs = gathered(layout, matrix, &written, &(0..matrix.rows()));
    assert_eq!(whole_runs, whole, "{name}");

    // And back, band by band.
    let mut start = 0;
    for &end in cuts.iter().chain([&matrix.rows()]) {
        let rows = start..end;
        let tensors = gathered(layout, matrix, &written, &rows);
        let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
        let expected = band(matrix, &parts, &rows);
        let mut unpacked: Vec<Vec<u8>> = expected.iter().map(|part| vec![0xa5; part.len()]).collect();
        let mut slices: Vec<&mut [u8]> = unpacked.iter_mut().map(Vec::as_mut_slice).collect();
        layout.unpack(matrix, rows, &tensors, &mut slices).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(unpacked, expected, "{name}");
        start = end;
    }
}

#[test]
fn names_are_found_and_example_codecs_exist() {
    for layout in LAYOUTS {
        assert_eq!(layout::find(layout.name()).unwrap().name(), layout.name());
        assert_eq!(LAYOUTS.iter().filter(|other| other.name() == layout.name()).count(), 1);
        assert!(!layout.example_codecs().is_empty());
        for name in layout.example_codecs() {
            assert_eq!(find(name).name(), *name);
        }
    }
    assert!(layout::find("Gptq").is_none());
}

#[test]
fn shapes_around_every_tile_and_all_bands() {
    let mut random = Random(3);
    for layout in LAYOUTS {
        for name in layout.example_codecs() {
            let codec = find(name);
            for (rows, groups) in [(8, 1), (16, 2), (128, 4), (136, 5), (264, 3)] {
                let shape = [rows, groups * codec.group_len_elems()];
                if name.contains("channel") && groups > 1 {
                    continue;
                }
                let tensor_scale = codec.tensor_scale(0.6).unwrap_or(1.0);
                let matrix = Matrix { shape: &shape, codec, tensor_scale };
                check(*layout, matrix, &[], &mut random);
                let cuts: Vec<usize> = (8..rows).step_by(8).collect();
                check(*layout, matrix, &cuts, &mut random);
            }
        }
    }
}

/// A shape of `strips` of eight rows, of as many groups, or of one where that is all that a row has.
fn whole_groups(codec: &dyn Codec, strips: usize, groups: usize) -> [usize; 2] {
    let groups = if codec.name().contains("channel") { 1 } else { groups };
    [strips * 8, groups * codec.group_len_elems()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape_in_any_bands(
        seed in any::<u64>(),
        strips in 1usize..24,
        groups in 1usize..7,
        cuts in prop::collection::btree_set(1usize..24, 0..5),
    ) {
        let mut random = Random(seed);
        for layout in LAYOUTS {
            for name in layout.example_codecs() {
                let codec = find(name);
                let shape = whole_groups(codec, strips, groups);
                let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(0.6).unwrap_or(1.0) };
                let cuts: Vec<usize> = cuts.iter().map(|cut| cut * 8).filter(|&cut| cut < shape[0]).collect();
                check(*layout, matrix, &cuts, &mut random);
            }
        }
    }
}

/// Tensors that say what the others say too: how the matrix is cut, what its scales are multiplied with.
const TOLD_TWICE: [&str; 3] = ["weight_shape", "g_idx", "weight_global_scale"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any codec in any layout with any shape: a refusal, or tensors in which the matrix is stored.
    #[test]
    fn any_matrix_gets_an_answer(
        seed in any::<u64>(),
        shape in prop::collection::vec(
            prop_oneof![0usize..9, (0usize..40).prop_map(|strips| 32 * strips), 0usize..1 << 40],
            0..4,
        ),
    ) {
        for layout in LAYOUTS {
            for codec in CODECS {
                let tensor_scale = codec.tensor_scale(0.6).unwrap_or(1.0);
                let matrix = Matrix { shape: &shape, codec: *codec, tensor_scale };
                let Ok(tensors) = layout.tensors(matrix) else { continue };
                prop_assert!(!tensors.is_empty());
                let is_whole = matrix.cols().is_multiple_of(codec.group_len_elems());
                let is_small = shape.iter().try_fold(1usize, |elems, &len| elems.checked_mul(len.max(1)));
                if is_whole && is_small.is_some_and(|elems| elems < 1 << 14) {
                    check(*layout, matrix, &[], &mut Random(seed));
                }
            }
        }
    }

    /// Any bytes of the right length: a refusal, or parts that are packed to what unpacks to them. Bytes that
    /// contradict nothing are never refused.
    #[test]
    fn any_bytes_unpack_or_are_refused(
        seed in any::<u64>(),
        strips in 1usize..6,
        groups in 1usize..5,
        is_consistent in any::<bool>(),
    ) {
        let mut random = Random(seed);
        for layout in LAYOUTS {
            for name in layout.example_codecs() {
                let codec = find(name);
                let shape = whole_groups(codec, strips, groups);
                let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(0.6).unwrap_or(1.0) };
                let rows = 0..shape[0];
                let stored = layout.tensors(matrix).unwrap();
                let mut parts = encoded(matrix, &mut random);
                let true_ones = layout.pack(matrix, rows.clone(), &band(matrix, &parts, &rows));
                let tensors: Vec<Vec<u8>> = stored.iter().zip(&true_ones).map(|(stored, bytes)| {
                    if is_consistent && TOLD_TWICE.contains(&stored.suffix) {
                        return bytes.to_vec();
                    }
                    bytes.iter().map(|_| random.bits() as u8).collect()
                }).collect();
                let mut unpack = |tensors: Vec<&[u8]>| {
                    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                    layout.unpack(matrix, rows.clone(), &tensors, &mut slices).map(|()| parts.clone())
                };
                match unpack(tensors.iter().map(Vec::as_slice).collect()) {
                    Err(error) => prop_assert!(!is_consistent, "{} of {name}: {error}", layout.name()),
                    Ok(parts) => {
                        let packed = layout.pack(matrix, rows.clone(), &band(matrix, &parts, &rows));
                        prop_assert_eq!(unpack(packed.iter().map(|bytes| &**bytes).collect()).unwrap(), parts);
                    }
                }
            }
        }
    }
}

/// Layouts that can store any number of rows: the last band may end anywhere.
#[test]
fn rows_that_do_not_fill_a_word() {
    let mut random = Random(4);
    for (layout, name) in [
        ("pack-quantized", "ct_int4_asym_g64"),
        ("pack-quantized", "ct_int4_g32"),
        ("nvfp4-pack-quantized", "ct_nvfp4"),
    ] {
        let codec = find(name);
        for rows in [1, 7, 13, 27] {
            let shape = [rows, 2 * codec.group_len_elems()];
            let matrix =
                Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(0.6).unwrap_or(1.0) };
            let cuts: Vec<usize> = (8..rows).step_by(8).collect();
            check(find_layout(layout), matrix, &cuts, &mut random);
        }
    }
}

fn refusal(layout: &str, codec: &str, shape: &[usize]) -> String {
    let matrix = Matrix { shape, codec: find(codec), tensor_scale: 1.0 };
    match find_layout(layout).tensors(matrix) {
        Ok(tensors) => panic!("{layout} stores {codec} {shape:?}: {tensors:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn matrices_that_do_not_pack_are_named() {
    for (layout, codec, shape, words) in [
        ("gptq", "gptq_int4_g128", &[20, 256][..], &["rows", "gptq", "20", "multiple of 8"][..]),
        ("awq", "awq_int4_g128", &[20, 256], &["rows", "awq", "20", "multiple of 8"]),
        ("gptq", "gptq_int4_g128", &[16, 200], &["columns", "200", "group size 128"]),
        ("pack-quantized", "ct_int4_g64", &[16, 96], &["columns", "96", "group size 64"]),
        ("pack-quantized", "ct_int4_g64", &[4, 16, 64], &["[4, 16, 64]", "two dimensions"]),
        ("nvfp4-pack-quantized", "ct_nvfp4", &[4, 24], &["columns", "24", "group size 16"]),
        ("nvfp4-pack-quantized", "ct_mxfp4", &[4, 32], &["codec ct_mxfp4", "ct_nvfp4"]),
        ("gptq", "gptq_int4_g100", &[16, 200], &["group size", "100", "multiple of 8"]),
        ("pack-quantized", "ct_int4_g12", &[16, 24], &["group size", "12", "multiple of 8"]),
        ("pack-quantized", "ct_nvfp4", &[16, 64], &["codec ct_nvfp4", "ct_int4_asym_g32"]),
        ("awq", "ct_int4_g64", &[16, 64], &["codec ct_int4_g64", "awq_int4_g128"]),
        ("pack-quantized", "Q4_0", &[16, 64], &["codec Q4_0", "ct_int4_asym_g32"]),
    ] {
        let text = refusal(layout, codec, shape);
        for word in words {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }
}

/// What is said about the stored tensors of a random matrix, one of them changed.
fn unpack_with(layout: &str, codec: &str, tensor: &str, damage: impl Fn(&mut [u8])) -> String {
    let (layout, codec) = (find_layout(layout), find(codec));
    let shape = [16, 2 * codec.group_len_elems()];
    let matrix = Matrix { shape: &shape, codec, tensor_scale: 2.0 };
    let mut parts = encoded(matrix, &mut Random(5));
    let tensors = layout.pack(matrix, 0..16, &band(matrix, &parts, &(0..16)));
    let mut tensors: Vec<Vec<u8>> = tensors.into_iter().map(Cow::into_owned).collect();
    let stored = layout.tensors(matrix).unwrap_or_else(|error| panic!("{error}"));
    stored.iter().zip(&mut tensors).filter(|pair| pair.0.suffix == tensor).for_each(|pair| damage(pair.1));
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    match layout.unpack(matrix, 0..16, &tensors, &mut slices) {
        Ok(()) => panic!("{} takes a changed {tensor}", layout.name()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn tensors_that_contradict_the_matrix_are_errors() {
    let shape = unpack_with("pack-quantized", "ct_int4_g32", "weight_shape", |bytes| bytes[8] = 65);
    for word in ["weight_shape", "[16, 65]", "[16, 64]"] {
        assert!(shape.contains(word), "{shape}");
    }
    let order = unpack_with("gptq", "gptq_int4_g32", "g_idx", |bytes| bytes[4 * 33] = 0);
    for word in ["g_idx", "column 33", "group 0", "desc_act", "group 1"] {
        assert!(order.contains(word), "{order}");
    }
    let negative = unpack_with("gptq", "gptq_int4_g32", "g_idx", |bytes| bytes.fill(0xff));
    assert!(negative.contains("group -1"), "{negative}");
    let global =
        unpack_with("nvfp4-pack-quantized", "ct_nvfp4", "weight_global_scale", |bytes| bytes[3] = 0x41);
    assert!(global.contains("weight_global_scale") && global.contains("[8.0]"), "{global}");
}

fn read(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/layouts").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An input's BF16 numbers. `stress` has no file: `stress()` in `fixtures/make_codec_goldens.py` defines it.
fn bf16(name: &str) -> Vec<u8> {
    if name != "stress" {
        return read(&format!("{name}.bf16"));
    }
    let mut random = Random(0);
    let values: Vec<f32> = (0..1usize << 20)
        .map(|i| {
            let bits = random.bits();
            let sum = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i32).sum::<i32>() - 131_070;
            let exponent = (i / 32 * 7 % 11) as i32 - 5;
            let row = (i / 1024) as f32;
            sum as f32 * f32::exp2(-22.0) * f32::exp2(exponent as f32) * (1.0 + row / 1000.0)
        })
        .collect();
    let mut bytes = vec![0; 2 * values.len()];
    find("BF16").encode(&values, &mut [&mut bytes]);
    bytes
}

/// The weights of an input as a checkpoint of the codec's dtype holds them; see the generating script.
fn input(name: &str, codec: &dyn Codec) -> Vec<f32> {
    let bf16 = bf16(name);
    let values: Vec<f32> = bf16
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16))
        .collect();
    if codec.name().ends_with("_f32") {
        return values.iter().map(|value| value * 1.1).collect();
    }
    if codec.name().ends_with("_f16") || codec.name().starts_with("awq") {
        let (half, mut bytes, mut rounded) = (find("F16"), vec![0; bf16.len()], vec![0.0; values.len()]);
        half.encode(&values, &mut [&mut bytes]);
        half.decode(&[&bytes], &mut rounded);
        return rounded;
    }
    values
}

#[test]
fn stored_tensors_and_decoded_values_are_the_reference_packages() {
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    let (mut layouts, mut wrong) = (std::collections::BTreeMap::new(), vec![]);
    for case in index["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let (layout, codec) = (find_layout(text("layout")), find(text("codec")));
        let about = &index["inputs"][text("input")];
        assert_eq!(sha256(&bf16(text("input"))), about["sha256"].as_str().unwrap());
        let shape: Vec<usize> =
            about["shape"].as_array().unwrap().iter().map(|len| len.as_u64().unwrap() as usize).collect();
        let weights = input(text("input"), codec);
        let max_abs = weights.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
        let tensor_scale = codec.tensor_scale(max_abs);
        assert_eq!(tensor_scale.map(f64::from), case["tensor_scale"].as_f64(), "{case}");
        let matrix = Matrix { shape: &shape, codec, tensor_scale: tensor_scale.unwrap_or(1.0) };

        let mut parts: Vec<Vec<u8>> =
            (0..codec.parts().len()).map(|part| vec![0; matrix.rows() * matrix.row_bytes(part)]).collect();
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode_under(matrix.tensor_scale, &weights, &mut slices);
        let packed = layout.pack(matrix, 0..matrix.rows(), &band(matrix, &parts, &(0..matrix.rows())));
        let stored = layout.tensors(matrix).unwrap();
        assert_eq!(stored.len(), case["tensors"].as_object().unwrap().len(), "{case}");
        for (stored, bytes) in stored.iter().zip(&packed) {
            let golden = &case["tensors"][stored.suffix];
            assert_eq!(stored.dtype.name(), golden["dtype"].as_str().unwrap(), "{} of {case}", stored.suffix);
            assert_eq!(serde_json::json!(stored.shape), golden["shape"], "{} of {case}", stored.suffix);
            if sha256(bytes) != golden["sha256"].as_str().unwrap() {
                wrong.push(format!("{} {}: {}", text("input"), codec.name(), stored.suffix));
            }
        }

        // Some checkpoints have a shape of I32.
        let short = shape.iter().flat_map(|&len| (len as i32).to_le_bytes()).collect::<Vec<u8>>();
        let tensors: Vec<&[u8]> = packed
            .iter()
            .zip(&stored)
            .map(|(bytes, stored)| if stored.suffix == "weight_shape" { &short[..] } else { &**bytes })
            .collect();
        let mut unpacked: Vec<Vec<u8>> = parts.iter().map(|part| vec![0xa5; part.len()]).collect();
        let mut slices: Vec<&mut [u8]> = unpacked.iter_mut().map(Vec::as_mut_slice).collect();
        layout.unpack(matrix, 0..matrix.rows(), &tensors, &mut slices).unwrap();
        let slices: Vec<&[u8]> = unpacked.iter().map(Vec::as_slice).collect();
        let mut values = vec![0.0; weights.len()];
        codec.decode_under(matrix.tensor_scale, &slices, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if sha256(&bytes) != text("decoded_sha256") {
            wrong.push(format!("{} {}: decoded", text("input"), codec.name()));
        }
        *layouts.entry(layout.name()).or_insert(0) += 1;
    }
    assert!(wrong.is_empty(), "not the reference's: {wrong:#?}");
    assert!(LAYOUTS[1..].iter().all(|layout| layouts[layout.name()] > 3), "{layouts:?}");
}
