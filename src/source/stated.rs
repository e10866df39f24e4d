//! Digests of local files that somebody has written down: a download's records, and links of a cache, which point
//! to blobs that are named as their content.

use std::path::{Path, PathBuf};

use super::{ContentDigest, LocalDirectory, Source};

/// What a file must be, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stated {
    /// The digest.
    pub(crate) digest: ContentDigest,
    /// The record, or the link's target.
    pub(crate) by: PathBuf,
}

/// What is stated about a file of `directory`; nothing about most.
pub(crate) fn stated(directory: &LocalDirectory, file: usize) -> Option<Stated> {
    linked(&directory.path(file)).or_else(|| recorded(directory, file))
}

fn linked(path: &Path) -> Option<Stated> {
    let target = std::fs::read_link(path).ok()?;
    let is_blob = target.parent()?.file_name()? == "blobs";
    let digest = ContentDigest::from_hex(target.file_name()?.to_str()?).filter(|_| is_blob)?;
    Some(Stated { digest, by: path.parent()?.join(target) })
}

fn recorded(directory: &LocalDirectory, file: usize) -> Option<Stated> {
    let file = &directory.files()[file];
    let by = super::hub::metadata_path(directory.root(), &file.name);
    let record = std::fs::read(&by).ok()?;
    let record = String::from_utf8_lossy(&record);
    let digest = ContentDigest::from_hex(record.lines().nth(1)?.trim())?;
    Some(Stated { digest, by })
}
