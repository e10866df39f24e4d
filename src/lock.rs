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

/// Whether some process holds the lock file at `path` now.
pub(crate) fn is_held(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether a file system has no locks, or none that other machines see.
pub(crate) fn has_none(error: &Error) -> bool {
    use rustix::io::Errno;
    let offered = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK].map(Errno::raw_os_error);
    matches!(error, Error::Io { source, action: "lock", .. } if source.raw_os_error().is_some_and(|code| offered.contains(&code)))
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
        assert!(is_held(&path));
        drop(second);
        assert!(!is_held(&path) && !is_held(&directory.path().join("none")));
        lock(&path, || "busy".into()).unwrap();
    }

    #[test]
    fn a_file_system_without_locks_is_told_from_one_that_fails() {
        let error = |code| Error::io("lock", "lock")(std::io::Error::from_raw_os_error(code));
        // ENOSYS, EOPNOTSUPP, ENOLCK; EIO, EACCES.
        assert!([38, 95, 37].into_iter().all(|code| has_none(&error(code))));
        assert!(![5, 13].into_iter().any(|code| has_none(&error(code))));
    }
}
