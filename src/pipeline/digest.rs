//! SHA-256 of the result while it is being written.
//!
//! A file's digest needs its bytes in order; jobs finish in any order. So the follower reads
//! finished bytes back (they are still in the page cache) as soon as nothing before them is
//! missing, and hashes the file and the tensor that they are in at once.

use std::fmt::Write as _;

use requant_formats::Sha256;

use crate::disk::DiskFile;
use crate::error::Result;
use crate::frontier::Frontier;
use crate::plan::Blueprint;

/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// The same while following: what was read is still in the core's own cache when it is hashed.
const FOLLOW_BYTES: usize = 1 << 18;

/// Digests of a finished result, lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digests {
    /// One per file.
    pub(super) files: Vec<String>,
    /// One per part, by tensor.
    pub(super) parts: Vec<Vec<String>>,
}

impl Digests {
    /// None yet.
    pub(super) fn none(blueprint: &Blueprint) -> Self {
        let parts = blueprint.tensors.iter().map(|tensor| vec![String::new(); tensor.placements.len()]);
        Self { files: vec![String::new(); blueprint.files.len()], parts: parts.collect() }
    }

    /// Takes in what was found of file number `number`.
    pub(super) fn add(&mut self, number: usize, of_file: OfFile) {
        self.files[number] = of_file.whole;
        for (tensor, part, digest) in of_file.parts {
            self.parts[tensor][part] = digest;
        }
    }
}

/// Digests of one file.
pub(super) struct OfFile {
    whole: String,
    /// Tensor, part of it, digest.
    parts: Vec<(usize, usize, String)>,
}

/// Hashes file number `number` of a result as its frontier advances, and the tensors in it. `None` when the frontier was
/// closed.
pub(super) fn follow_result(
    blueprint: &Blueprint,
    number: usize,
    file: &DiskFile,
    frontier: &Frontier,
) -> Result<Option<OfFile>> {
    let mut placed: Vec<(u64, u64, usize, usize)> = Vec::new();
    for (tensor, output) in blueprint.tensors.iter().enumerate() {
        for (part, place) in output.placements.iter().enumerate().filter(|(_, place)| place.file == number) {
            placed.push((place.offset_bytes, place.offset_bytes + place.len_bytes, tensor, part));
        }
    }
    placed.sort_unstable();
    let parts: Vec<Part> = placed.iter().map(|&(start, end, ..)| Part { start, end }).collect();
    let found = follow(file, blueprint.files[number].len_bytes, frontier, &parts)?;
    Ok(found.map(|(whole, digests)| {
        let parts =
            placed.into_iter().zip(digests).map(|((_, _, tensor, part), digest)| (tensor, part, digest));
        OfFile { whole, parts: parts.collect() }
    }))
}

/// Hashes `len_bytes` of `file` from `offset_bytes`.
pub(super) fn range(file: &DiskFile, offset_bytes: u64, len_bytes: u64) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES.min(len_bytes as usize)];
    let mut done = 0;
    while done < len_bytes {
        let chunk = chunk_of(&mut buffer, len_bytes - done);
        file.read_exact_at(chunk, offset_bytes + done)?;
        hasher.update(&*chunk);
        done += chunk.len() as u64;
    }
    Ok(hex(&hasher.finish()))
}

/// A stored tensor of a file: where it starts and ends.
struct Part {
    /// First byte.
    start: u64,
    /// Byte after the last.
    end: u64,
}

/// Hashes a file of `len_bytes` as its frontier advances, and each of its parts on the way: they are in the order of
/// their bytes. `None` when the frontier was closed.
///
/// File and part are two messages that advance together, which costs little more than one.
fn follow(
    file: &DiskFile,
    len_bytes: u64,
    frontier: &Frontier,
    parts: &[Part],
) -> Result<Option<(String, Vec<String>)>> {
    let (mut whole, mut part) = (Sha256::new(), Sha256::new());
    let mut digests = Vec::with_capacity(parts.len());
    let mut buffer = vec![0; FOLLOW_BYTES];
    let mut done = 0;
    while done < len_bytes {
        let Some(complete) = frontier.wait_past(done) else { return Ok(None) };
        while done < complete {
            let mut chunk: &[u8] = {
                let chunk = chunk_of(&mut buffer, complete - done);
                file.read_exact_at(chunk, done)?;
                chunk
            };
            while !chunk.is_empty() {
                let next = parts.get(digests.len());
                let (is_in_part, end) = match next {
                    Some(next) if next.start <= done => (true, next.end),
                    Some(next) => (false, next.start),
                    None => (false, len_bytes),
                };
                let len = chunk.len().min(usize::try_from(end - done).unwrap_or(usize::MAX));
                let (now, later) = chunk.split_at(len);
                if is_in_part {
                    Sha256::update_both((&mut whole, now), (&mut part, now));
                } else {
                    whole.update(now);
                }
                done += len as u64;
                chunk = later;
                if is_in_part && done == end {
                    digests.push(hex(&std::mem::take(&mut part).finish()));
                }
            }
        }
    }
    // Tensors without a byte at the end of the file.
    digests.resize_with(parts.len(), || of(&[]));
    Ok(Some((hex(&whole.finish()), digests)))
}

fn chunk_of(buffer: &mut [u8], remaining: u64) -> &mut [u8] {
    let len = buffer.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
    &mut buffer[..len]
}

/// Lower-case hex.
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(2 * digest.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hashes bytes in memory.
pub(super) fn of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    #[test]
    fn parts_of_a_growing_file_are_hashed_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..3 * FOLLOW_BYTES as u32 + 77).map(|at| (at * 31 % 257) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let len = bytes.len() as u64;
        let part = |start: u64, end: u64| Part { start, end };
        // Gaps, none, an empty one, one over several chunks, one to the end or an empty one there.
        let lists = [
            vec![],
            vec![part(0, len)],
            vec![part(5, 5), part(5, 69), part(69, 70), part(100, len - 3)],
            vec![part(1, len), part(len, len)],
        ];
        for parts in lists {
            let frontier = Frontier::new();
            frontier.add(40, len);
            frontier.add(0, 40);
            let file = Disk::default().open_to_read(&path).unwrap();
            let (whole, found) = follow(&file, len, &frontier, &parts).unwrap().unwrap();
            assert_eq!(whole, of(&bytes));
            let expected: Vec<String> =
                parts.iter().map(|part| of(&bytes[part.start as usize..part.end as usize])).collect();
            assert_eq!(found, expected);
        }
    }
}
