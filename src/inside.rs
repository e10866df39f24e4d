//! Names that other people's lists give to files: they must stay below the list's directory.

use std::path::{Component, Path, PathBuf};

/// Whether `name` is relative, not empty, and goes up nowhere.
pub(crate) fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Where `path`, an existing file of `root`, leads to if that is outside of `root`. Links of a snapshot in the Hugging
/// Face cache lead to the blobs beside it, and count as inside.
///
/// # Errors
/// When a link cannot be followed.
pub(crate) fn leads_out(root: &Path, path: &Path) -> std::io::Result<Option<PathBuf>> {
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let (root, target) = (root.canonicalize()?, path.canonicalize()?);
    let snapshots = root.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    let is_inside = target.starts_with(&root) || blobs.is_some_and(|blobs| target.starts_with(blobs));
    Ok((!is_inside).then_some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_a_directory() {
        for name in ["a", "a/b", "./a", "a..b", "..a", "a/.../b"] {
            assert!(is_below(name), "{name}");
        }
        for name in ["", "/", "/etc/passwd", "..", "../a", "a/../../b", "a/..", "//a"] {
            assert!(!is_below(name), "{name}");
        }
    }

    #[test]
    fn links_out_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("snapshots").join("0123");
        let blobs = directory.path().join("blobs");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(root.join("own"), "").unwrap();
        std::fs::write(blobs.join("blob"), "").unwrap();
        std::fs::write(directory.path().join("other"), "").unwrap();
        for (name, target) in [("in", "own"), ("cached", "../../blobs/blob"), ("out", "../../other")] {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        for name in ["own", "in", "cached"] {
            assert_eq!(leads_out(&root, &root.join(name)).unwrap(), None, "{name}");
        }
        let out = leads_out(&root, &root.join("out")).unwrap().unwrap();
        assert!(out.ends_with("other"));
    }
}
