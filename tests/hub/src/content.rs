//! The bytes of a file that is served: in memory, on disk, or made up on demand.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes that can be read at any offset.
pub trait Content: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset` on; `offset + buffer.len()` is at most [`Content::len`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// True if there is not one byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in memory.
#[derive(Debug, Clone)]
pub struct Bytes(pub Vec<u8>);

impl Content for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| past_the_end())?;
        let end = start.checked_add(buffer.len()).ok_or_else(past_the_end)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or_else(past_the_end)?);
        Ok(())
    }
}

/// A file on disk, whose length is taken once.
#[derive(Debug, Clone)]
pub struct DiskFile {
    path: PathBuf,
    len: u64,
}

impl DiskFile {
    /// The file at `path`.
    pub fn open(path: &Path) -> io::Result<DiskFile> {
        Ok(DiskFile { path: path.to_path_buf(), len: std::fs::metadata(path)?.len() })
    }
}

impl Content for DiskFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

fn past_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of the content")
}
