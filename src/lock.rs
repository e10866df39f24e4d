//! A lock file: one process at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Creates and locks the file at `path`; the lock is held until the handle is dropped.
///
/// # Errors
/// When another process holds it: `busy` is the message. When it cannot be created.
pub(crate) fn lock(path: &Path, busy: impl Fn() -> String) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path, "create"))?;
        match file.try_lock() {
            // Who held it may have removed the name between our opening and our locking.
            Ok(()) if is_named(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Request(busy())),
            Err(TryLockError::Error(error)) => return Err(Error::io(path, "lock")(error)),
        }
    }
}

/// Whether `path` leads to the file that is open.
fn is_named(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it_and_a_removed_name_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = lock(&path, || "busy".into()).unwrap();
        assert_eq!(lock(&path, || "busy".into()).unwrap_err().to_string(), "busy");
        std::fs::remove_file(&path).unwrap();
        let second = lock(&path, || "busy".into()).unwrap();
        drop(first);
        assert!(lock(&path, || "busy".into()).is_err());
        drop(second);
        lock(&path, || "busy".into()).unwrap();
    }
}
