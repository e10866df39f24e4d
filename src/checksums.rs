//! Holds files against digests that someone else states: a hub, records of a download, a list.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::inside;
use crate::pipeline::{Check, Progress};
use crate::source::hub::{Recorded, files_below, is_bookkeeping};
use crate::source::{ContentDigest, RemoteFile, file_digest_with};

mod sums;

pub(crate) use sums::parse_sums;
pub use sums::{looks_like_sums, read_sums};

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Name relative to the directory that is checked.
    pub name: String,
    /// Length, where it is stated.
    pub len_bytes: Option<u64>,
    /// Digest, or the text that was found instead of one.
    pub digest: std::result::Result<ContentDigest, String>,
}

impl From<&RemoteFile> for Expected {
    fn from(file: &RemoteFile) -> Self {
        Self { name: file.name.clone(), len_bytes: Some(file.len_bytes), digest: Ok(file.digest.clone()) }
    }
}

impl From<Recorded> for Expected {
    fn from(record: Recorded) -> Self {
        let digest = ContentDigest::from_hex(&record.etag).ok_or(record.etag);
        Self { name: record.name, len_bytes: None, digest }
    }
}

/// Checks the files below `root`; several are hashed at once.
///
/// What is wrong with a file, unreadable ones included, is in its [`Check`].
pub fn check(root: &Path, expected: &[Expected], progress: &dyn Progress) -> Vec<Check> {
    let found_bytes = |file: &Expected| root.join(&file.name).metadata().map_or(0, |metadata| metadata.len());
    progress.stage("verify", expected.iter().map(found_bytes).sum());
    let checks = expected.par_iter().map(|file| Check {
        file: file.name.clone(),
        problems: problem(&root.join(&file.name), file, progress).into_iter().collect(),
    });
    checks.collect()
}

/// Files below `root` that `expected` says nothing about.
///
/// # Errors
/// When a folder cannot be read.
pub fn unlisted(root: &Path, expected: &[Expected]) -> Result<Vec<String>> {
    let listed: BTreeSet<&str> = expected.iter().map(|file| file.name.trim_start_matches("./")).collect();
    let mut names = files_below(root)?;
    names.retain(|name| !listed.contains(name.as_str()) && !is_bookkeeping(name));
    Ok(names)
}

/// What is wrong with one file.
fn problem(path: &Path, expected: &Expected, progress: &dyn Progress) -> Option<String> {
    if !inside::is_below(&expected.name) {
        return Some("not checked: it lies outside of the directory that the list is for".to_owned());
    }
    let digest = match &expected.digest {
        Ok(digest) => digest,
        Err(text) => return Some(format!("cannot be checked: {text:?} is recorded, which is no digest")),
    };
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Some("missing".to_owned());
        }
        Err(error) => return Some(format!("cannot be read: {error}")),
    };
    if !metadata.is_file() {
        return Some("not a file".to_owned());
    }
    let found_bytes = metadata.len();
    match expected.len_bytes {
        Some(len_bytes) if found_bytes < len_bytes => {
            return Some(format!("truncated: found {found_bytes} bytes, expected {len_bytes}"));
        }
        Some(len_bytes) if found_bytes > len_bytes => {
            let extra = found_bytes - len_bytes;
            return Some(format!("{extra} bytes too long: found {found_bytes}, expected {len_bytes}"));
        }
        _ => {}
    }
    let found = file_digest_with(path, digest, &mut |bytes| {
        progress.advance(bytes.len() as u64);
        Ok(())
    });
    match found {
        Ok(found) if found == digest.hex() => None,
        Ok(found) => Some(format!("{}: found {found}, expected {}", digest.kind(), digest.hex())),
        Err(Error::Io { action, source, .. }) => Some(format!("cannot be read: {action} failed: {source}")),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}
