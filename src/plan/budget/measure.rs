//! The error of candidate types on a sample of a tensor's rows.
//!
//! Rows are drawn one from each of as many equal stretches of the tensor, at a place that a hash of its name
//! and the stretch's number gives: the same ones every time, on every machine and with any number of threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use requant_formats::{Codec, codec};

use super::{Choices, encoded_bytes};
use crate::checkpoint::{Checkpoint, TileReader};
use crate::error::{Error, Result};
use crate::plan::{Blueprint, OutputTensor};

/// Weights of a tensor that are looked at, about.
const SAMPLE_ELEMS: usize = 1 << 17;
/// Rows that are looked at, at least.
const MIN_ROWS: usize = 4;
/// Reads under way at once of a source far away.
const REMOTE_READS: usize = 16;
/// Error of what does not decode to numbers at all: worse than any other.
const HOPELESS: f64 = 1e18;

/// Receives what was measured so far. Called from several threads.
pub struct Watch<'a> {
    /// It begins: so many bytes will be read, about.
    pub begin: &'a (dyn Fn(u64) + Sync),
    /// So many more were.
    pub advance: &'a (dyn Fn(u64) + Sync),
}

/// How often the source will be read, about: rows, and the scales of each.
pub(super) fn reads(blueprint: &Blueprint, choices: &[Choices]) -> usize {
    choices.iter().map(|choices| 2 * rows(&blueprint.tensors[choices.tensor]).len()).sum()
}

/// Relative squared error of each candidate, for each of `choices`.
pub(super) fn errors(
    source: &Checkpoint,
    blueprint: &Blueprint,
    choices: &[Choices],
    threads: usize,
    watch: &Watch<'_>,
    stop: &AtomicBool,
) -> Result<Vec<Vec<f64>>> {
    // A source far away answers late: more of its answers are waited for than there are cores.
    let threads = if source.source().is_at_hand() { threads } else { threads.max(REMOTE_READS) };
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::Request(format!("cannot start {threads} threads: {error}")))?;
    let tensor = |choices: &Choices| &blueprint.tensors[choices.tensor];
    let sampled = |tensor: &OutputTensor| {
        let stored =
            tensor.pieces.first().map_or(1, |piece| source.tensors()[piece.source].dtype.size_bytes());
        (rows(tensor).len() * tensor.row_len_elems() * stored) as u64
    };
    (watch.begin)(choices.iter().map(|choices| sampled(tensor(choices))).sum());
    pool.install(|| {
        let measured = choices.par_iter().map(|choices| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let tensor = tensor(choices);
            let sample = sample(source, tensor)?;
            let errors = choices.candidates.iter().map(|candidate| relative_error(candidate.codec, &sample));
            let errors = errors.collect();
            (watch.advance)(sampled(tensor));
            Ok(errors)
        });
        measured.collect()
    })
}

/// `|decode(encode(x)) - x|^2 / |x|^2`; 0 for zeros that stay zeros, 1 for zeros that do not.
fn relative_error(codec: &dyn Codec, x: &[f32]) -> f64 {
    let mut bytes = vec![0; encoded_bytes(codec, x.len() as u64) as usize];
    let mut parts = Vec::with_capacity(codec.parts().len());
    let mut rest = bytes.as_mut_slice();
    for part in 0..codec.parts().len() {
        let (part, behind) = rest.split_at_mut(codec::part_len_bytes(codec, part, x.len() as u64) as usize);
        parts.push(part);
        rest = behind;
    }
    codec.encode(x, &mut parts);
    let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
    let mut decoded = vec![0.0; x.len()];
    codec.decode(&parts, &mut decoded);
    let (mut error, mut norm) = (0.0, 0.0);
    for (&decoded, &x) in decoded.iter().zip(x) {
        let (decoded, x) = (f64::from(decoded), f64::from(x));
        error += (decoded - x) * (decoded - x);
        norm += x * x;
    }
    match (error == 0.0, norm > 0.0) {
        (true, _) => 0.0,
        (false, true) if error.is_finite() => error / norm,
        (false, true) => HOPELESS,
        (false, false) => 1.0,
    }
}

/// The sampled rows one after the other, as the encoder would see them.
fn sample(source: &Checkpoint, tensor: &OutputTensor) -> Result<Vec<f32>> {
    let mut reader = TileReader::default();
    let mut sample = Vec::new();
    let mut tile = Vec::new();
    let mut wanted = rows(tensor).into_iter().peekable();
    let mut first_row = 0;
    for piece in &tensor.pieces {
        let (_, cols) = source.tensors()[piece.source].matrix();
        let rows = if piece.transposed { cols } else { piece.rows.len() };
        let mut is_read = false;
        while let Some(row) = wanted.next_if(|&row| row < first_row + rows) {
            let row = row - first_row;
            if piece.transposed {
                if !std::mem::replace(&mut is_read, true) {
                    reader.read(source, piece.source, piece.rows.clone(), &mut tile)?;
                }
                sample.extend(tile.chunks_exact(cols).map(|values| values[row]));
            } else {
                let row = piece.rows.start + row;
                reader.read(source, piece.source, row..row + 1, &mut tile)?;
                sample.extend_from_slice(&tile);
            }
        }
        first_row += rows;
    }
    tensor.rounding.apply(&mut sample);
    Ok(sample)
}

/// The rows to look at, ascending.
fn rows(tensor: &OutputTensor) -> Vec<usize> {
    let len = tensor.row_len_elems().max(1);
    let all = (tensor.len_elems() / len as u64) as usize;
    let count = (SAMPLE_ELEMS / len).max(MIN_ROWS).min(all);
    let seed = tensor.names[0].bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let stretch = |number: usize| -> Range<usize> { number * all / count..(number + 1) * all / count };
    let drawn = (0..count).map(|number| {
        let range = stretch(number);
        range.start + (mixed(seed.wrapping_add(number as u64)) % range.len() as u64) as usize
    });
    drawn.collect()
}

/// `SplitMix64`.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_definition() {
        let find = |name| codec::find(name).unwrap();
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(relative_error(find("F32"), &x), 0.0);
        let coarse = relative_error(find("Q2_K"), &x);
        let fine = relative_error(find("Q8_0"), &x);
        assert!(0.0 < fine && fine < 1e-4 && 1e-3 < coarse && coarse < 0.2, "{fine} {coarse}");
        assert_eq!(relative_error(find("Q4_K"), &[0.0; 256]), 0.0);
        // Three parts; one half of a group lost would be an error of one half.
        let affine = relative_error(find("affine4_g64"), &x);
        assert!(fine < affine && affine < coarse, "{affine}");
    }
}
