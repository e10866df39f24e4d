//! The place of a result: what is there, whether it may be replaced, and what the result must stay away from.
//!
//! Nothing here writes. What may be replaced is a regular file by a file, and a directory that a manifest shows to be a
//! result, with nothing else in it, by a directory. Everything else is refused, whatever the user forces: a symbolic
//! link too, since it is not clear whether the link or its target is meant.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::manifest::Manifest;
pub use super::names::final_paths;
use super::names::{BESIDE, INSIDE, manifest_beside, manifest_inside};
use crate::disk::{parent_of, with_suffix};
use crate::error::{Error, Result};

/// Most names of files in a message.
const SHOWN: usize = 5;

/// Something that a result must not be, contain, lie in or replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is, for the message: `"the source"`, `"--recipe"`.
    pub what: &'static str,
    /// Where; it need not exist.
    pub path: PathBuf,
}

/// Refuses an output path that no result of this kind can have: its form, and the directory that it would lie in.
/// `kind` is for messages: `"mlx-4bit"`.
///
/// # Errors
/// Says what is wrong with it, and what to give instead.
pub fn check_path(output: &Path, is_directory: bool, kind: &str) -> Result<()> {
    let text = output.as_os_str().as_bytes();
    if text == b"-" {
        return refuse(
            output,
            "results are written to disk, not to standard output; ./- is a file of that name",
        );
    }
    if output.file_name().is_none() {
        return refuse(output, "not a name of its own; give the path of what is to be written");
    }
    if !is_directory && (text.ends_with(b"/") || text.ends_with(b"/.") || output.is_dir()) {
        let is = if output.is_dir() { "is a directory" } else { "names a directory" };
        let message = format!(
            "{is}, and a {kind} result is a file: name one in it, such as {}",
            output.join(format!("model-{kind}.gguf")).display()
        );
        return refuse(output, &message);
    }
    check_parent(output)
}

/// The directory that `output` would lie in can be written to.
fn check_parent(output: &Path) -> Result<()> {
    let parent = parent_of(output);
    let found = match parent.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            use rustix::fs::{Access, access};
            let Err(error) = access(parent, Access::WRITE_OK | Access::EXEC_OK) else { return Ok(()) };
            format!("cannot write to the directory {}: {}", parent.display(), std::io::Error::from(error))
        }
        Ok(_) => format!("{} is not a directory", parent.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("the directory {} does not exist; make it first", parent.display())
        }
        Err(error) => format!("cannot look at the directory {}: {error}", parent.display()),
    };
    refuse(output, &found)
}

/// Whether all of `paths`, the final paths of a result, are free, or may be replaced by it.
///
/// # Errors
/// Names the first where something is that is not replaced, forced or not.
pub fn check_replaceable(paths: &[PathBuf], is_directory: bool) -> Result<()> {
    paths.iter().try_for_each(|path| found(path, is_directory).map(|_| ()))
}

/// Whether all of `paths`, the final paths of a result, are free, or may be replaced and are to be.
///
/// # Errors
/// Names the first that is there and is not to be replaced without `force`, or cannot be with it.
pub fn check_replace(output: &Path, paths: &[PathBuf], is_directory: bool, force: bool) -> Result<()> {
    for path in paths {
        if found(path, is_directory)? == There::Replaceable && !force {
            return Err(Error::Request(format!("{} exists; --force replaces it", path.display())));
        }
    }
    match other_result(output, paths) {
        Some(other) if !is_directory && !force => Err(Error::Request(format!(
            "{} is the manifest of {}; --force replaces it, and leaves that file without one",
            manifest_beside(output).display(),
            other.display()
        ))),
        _ => Ok(()),
    }
}

/// A file that is there and whose manifest a result with the final paths `paths` would replace.
fn other_result(output: &Path, paths: &[PathBuf]) -> Option<PathBuf> {
    let place = manifest_beside(output);
    let manifest = place.is_file().then(|| Manifest::read(&place).ok()).flatten()?;
    let files = manifest.files.iter().map(|file| output.with_file_name(&file.name));
    let is_other = |file: &PathBuf| !paths.contains(file) && file.symlink_metadata().is_ok();
    files.into_iter().filter(|_| !manifest.is_directory).find(is_other)
}

/// What is at a path that may be written to.
#[derive(Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Replaceable,
}

/// [`there`], as an error of this crate.
fn found(path: &Path, is_directory: bool) -> Result<There> {
    there(path, is_directory).map_err(|found| Error::Request(format!("-o {}: {found}", path.display())))
}

/// What is at `path`; when it may never be replaced by a result of this kind, what it is and what to do.
fn there(path: &Path, is_directory: bool) -> std::result::Result<There, String> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(There::Nothing),
        Err(error) => return Err(format!("cannot look at it: {error}")),
    };
    if metadata.is_symlink() {
        let target = std::fs::read_link(path).unwrap_or_default();
        return Err(format!(
            "exists and is a symbolic link to {}; links are not replaced: name its target itself, or remove the link",
            target.display()
        ));
    }
    match (metadata.is_file(), metadata.is_dir(), is_directory) {
        (true, _, false) => Ok(There::Replaceable),
        (true, _, true) => {
            Err("exists and is a file; the result is a directory: name another place, or remove the file"
                .into())
        }
        (_, true, false) => {
            Err("exists and is a directory; the result is a file: name a file in it, or another place".into())
        }
        (_, true, true) => is_result(path).map(|()| There::Replaceable),
        _ => Err("exists and is neither a file nor a directory: name another place".into()),
    }
}

/// Whether a manifest shows the directory at `path` to be a result, and nothing else is in it.
fn is_result(path: &Path) -> std::result::Result<(), String> {
    let inside = manifest_inside(path);
    let (place, is_inside) =
        if inside.symlink_metadata().is_ok() { (inside, true) } else { (manifest_beside(path), false) };
    let wanted = "only a directory that a manifest shows to be a result of requant is replaced: remove it yourself, or \
                  name another place";
    if !place.is_file() {
        return Err(format!("exists and is a directory without {INSIDE}; {wanted}"));
    }
    let manifest = match Manifest::read(&place) {
        Ok(manifest) if manifest.is_directory => manifest,
        Ok(_) => {
            return Err(format!(
                "exists and is a directory, and {} is about a file; {wanted}",
                place.display()
            ));
        }
        Err(error) => {
            return Err(format!(
                "exists and is a directory whose manifest cannot be used ({error}); {wanted}"
            ));
        }
    };
    let mut found = Vec::new();
    files_below(path, Path::new(""), &mut found)
        .map_err(|error| format!("exists and is a directory that cannot be listed: {error}"))?;
    let listed: BTreeSet<&Path> = manifest.files.iter().map(|file| Path::new(&file.name)).collect();
    let is_ours = |(name, metadata): &(PathBuf, Metadata)| {
        // A manifest beside the directory may have been left there by another one of that name.
        let bytes = manifest.files.iter().find(|file| Path::new(&file.name) == name).map(|file| file.bytes);
        let is_listed = listed.contains(name.as_path()) && (is_inside || bytes == Some(metadata.len()));
        metadata.is_file() && (is_listed || name == Path::new(INSIDE))
    };
    let others: Vec<String> =
        found.iter().filter(|found| !is_ours(found)).map(|(name, _)| name.display().to_string()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let more = match others.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = others[..others.len().min(SHOWN)].join(", ");
    Err(format!(
        "exists and holds what its manifest does not list as it is ({shown}{more}): move that elsewhere first, or name another \
         place"
    ))
}

/// Everything below `root` that is no directory with something in it: relative name, and what it is.
fn files_below(root: &Path, folder: &Path, found: &mut Vec<(PathBuf, Metadata)>) -> std::io::Result<()> {
    let mut entries: Vec<OsString> = Vec::new();
    for entry in std::fs::read_dir(root.join(folder))? {
        entries.push(entry?.file_name());
    }
    entries.sort();
    for name in entries {
        let name = folder.join(name);
        let metadata = root.join(&name).symlink_metadata()?;
        let before = found.len();
        if metadata.is_dir() {
            files_below(root, &name, found)?;
        }
        if found.len() == before {
            found.push((name, metadata));
        }
    }
    Ok(())
}

/// What of `kept` `path` is, under whatever name.
pub fn is_one_of<'a>(path: &Path, kept: &'a [Kept]) -> Option<&'a Kept> {
    let place = Place::of(path);
    kept.iter().find(|kept| place.is(&Place::of(&kept.path)))
}

/// What of `kept` `path` is or lies in, under whatever name.
pub fn is_in_one_of<'a>(path: &Path, kept: &'a [Kept]) -> Option<&'a Kept> {
    let place = Place::of(path);
    let holds = |at: &Place| place.is(at) || place.is_in(at);
    kept.iter().find(|kept| holds(&Place::of(&kept.path)))
}

/// Refuses a result that is, contains, lies in or aliases anything of `kept`, and one whose temporary files would be
/// one of them. `paths` are the final paths.
///
/// # Errors
/// Says which.
pub fn check_apart(output: &Path, paths: &[PathBuf], kept: &[Kept]) -> Result<()> {
    let kept: Vec<(&Kept, Place)> = kept.iter().map(|kept| (kept, Place::of(&kept.path))).collect();
    let finals = [output.to_owned()].into_iter().chain(paths.iter().cloned());
    for path in finals.collect::<BTreeSet<PathBuf>>() {
        let place = Place::of(&path);
        for (kept, at) in &kept {
            let relation = if place.is(at) {
                "is"
            } else if at.is_in(&place) {
                "contains"
            } else if place.is_in(at) {
                "lies inside"
            } else {
                continue;
            };
            let message = format!("{relation} {} ({}); name another place", kept.what, kept.path.display());
            return Err(Error::Request(format!("-o {}: {message}", path.display())));
        }
        for suffix in BESIDE {
            let beside = with_suffix(&path, suffix);
            let place = Place::of(&beside);
            if let Some((kept, _)) = kept.iter().find(|(_, at)| place.is(at) || at.is_in(&place)) {
                return Err(Error::Request(format!(
                    "-o {}: a run keeps files of its own at {}, and there is {} ({}); name another place",
                    path.display(),
                    beside.display(),
                    kept.what,
                    kept.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// A path, and who else it may be.
struct Place {
    /// Without links, `.` and `..`, as far as it exists.
    resolved: PathBuf,
    /// Device and number of it, if it exists and of each directory that it lies in, innermost first.
    nodes: Vec<Option<(u64, u64)>>,
}

impl Place {
    fn of(path: &Path) -> Self {
        let resolved = resolve(path);
        let node = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let nodes = resolved.ancestors().map(node).collect();
        Self { resolved, nodes }
    }

    /// Whether both are the same: one path, or one file with several names (hard links, mounts, file systems that
    /// take `A` for `a`).
    fn is(&self, other: &Self) -> bool {
        let node = self.nodes.first().copied().flatten();
        self.resolved == other.resolved || node.is_some() && node == other.nodes.first().copied().flatten()
    }

    /// Whether it lies in `other`, however far down.
    fn is_in(&self, other: &Self) -> bool {
        let node = other.nodes.first().copied().flatten();
        let is_below = self.resolved != other.resolved && self.resolved.starts_with(&other.resolved);
        is_below || node.is_some() && self.nodes.iter().skip(1).any(|&above| above == node)
    }
}

/// The path without links, `.` and `..`: of what does not exist, the part that does.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(resolved) = path.canonicalize() {
        return resolved;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut missing = Vec::new();
    let mut rest = absolute.as_path();
    while let Some(above) = rest.parent() {
        missing.extend(rest.components().next_back());
        rest = above;
        if let Ok(resolved) = rest.canonicalize() {
            return missing.iter().rev().fold(resolved, |mut path, component| {
                match component {
                    // Nothing that exists is left behind by these: what they follow does not exist.
                    Component::ParentDir => {
                        path.pop();
                    }
                    component => path.push(component),
                }
                path
            });
        }
    }
    absolute
}

fn refuse(output: &Path, message: &str) -> Result<()> {
    Err(Error::Request(format!("-o {}: {message}", output.display())))
}
