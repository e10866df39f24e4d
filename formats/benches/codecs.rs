//! Speed of every codec, encoding and decoding, with the scalar oracle beside it, in weights
//! per second and in bytes of `f32` per second; of every layout, packing and unpacking, in weights and in
//! bytes of its tensors; and of the block-scaled FP8 decoder. One core.
//!
//! `cargo bench -p requant-formats -- Q4_K` runs the lines of one codec, `-- layout` those of the layouts; pin
//! it to a core.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_formats::CODECS;
use requant_formats::codec::find;
use requant_formats::codec::fp8::{self, BlockScales, F8E4M3, Fp8};
use requant_formats::layout::{LAYOUTS, Matrix};

/// DeepSeek-V3's hidden size, and as many rows as stay in the second-level cache.
const COLS: usize = 7168;
const ROWS: usize = 8;

/// Weights as an FP8 checkpoint has them: normal numbers rounded to E4M3, scaled.
fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..ROWS * COLS)
        .map(|_| {
            let radius = (-2.0 * uniform().max(1e-9).ln()).sqrt();
            let normal = radius * (std::f32::consts::TAU * uniform()).cos();
            F8E4M3::to_f32(F8E4M3::from_f32(normal * 100.0)) * 1.37e-4
        })
        .collect()
}

/// Weights per second, and bytes of their `f32` form per second.
fn both(weights: usize) -> Throughput {
    Throughput::ElementsAndBytes { elements: weights as u64, bytes: 4 * weights as u64 }
}

fn codecs(criterion: &mut Criterion) {
    let weights = weights();
    for codec in CODECS {
        let groups = weights.len() / codec.group_len_elems();
        let weights = &weights[..groups * codec.group_len_elems()];
        let mut parts: Vec<Vec<u8>> =
            codec.parts().iter().map(|part| vec![0; groups * part.bytes_per_group]).collect();
        let mut values = vec![0.0f32; weights.len()];
        let mut group = criterion.benchmark_group(codec.name());
        group.throughput(both(weights.len()));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for scalar in [false, true] {
            let way = if scalar { "scalar" } else { "fast" };
            group.bench_function(BenchmarkId::new("encode", way), |bencher| {
                bencher.iter(|| {
                    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                    if scalar {
                        codec.encode_scalar(black_box(weights), &mut slices);
                    } else {
                        codec.encode(black_box(weights), &mut slices);
                    }
                });
            });
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            group.bench_function(BenchmarkId::new("decode", way), |bencher| {
                bencher.iter(|| {
                    if scalar {
                        codec.decode_scalar(black_box(&slices), &mut values);
                    } else {
                        codec.decode(black_box(&slices), &mut values);
                    }
                });
            });
        }
        group.finish();
    }
}

/// An expert's matrix, in one band.
fn layouts(criterion: &mut Criterion) {
    for layout in LAYOUTS {
        let Some(codec) = layout.example_codecs().iter().find_map(|name| find(name)) else { continue };
        let shape = [2048, 7168];
        let matrix = Matrix { shape: &shape, codec, tensor_scale: 1.0 };
        let parts: Vec<Vec<u8>> = (0..codec.parts().len())
            .map(|part| (0..shape[0] * matrix.row_bytes(part)).map(|i| (i * 37 % 251) as u8).collect())
            .collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let mut group = criterion.benchmark_group(format!("layout {} of {}", layout.name(), codec.name()));
        group.throughput(Throughput::ElementsAndBytes {
            elements: (shape[0] * shape[1]) as u64,
            bytes: bytes as u64,
        });
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        group.bench_function("pack", |bencher| {
            bencher.iter(|| layout.pack(matrix, 0..shape[0], black_box(&parts)));
        });
        let packed = layout.pack(matrix, 0..shape[0], &parts);
        let tensors: Vec<&[u8]> = packed.iter().map(|bytes| &**bytes).collect();
        let mut unpacked: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.len()]).collect();
        group.bench_function("unpack", |bencher| {
            bencher.iter(|| {
                let mut slices: Vec<&mut [u8]> = unpacked.iter_mut().map(Vec::as_mut_slice).collect();
                layout.unpack(matrix, 0..shape[0], black_box(&tensors), &mut slices)
            });
        });
        group.finish();
    }
}

fn block_scaled_fp8(criterion: &mut Criterion) {
    let codes: Vec<u8> = (0..ROWS * COLS).map(|i| (i * 37 % 251) as u8).collect();
    let scales = vec![1.37e-4f32; COLS / 128];
    let mut values = vec![0.0f32; codes.len()];
    let mut group = criterion.benchmark_group("F8_E4M3 with 128x128 scales");
    group.throughput(both(codes.len()));
    group.bench_function(BenchmarkId::new("decode", "fast"), |bencher| {
        let grid = BlockScales { scales: &scales, block_rows: 128, block_cols: 128 };
        bencher.iter(|| fp8::decode_scaled::<F8E4M3>(black_box(&codes), COLS, 0, grid, &mut values));
    });
    group.finish();
}

criterion_group!(benches, codecs, layouts, block_scaled_fp8);
criterion_main!(benches);
