//! What every layout must hold to: the suite iterates `LAYOUTS` with their example codecs. Exact bytes are
//! compared with what the reference packages store, where `fixtures/goldens/layouts` has them.

use std::ops::Range;

use proptest::prelude::*;
use requant_formats::codec;
use requant_formats::layout::{self, LAYOUTS, Layout, Matrix, StoredTensor};
use requant_formats::{Codec, FormatError};

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

/// Encoded rows of random weights, one buffer per part.
fn encoded(matrix: Matrix<'_>, random: &mut Random) -> Vec<Vec<u8>> {
    let weights: Vec<f32> = (0..matrix.rows() * matrix.cols())
        .map(|_| {
            let weight = (random.bits() >> 40) as f32 / f32::exp2(24.0) - 0.4;
            f32::from_bits(weight.to_bits() & 0xffff_0000)
        })
        .collect();
    let mut parts: Vec<Vec<u8>> = (0..matrix.codec.parts().len())
        .map(|part| vec![0; matrix.rows() * matrix.row_bytes(part)])
        .collect();
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
    let whole: Vec<Vec<u8>> = whole.into_iter().map(|bytes| bytes.into_owned()).collect();

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
                let groups = if name.contains("channel") { 1 } else { groups };
                let shape = [strips * 8, groups * codec.group_len_elems()];
                let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(0.6).unwrap_or(1.0) };
                let cuts: Vec<usize> = cuts.iter().map(|cut| cut * 8).filter(|&cut| cut < shape[0]).collect();
                check(*layout, matrix, &cuts, &mut random);
            }
        }
    }
}

/// Layouts that can store any number of rows: the last band may end anywhere.
#[test]
fn rows_that_do_not_fill_a_word() {
    let mut random = Random(4);
    for (layout, name) in
        [("pack-quantized", "ct_int4_asym_g64"), ("pack-quantized", "ct_int4_g32"), ("nvfp4-pack-quantized", "ct_nvfp4")]
    {
        let codec = find(name);
        for rows in [1, 7, 13, 27] {
            let shape = [rows, 2 * codec.group_len_elems()];
            let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(0.6).unwrap_or(1.0) };
            let cuts: Vec<usize> = (8..rows).step_by(8).collect();
            check(layout::find(layout).unwrap(), matrix, &cuts, &mut random);
        }
    }
}

fn refusal(layout: &str, codec: &str, shape: &[usize]) -> String {
    let matrix = Matrix { shape, codec: find(codec), tensor_scale: 1.0 };
    layout::find(layout).unwrap().tensors(matrix).unwrap_err().to_string()
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
        ("awq", "ct_int4_g64", &[16, 64], &["codec ct_int4_g64", "awq_int4_g128"]),
        ("pack-quantized", "Q4_0", &[16, 64], &["codec Q4_0", "ct_int4_asym_g32"]),
    ] {
        let text = refusal(layout, codec, shape);
        for word in words {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }
}

/// Stored tensors of a matrix of zeros, with one of them changed.
fn unpack_with(layout: &str, codec: &str, tensor: &str, damage: impl Fn(&mut [u8])) -> FormatError {
    let (layout, codec) = (layout::find(layout).unwrap(), find(codec));
    let shape = [16, 2 * codec.group_len_elems()];
    let matrix = Matrix { shape: &shape, codec, tensor_scale: 2.0 };
    let parts = encoded(matrix, &mut Random(5));
    let tensors = layout.pack(matrix, 0..16, &band(matrix, &parts, &(0..16)));
    let mut tensors: Vec<Vec<u8>> = tensors.into_iter().map(|bytes| bytes.into_owned()).collect();
    let at = layout.tensors(matrix).unwrap().iter().position(|stored| stored.suffix == tensor).unwrap();
    damage(&mut tensors[at]);
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let mut parts = parts;
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    layout.unpack(matrix, 0..16, &tensors, &mut slices).unwrap_err()
}

#[test]
fn tensors_that_contradict_the_matrix_are_errors() {
    let shape = unpack_with("pack-quantized", "ct_int4_g32", "weight_shape", |bytes| bytes[8] = 65).to_string();
    for word in ["weight_shape", "[16, 65]", "[16, 64]"] {
        assert!(shape.contains(word), "{shape}");
    }
    let order = unpack_with("gptq", "gptq_int4_g32", "g_idx", |bytes| bytes[4 * 33] = 0).to_string();
    for word in ["g_idx", "column 33", "group 0", "desc_act", "group 1"] {
        assert!(order.contains(word), "{order}");
    }
    let negative = unpack_with("gptq", "gptq_int4_g32", "g_idx", |bytes| bytes.fill(0xff)).to_string();
    assert!(negative.contains("group -1"), "{negative}");
    let global =
        unpack_with("nvfp4-pack-quantized", "ct_nvfp4", "weight_global_scale", |bytes| bytes[3] = 0x41).to_string();
    assert!(global.contains("weight_global_scale") && global.contains("[8.0]"), "{global}");
}
