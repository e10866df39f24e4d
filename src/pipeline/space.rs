//! Whether the disk has room for a result, before anything is written.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes that are going to be written below `directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What for, for the message: `"the result"`.
    pub what: &'static str,
    /// Where; the nearest directory above it that exists counts.
    pub directory: PathBuf,
    /// How many.
    pub bytes: u64,
}

/// The way out of commands that have `--force`.
pub const OR_FORCE: &str = "make room, name another place, or go ahead all the same with --force";

/// Refuses when a file system has less room than the needs on it add up to.
///
/// # Errors
/// Names the place, what is needed and what is free, and the `way_out`.
pub fn check_space(needs: &[Need], way_out: &str) -> Result<()> {
    let mut by_device: BTreeMap<u64, (&Path, u64, Vec<String>)> = BTreeMap::new();
    for need in needs {
        let Some(existing) = need.directory.ancestors().find(|path| path.is_dir()) else { continue };
        let device = existing.metadata().map_err(Error::io(existing, "stat"))?.dev();
        let entry = by_device.entry(device).or_insert((existing, 0, Vec::new()));
        entry.1 += need.bytes;
        entry.2.push(format!("{} {} bytes", need.what, need.bytes));
    }
    for (path, bytes, reasons) in by_device.into_values() {
        let stat = rustix::fs::statvfs(path).map_err(|error| Error::io(path, "statvfs")(error.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free_bytes < bytes {
            return Err(Error::Request(format!(
                "{}: {free_bytes} bytes are free, {bytes} are needed ({}); {way_out}",
                path.display(),
                reasons.join(", ")
            )));
        }
    }
    Ok(())
}

/// Bytes that a file or directory takes on the disk already; 0 if it is not there.
pub fn allocated_bytes(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.blocks() * 512;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| allocated_bytes(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_on_one_file_system_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let stat = rustix::fs::statvfs(directory.path()).unwrap();
        let most = stat.f_blocks * stat.f_frsize;
        let need = |bytes| Need { what: "half", directory: directory.path().join("not/there"), bytes };
        check_space(&[need(1)], "leave").unwrap();
        let error = check_space(&[need(most / 2 + 1), need(most / 2 + 1)], "leave").unwrap_err().to_string();
        assert!(error.contains("leave") && error.contains("half"), "{error}");
    }
}
