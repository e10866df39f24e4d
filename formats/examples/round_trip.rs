//! Encodes a row of weights in every format and says what that costs: bits per weight, and how far what comes back is
//! from what went in.
//!
//!     cargo run --release -p requant-formats --example round_trip

use requant_formats::{CODECS, Codec};

/// Weights in the row: a multiple of every format's group length.
const LEN: usize = 4096;

fn main() {
    // Something like a trained row: a sum of waves is close to a normal distribution.
    let weights: Vec<f32> = (0..LEN as u32)
        .map(|i| (1..=12u32).map(|k| ((i * k * k + k) as f32 * 0.37).sin()).sum::<f32>() * 0.01)
        .collect();
    println!("{:<20} {:>15} {:>15}", "format", "bits per weight", "relative error");
    for &codec in CODECS {
        let (bits, error) = round_trip(codec, &weights);
        println!("{:<20} {bits:>15.3} {error:>15.5}", codec.name());
    }
}

/// Bits per weight, and the length of the error relative to that of the weights.
fn round_trip(codec: &dyn Codec, weights: &[f32]) -> (f64, f64) {
    let groups = weights.len() / codec.group_len_elems();
    let mut parts: Vec<Vec<u8>> =
        codec.parts().iter().map(|part| vec![0; groups * part.bytes_per_group]).collect();
    // Formats with a factor on the whole tensor take it from the largest magnitude.
    let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let scale = codec.tensor_scale(largest).unwrap_or(1.0);
    let mut to: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode_under(scale, weights, &mut to);
    let from: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut decoded = vec![0.0; weights.len()];
    codec.decode_under(scale, &from, &mut decoded);
    let bytes: usize = parts.iter().map(Vec::len).sum();
    let square = |value: f32| f64::from(value) * f64::from(value);
    let error: f64 = weights.iter().zip(&decoded).map(|(a, b)| square(a - b)).sum();
    let size: f64 = weights.iter().map(|&weight| square(weight)).sum();
    (8.0 * bytes as f64 / weights.len() as f64, (error / size).sqrt())
}
