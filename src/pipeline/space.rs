//! Whether the disk has room for a result, before anything is written.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::human::human;

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

/// The way out, for commands that let the user name the place.
pub const OR_IGNORE_SPACE: &str =
    "make room, name another place, or go ahead all the same with --ignore-space";

/// Refuses when a file system has less room than the needs on it add up to.
///
/// # Errors
/// Names the place, what is needed and what is free, and the `way_out`.
pub fn check_space(needs: &[Need], way_out: &str) -> Result<()> {
    let mut by_device: BTreeMap<u64, (&Path, u64, Vec<String>)> = BTreeMap::new();
    for need in needs {
        // The last ancestor of a relative path is the empty one, which stands for the current directory.
        let ancestors = need.directory.ancestors();
        let existing = ancestors.map(or_here).find(|path| path.is_dir());
        let Some(existing) = existing else { continue };
        let device = existing.metadata().map_err(Error::io(existing, "stat"))?.dev();
        let entry = by_device.entry(device).or_insert((existing, 0, Vec::new()));
        entry.1 = entry.1.saturating_add(need.bytes);
        entry.2.push(format!("{} {}", need.what, human(need.bytes)));
    }
    for (path, bytes, reasons) in by_device.into_values() {
        let stat = rustix::fs::statvfs(path).map_err(|error| Error::io(path, "statvfs")(error.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free_bytes < bytes {
            return Err(Error::Request(format!(
                "{}: {} are free, {} are needed ({}): {} are missing; {way_out}",
                path.display(),
                human(free_bytes),
                human(bytes),
                reasons.join(", "),
                human(bytes - free_bytes)
            )));
        }
    }
    Ok(())
}

/// `path`, or the current directory for the empty path.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
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
        assert!(
            error.contains("leave") && error.contains(&format!("half {}", human(most / 2 + 1))),
            "{error}"
        );
        check_space(&[need(u64::MAX), need(u64::MAX)], "leave").unwrap_err();
        // A relative place that is not there yet lies below the current directory.
        let here = Need { what: "all", directory: "not/there/yet".into(), bytes: u64::MAX };
        check_space(&[here], "leave").unwrap_err();
    }
}
