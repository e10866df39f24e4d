//! Hashing content the way a hub states it: SHA-256, or git's blob id.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::ContentDigest;
use crate::error::{Error, Result};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Hashes content that arrives in order.
#[derive(Debug, Clone)]
pub struct ContentHasher(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl ContentHasher {
    /// A hasher of the kind of `digest` for content of `len_bytes`, which git's header states.
    pub fn new(digest: &ContentDigest, len_bytes: u64) -> Self {
        match digest {
            ContentDigest::Sha256(_) => Self(Kind::Sha256(Sha256::new())),
            ContentDigest::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {len_bytes}\0"));
                Self(Kind::GitBlob(hasher))
            }
        }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Kind::Sha256(hasher) => hasher.update(bytes),
            Kind::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Lower-case hex of all that was hashed.
    pub fn finish(self) -> String {
        match self.0 {
            Kind::Sha256(hasher) => hex(&hasher.finalize()),
            Kind::GitBlob(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// Digest, of the kind of `kind`, of the file at `path` as it is now; compare with `kind.hex()`.
///
/// # Errors
/// When the file cannot be read.
pub fn file_digest(path: &Path, kind: &ContentDigest) -> Result<String> {
    file_digest_with(path, kind, &mut |_| Ok(()))
}

/// As [`file_digest`]; `on_bytes` sees every piece that was read, and its error ends the reading.
///
/// # Errors
/// As there, and that of `on_bytes`.
pub fn file_digest_with(
    path: &Path,
    kind: &ContentDigest,
    on_bytes: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let len_bytes = file.metadata().map_err(Error::io(path, "stat"))?.len();
    let mut hasher = ContentHasher::new(kind, len_bytes);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(len) => {
                hasher.update(&buffer[..len]);
                on_bytes(&buffer[..len])?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, "read")(error)),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`; the empty blob as well.
    #[test]
    fn known_digests() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = ContentDigest::Sha256(String::new());
        let git = ContentDigest::GitBlob(String::new());
        for (content, kind, expected) in [
            ("hello\n", &sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
            ("hello\n", &git, "ce013625030ba8dba906f756967f9e9ca394464a"),
            ("", &git, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ] {
            let path = dir.path().join("file");
            std::fs::write(&path, content).unwrap();
            assert_eq!(file_digest(&path, kind).unwrap(), expected);
            let mut hasher = ContentHasher::new(kind, content.len() as u64);
            content.as_bytes().chunks(2).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), expected);
        }
    }
}
