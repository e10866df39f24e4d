//! SHA-256 of the result while it is being written.
//!
//! A file's digest needs its bytes in order; jobs finish in any order. So the follower reads
//! finished bytes back (they are still in the page cache) as soon as nothing before them is
//! missing. A tensor's digest is computed by the worker that finishes its last job.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::disk::DiskFile;
use crate::error::Result;
use crate::frontier::Frontier;

/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Digests of a finished result, lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digests {
    /// One per file.
    pub(super) files: Vec<String>,
    /// One per part, by tensor.
    pub(super) parts: Vec<Vec<String>>,
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
    Ok(hex(hasher))
}

/// Hashes a file of `len_bytes` as its frontier advances; `None` when the frontier was closed.
pub(super) fn follow(file: &DiskFile, len_bytes: u64, frontier: &Frontier) -> Result<Option<String>> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < len_bytes {
        let Some(complete) = frontier.wait_past(done) else { return Ok(None) };
        while done < complete {
            let chunk = chunk_of(&mut buffer, complete - done);
            file.read_exact_at(chunk, done)?;
            hasher.update(&*chunk);
            done += chunk.len() as u64;
        }
    }
    Ok(Some(hex(hasher)))
}

fn chunk_of(buffer: &mut [u8], remaining: u64) -> &mut [u8] {
    let len = buffer.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
    &mut buffer[..len]
}

pub(super) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hashes bytes in memory.
pub(super) fn of(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hex(hasher)
}
