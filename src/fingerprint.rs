//! A fast digest (XXH3-128) of bytes that may have been damaged or replaced, but not by somebody who is out to
//! deceive: whether what was read or written once is still the same.

use twox_hash::xxhash3_128::Hasher;

/// Digests bytes that come in pieces.
pub(crate) struct Fingerprint(Hasher);

impl Fingerprint {
    /// Of no bytes yet.
    pub(crate) fn new() -> Self {
        Self(Hasher::new())
    }

    /// The next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The digest of all of them.
    pub(crate) fn finish(&self) -> u128 {
        self.0.finish_128()
    }

    /// Digests bytes in memory; `seed` keeps digests for different purposes apart.
    pub(crate) fn of(seed: u64, bytes: &[u8]) -> u128 {
        Hasher::oneshot_with_seed(seed, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..5000u32).map(|at| (at * 7 % 251) as u8).collect();
        let whole = Fingerprint::of(0, &bytes);
        for step in [1, 3, 64, 255, 256, 257, 1024, 4999] {
            let mut pieces = Fingerprint::new();
            bytes.chunks(step).for_each(|piece| pieces.update(piece));
            assert_eq!(pieces.finish(), whole, "{step}");
        }
        assert_ne!(Fingerprint::of(1, &bytes), whole);
        // XXH3_128bits of no bytes, as xxhsum -H2 prints it.
        assert_eq!(Fingerprint::new().finish(), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }
}
