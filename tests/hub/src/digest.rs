//! SHA-256 of a file, and the git object id (SHA-1) by which the hub names small files.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::content::Content;

const READ_BYTES: usize = 1 << 20;

/// SHA-256 of `content`, as 64 hex digits.
pub fn sha256_hex(content: &dyn Content) -> io::Result<String> {
    let mut hash = Sha256::new();
    for_each_piece(content, |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// The git object id of a blob: SHA-1 of `blob {len}\0` and the content, as 40 hex digits.
pub fn git_blob_oid(content: &dyn Content) -> io::Result<String> {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()).as_bytes());
    for_each_piece(content, |piece| hash.update(piece))?;
    Ok(hex(&hash.finish()))
}

/// SHA-256 of many files on all cores; `progress` hears how many are done.
pub(crate) fn sha256_of_all(
    contents: &[Arc<dyn Content>],
    progress: &(dyn Fn(usize, usize) + Sync),
) -> io::Result<Vec<String>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(contents.len().max(1));
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> io::Result<Vec<(usize, String)>> {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(content) = contents.get(index) else { return Ok(mine) };
            mine.push((index, sha256_hex(content.as_ref())?));
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, contents.len());
        }
    };
    let mut digests = vec![String::new(); contents.len()];
    std::thread::scope(|scope| -> io::Result<()> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let mine = worker.join().map_err(|_| io::Error::other("a hashing thread panicked"))??;
            for (index, digest) in mine {
                digests[index] = digest;
            }
        }
        Ok(())
    })?;
    Ok(digests)
}

/// SHA-256 of some bytes, as 64 hex digits.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-1 of some bytes, as 40 hex digits.
pub(crate) fn sha1_of(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(bytes);
    hex(&hash.finish())
}

fn for_each_piece(content: &dyn Content, mut consume: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < content.len() {
        let piece_len = (content.len() - offset).min(READ_BYTES as u64) as usize;
        content.read_at(offset, &mut buffer[..piece_len])?;
        consume(&buffer[..piece_len]);
        offset += piece_len as u64;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-1 as FIPS 180-4 has it, for git's names of objects.
struct Sha1 {
    state: [u32; 5],
    block: Vec<u8>,
    len_bytes: u64,
}

impl Sha1 {
    fn new() -> Sha1 {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Sha1 { state, block: Vec::with_capacity(64), len_bytes: 0 }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.len_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(64 - self.block.len()));
            self.block.extend_from_slice(head);
            bytes = tail;
            if self.block.len() == 64 {
                self.compress();
                self.block.clear();
            }
        }
    }

    fn finish(mut self) -> [u8; 20] {
        let len_bits = self.len_bytes * 8;
        self.update(&[0x80]);
        while self.block.len() != 56 {
            self.update(&[0]);
        }
        self.update(&len_bits.to_be_bytes());
        let mut digest = [0; 20];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    fn compress(&mut self) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(self.block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.state;
        for (i, word) in words.iter().enumerate() {
            let (mix, constant) = match i / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next =
                a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, word) in self.state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Bytes;

    #[test]
    fn git_names_blobs_like_this() {
        // `git hash-object` of nothing, of "hello\n", and of 1000 times 'a' (many blocks).
        for (bytes, oid) in [
            (Vec::new(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
            (b"hello\n".to_vec(), "ce013625030ba8dba906f756967f9e9ca394464a"),
            (vec![b'a'; 1000], "a50be72b20f0e3f078d252e8e56b11b4bec67509"),
        ] {
            assert_eq!(git_blob_oid(&Bytes(bytes)).unwrap(), oid);
        }
    }

    #[test]
    fn sha256_of_many_keeps_their_order() {
        let contents: Vec<Arc<dyn Content>> =
            (0..9u8).map(|i| Arc::new(Bytes(vec![i; 3])) as Arc<dyn Content>).collect();
        let digests = sha256_of_all(&contents, &|_, _| ()).unwrap();
        for (content, digest) in contents.iter().zip(digests) {
            assert_eq!(sha256_hex(content.as_ref()).unwrap(), digest);
        }
    }
}
