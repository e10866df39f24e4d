//! A door for the fuzz targets in `fuzz/`: parsers that are nobody else's business.

use std::io::Write;
use std::path::Path;

use crate::checksums::{self, Expected};
use crate::error::{Error, Result};
use crate::pipeline::{self, Manifest};
use crate::plan;
use crate::source::{RemoteFile, hub};

/// The front matter of a model card, and the `general.*` metadata that follow from it: how many keys.
///
/// # Errors
/// As planning a GGUF file.
pub fn front_matter(card: &[u8]) -> Result<usize> {
    plan::general_metadata(card)
}

/// A list of checksums.
///
/// # Errors
/// As [`checksums::read_sums`].
pub fn sums(list: &[u8]) -> Result<Vec<Expected>> {
    checksums::parse_sums("list", list)
}

/// A manifest.
///
/// # Errors
/// As [`Manifest::read`].
pub fn manifest(bytes: &[u8]) -> Result<Manifest> {
    Manifest::parse(bytes, Path::new("manifest"))
}

/// A journal: how many jobs of ten are done.
///
/// # Errors
/// As resuming a run.
pub fn journal(bytes: &[u8]) -> Result<usize> {
    let mut file = tempfile::NamedTempFile::new().map_err(Error::io("journal", "create"))?;
    file.write_all(bytes).map_err(Error::io("journal", "write"))?;
    pipeline::resumed_jobs(file.path())
}

/// A page of a hub's listing.
///
/// # Errors
/// As opening a repository.
pub fn listing(page: &[u8]) -> Result<Vec<RemoteFile>> {
    hub::parse_listing(page)
}
