//! SHA-256, one message or two at once.
//!
//! With the SHA extensions of x86-64 two messages on one core take little longer than one: about 1.2 times (a loaded Xeon) the
//! bytes in the same time (Xeon of the Sapphire Rapids generation). Elsewhere this is the `sha2` crate.

use crate::dispatch;

/// What every message starts from (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A digest in the making.
#[derive(Clone)]
pub struct Sha256 {
    state: [u32; 8],
    /// Bytes of a block that is not whole yet.
    block: [u8; 64],
    /// Bytes so far.
    len_bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// Of no bytes yet.
    pub fn new() -> Self {
        Self { state: INITIAL, block: [0; 64], len_bytes: 0 }
    }

    /// Digests bytes in memory.
    pub fn digest(bytes: &[u8]) -> [u8; 32] {
        let mut hasher = Self::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill(bytes);
        let (blocks, rest) = bytes.as_chunks();
        dispatch::sha256(&mut self.state, blocks);
        self.keep(blocks.len(), rest);
    }

    /// The next bytes of two messages.
    pub fn update_both(one: (&mut Self, &[u8]), other: (&mut Self, &[u8])) {
        let ((a, a_bytes), (b, b_bytes)) = (one, other);
        let (a_bytes, b_bytes) = (a.fill(a_bytes), b.fill(b_bytes));
        let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a_bytes.as_chunks(), b_bytes.as_chunks());
        let both = a_blocks.len().min(b_blocks.len());
        dispatch::sha256_both([&mut a.state, &mut b.state], [&a_blocks[..both], &b_blocks[..both]]);
        dispatch::sha256(&mut a.state, &a_blocks[both..]);
        dispatch::sha256(&mut b.state, &b_blocks[both..]);
        a.keep(a_blocks.len(), a_rest);
        b.keep(b_blocks.len(), b_rest);
    }

    /// The digest of all bytes.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.len_bytes.wrapping_mul(8);
        // A one bit, and zeros until eight bytes are left of a block.
        let zeros = (64 + 55 - self.filled()) % 64;
        let mut padding = [0; 128];
        padding[0] = 0x80;
        let end = 1 + zeros + 8;
        padding[1 + zeros..end].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..end]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    /// Bytes of the block that is not whole yet.
    fn filled(&self) -> usize {
        (self.len_bytes % 64) as usize
    }

    /// Puts bytes to those of a block that is begun; returns the others, before which no block is begun unless
    /// there are none.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (own, rest) = bytes.split_at(bytes.len().min(64 - filled));
        self.block[filled..filled + own.len()].copy_from_slice(own);
        self.len_bytes += own.len() as u64;
        if self.filled() == 0 {
            dispatch::sha256(&mut self.state, &[self.block]);
        }
        rest
    }

    /// So many blocks were compressed, and `rest` comes after them.
    fn keep(&mut self, blocks: usize, rest: &[u8]) {
        self.len_bytes += 64 * blocks as u64 + rest.len() as u64;
        if !rest.is_empty() {
            self.block[..rest.len()].copy_from_slice(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;
    use crate::dispatch::{Level, with_at_most};

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8).collect()
    }

    fn oracle(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    fn at_every_level(check: impl Fn()) {
        for level in [Level::Portable, Level::Avx2, Level::Avx512] {
            with_at_most(level, &check);
        }
    }

    #[test]
    fn every_length_and_every_split() {
        let bytes = bytes(331);
        at_every_level(|| {
            for len in 0..=bytes.len() {
                let (message, expected) = (&bytes[..len], oracle(&bytes[..len]));
                for split in 0..=len {
                    let mut hasher = Sha256::new();
                    hasher.update(&message[..split]);
                    hasher.update(&message[split..]);
                    assert_eq!(hasher.finish(), expected, "{len} {split}");
                }
            }
        });
    }

    #[test]
    fn two_at_once_are_each_its_own() {
        let (first, second) = (bytes(777), bytes(3000));
        let second = &second[1..];
        at_every_level(|| {
            // Begun at any point of a block, with any number of bytes at once, of any length.
            for begun in (0..130).step_by(3) {
                for len in [0, 1, 63, 64, 65, 127, 128, 200, 640] {
                    let (mut a, mut b) = (Sha256::new(), Sha256::new());
                    a.update(&first[..begun]);
                    b.update(&second[..130 - begun]);
                    let b_end = 130 - begun + 3 * len;
                    Sha256::update_both(
                        (&mut a, &first[begun..begun + len]),
                        (&mut b, &second[130 - begun..b_end]),
                    );
                    Sha256::update_both((&mut b, &second[b_end..b_end + 70]), (&mut a, &[]));
                    assert_eq!(a.finish(), oracle(&first[..begun + len]), "{begun} {len}");
                    assert_eq!(b.finish(), oracle(&second[..b_end + 70]), "{begun} {len}");
                }
            }
        });
    }

    /// FIPS 180-4's examples.
    #[test]
    fn known_digests() {
        let hex = |digest: [u8; 32]| digest.map(|byte| format!("{byte:02x}")).concat();
        for (message, expected) in [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ] {
            assert_eq!(hex(Sha256::digest(message.as_bytes())), expected);
        }
    }
}
