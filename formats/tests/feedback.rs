//! Rounding with error feedback against a plain version in f64, and against rounding to nearest, for every format that can.

use requant_formats::feedback::{Panel, Rounder};
use requant_formats::{CODECS, Codec, Ladder, Scales, Units};

/// Numbers that look like weights, the same at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.next()).sum::<f64>() - 6.0) as f32
    }
}

fn ladders() -> impl Iterator<Item = (&'static dyn Codec, Ladder)> {
    CODECS.iter().filter_map(|codec| Some((*codec, codec.ladder()?)))
}

fn bytes_of(codec: &dyn Codec, groups: usize) -> Vec<Vec<u8>> {
    codec.parts().iter().map(|part| vec![0; groups * part.bytes_per_group]).collect()
}

fn slices(parts: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    parts.iter_mut().map(Vec::as_mut_slice).collect()
}

fn decode(codec: &dyn Codec, parts: &[Vec<u8>], len: usize) -> Vec<f32> {
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut values = vec![0.0; len];
    codec.decode_under(1.0, &parts, &mut values);
    values
}

#[test]
fn codes_that_are_put_are_decoded_and_scales_stay() {
    let mut random = Random(1);
    let mut names = Vec::new();
    for (codec, ladder) in ladders() {
        let len = codec.group_len_elems();
        let src: Vec<f32> = (0..len).map(|_| random.normal()).collect();
        let mut parts = bytes_of(codec, 1);
        codec.encode_under(1.0, &src, &mut slices(&mut parts));
        let encoded = decode(codec, &parts, len);
        let all: Vec<Vec<f32>> = (0..ladder.codes)
            .map(|code| {
                codec.put_codes(&vec![code as u8; len], &mut slices(&mut parts));
                decode(codec, &parts, len)
            })
            .collect();
        // Each column has the code of its decoded value among its codes: put together they give the group again.
        let mut codes = vec![0u8; len];
        for column in 0..len {
            let code = all.iter().position(|values| values[column] == encoded[column]);
            codes[column] = code.unwrap_or_else(|| panic!("{}: column {column}", codec.name())) as u8;
        }
        codec.put_codes(&codes, &mut slices(&mut parts));
        assert_eq!(decode(codec, &parts, len), encoded, "{}", codec.name());
        if ladder.even {
            for column in 0..len {
                let (lowest, highest) = (all[0][column], all[ladder.codes - 1][column]);
                let step = (highest - lowest) / (ladder.codes - 1) as f32;
                // Products and sums are rounded, in some formats to BF16: 2^-8 of the largest number.
                let bound = lowest.abs().max(highest.abs()) * 0.0079;
                for (code, values) in all.iter().enumerate() {
                    let expected = lowest + step * code as f32;
                    assert!((values[column] - expected).abs() <= bound, "{}: code {code}", codec.name());
                }
            }
        }
        names.push(codec.name());
    }
    for name in [
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "IQ4_NL",
        "IQ4_XS",
        "affine4_g64",
    ] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    for name in [
        "affine3_g32",
        "mlx_mxfp4",
        "mlx_nvfp4",
        "ct_nvfp4",
        "ct_mxfp4",
        "ct_int4_g64",
        "gptq_int4_g128",
        "awq_int4_g32",
    ] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
}

#[test]
fn scales_of_sub_blocks_are_read_and_put_and_say_what_codes_stand_for() {
    let mut random = Random(3);
    let mut names = Vec::new();
    for (codec, ladder) in ladders() {
        let Some(levels) = codec.two_levels() else { continue };
        let len = codec.group_len_elems();
        let subs = len / levels.sub_len;
        let (least, most) = levels.scales;
        let mut multiple =
            |least: i16, most: i16| least + (random.next() * f64::from(most - least + 1)) as i16;
        // Also the ends of both ranges.
        let mut scales =
            Scales { d: 0.125, dmin: if levels.top_min > 0 { 0.25 } else { 0.0 }, ..Scales::default() };
        for sub in 0..subs {
            scales.scales[sub] = [least, most, multiple(least, most)][sub.min(2)];
            scales.mins[sub] = [levels.top_min, 0, multiple(0, levels.top_min)][sub.min(2)];
        }
        let mut parts = bytes_of(codec, 1);
        let codes: Vec<u8> =
            (0..len).map(|column| ((column * 7 + column / 32) % ladder.codes) as u8).collect();
        codec.put_codes(&codes, &mut slices(&mut parts));
        codec.put_scales(&scales, &mut slices(&mut parts));
        let read: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        assert_eq!(codec.scales(&read), scales, "{}", codec.name());
        for (column, value) in decode(codec, &parts, len).into_iter().enumerate() {
            let sub = column / levels.sub_len;
            let unit = match levels.units {
                Units::From(zero) => f32::from(codes[column]) - zero,
                Units::Table(table) => table[usize::from(codes[column])],
            };
            // All of these are exact in f32.
            let expected =
                scales.d * f32::from(scales.scales[sub]) * unit - scales.dmin * f32::from(scales.mins[sub]);
            assert_eq!(value, expected, "{}: column {column}", codec.name());
        }
        names.push(codec.name());
    }
    assert_eq!(names, ["Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K"]);
}

/// `H` of correlated inputs.
fn correlated(n: usize, random: &mut Random) -> Vec<f64> {
    let samples = 2 * n;
    let mut h = vec![0.0; n * n];
    for _ in 0..samples {
        let common = f64::from(random.normal());
        let size = |column: usize| if column.is_multiple_of(7) { 3.0 } else { 1.0 };
        let x: Vec<f64> =
            (0..n).map(|column| (f64::from(random.normal()) + 2.0 * common) * size(column)).collect();
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] += x[i] * x[j] / samples as f64;
            }
        }
    }
    h
}

/// `N` and `c`.
fn factored(h: &[f64]) -> (Vec<f32>, Vec<f32>) {
    let n = h.len().isqrt();
    let (mut rest, mut shares, mut costs) = (h.to_vec(), vec![0.0; n * n], vec![0.0; n]);
    for k in (0..n).rev() {
        costs[k] = rest[k * n + k];
        (0..=k).for_each(|j| shares[j * n + k] = rest[j * n + k] / costs[k]);
        for i in 0..k {
            for j in 0..k {
                rest[i * n + j] -= shares[i * n + k] * shares[j * n + k] * costs[k];
            }
        }
    }
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    (narrow(shares), narrow(costs))
}

fn loss(h: &[f64], errors: &[f64]) -> f64 {
    let n = errors.len();
    (0..n).map(|i| errors[i] * (0..n).map(|j| h[i * n + j] * errors[j]).sum::<f64>()).sum()
}

#[test]
fn less_is_lost_than_by_rounding_to_nearest() {
    let mut random = Random(7);
    for (codec, _) in ladders() {
        let len = codec.group_len_elems();
        let groups = 128usize.div_ceil(len).max(2);
        let n = groups * len;
        let h = correlated(n, &mut random);
        // Groups and columns from the last to the first.
        let order: Vec<usize> = (0..n).rev().collect();
        let permuted = |i: usize, j: usize| h[order[i] * n + order[j]];
        let turned: Vec<f64> = (0..n * n).map(|at| permuted(at / n, at % n)).collect();
        let (shares, costs) = factored(&turned);
        let places: Vec<u16> = order.iter().map(|&column| (column % len) as u16).collect();
        let numbers: Vec<usize> = (0..groups).rev().collect();
        let panel = Panel { shares: &shares, costs: &costs, places: &places, groups: &numbers };
        let (mut nearest_lost, mut lost) = (0.0, 0.0);
        for _ in 0..4 {
            let round = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
            let weights: Vec<f32> = (0..n).map(|_| round(random.normal() * 0.05)).collect();
            let mut parts = bytes_of(codec, groups);
            codec.encode_under(1.0, &weights, &mut slices(&mut parts));
            let error = |decoded: &[f32]| -> Vec<f64> {
                weights.iter().zip(decoded).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect()
            };
            nearest_lost += loss(&h, &error(&decode(codec, &parts, n)));
            let wanted: Vec<f32> = order.iter().map(|&column| weights[column]).collect();
            let (mut row, mut errors) = (wanted.clone(), vec![0.0; n]);
            let prepare = |values: &mut Vec<f32>| values.iter_mut().for_each(|value| *value = round(*value));
            let mut rounder = Rounder::new(codec, 1.0, &prepare).unwrap();
            rounder.panel(panel, &wanted, &mut row, &mut slices(&mut parts), &mut errors);
            let decoded = decode(codec, &parts, n);
            let found = error(&decoded);
            lost += loss(&h, &found);
            // What it says is lost is what is lost, to the precision of stored numbers.
            let largest = decoded.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            // Products rounded to BF16, 2^-9 of a code's value each; the largest code need not occur.
            let bound = 0.008 * f64::from(largest);
            for (at, &column) in order.iter().enumerate() {
                assert!((found[column] - f64::from(errors[at])).abs() <= bound, "{}: {column}", codec.name());
            }
        }
        assert!(lost < 0.8 * nearest_lost, "{}: {lost} of {nearest_lost}", codec.name());
        println!("{}: {:.3}", codec.name(), lost / nearest_lost);
    }
}
