//! Holds a result against its manifest and names what is wrong.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::manifest::{FileRecord, Manifest};
use super::names::{manifest_beside, manifest_path, partial, pending};
use super::{Progress, digest};
use crate::disk::{Disk, DiskFile, parent_of};
use crate::error::{Error, Result};
use crate::{inside, small};

/// What was found about one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// The file.
    pub file: String,
    /// Problems, one line each; none means the file is what the manifest says.
    pub problems: Vec<String>,
}

/// Checks the result at `output` (a file, a directory, or one file of a split set).
///
/// # Errors
/// When there is no manifest or something cannot be read; a difference is not an error but a
/// [`Check`] with problems.
pub fn verify(output: &Path, progress: &dyn Progress) -> Result<Vec<Check>> {
    let (manifest, base) = locate(output)?;
    // A run that was cut off while files got their names has left the manifest of the new ones as pending.
    let pending = pending(&manifest);
    let (is_old, is_pending) = (manifest.is_file(), pending.is_file());
    let mut found = None;
    if is_old {
        let of_old = checks(&Manifest::read(&manifest)?, &base, false, progress)?;
        if !is_pending || is_clean(&of_old) {
            return Ok(of_old);
        }
        found = Some(of_old);
    }
    let of_new = checks(&Manifest::read(&pending)?, &base, is_old, progress)?;
    Ok(if is_clean(&of_new) { of_new } else { found.unwrap_or(of_new) })
}

fn is_clean(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.problems.is_empty())
}

/// Holds every file of `manifest` against it. With `replaces`, files of a set that are still to take the place of
/// old ones count as well.
fn checks(manifest: &Manifest, base: &Path, replaces: bool, progress: &dyn Progress) -> Result<Vec<Check>> {
    let root = if manifest.is_directory { base } else { parent_of(base) };
    progress.stage("verify", manifest.files.iter().map(|file| file.bytes).sum());
    let lone = !manifest.is_directory && manifest.files.len() == 1;
    let checks = manifest.files.par_iter().map(|record| {
        // A single file may have been renamed together with its manifest.
        let named = if lone { base.to_owned() } else { root.join(&record.name) };
        let unnamed = partial(&named);
        let path = if replaces && !lone && unnamed.is_file() { unnamed } else { named };
        // What a link of the result leads to is no part of it; the file that was asked for may be one.
        let way_out = if lone { None } else { way_out(root, &path)? };
        let problems = match way_out {
            Some(problem) => vec![problem],
            None => check_file(manifest, record, &path)?,
        };
        progress.advance(record.bytes);
        Ok(Check { file: path.display().to_string(), problems })
    });
    checks.collect()
}

/// The manifest of the result at `output`, whatever state the result is in.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn manifest_of(output: &Path) -> Result<Manifest> {
    let (manifest, _) = locate(output)?;
    Manifest::read(&manifest)
}

/// Whether a manifest says what the result at `output` must be.
pub fn has_manifest(output: &Path) -> bool {
    locate(output).is_ok()
}

/// Finds the manifest of `output`; a member of a split set leads to the set's manifest.
fn locate(output: &Path) -> Result<(PathBuf, PathBuf)> {
    let is_there = |path: &Path| path.is_file() || pending(path).is_file();
    let direct = manifest_path(output);
    if is_there(&direct) {
        return Ok((direct, output.to_owned()));
    }
    if let Some(base) = split_base(output) {
        let of_set = manifest_beside(&base);
        if is_there(&of_set) {
            return Ok((of_set, base));
        }
    }
    if !output.exists() {
        return Err(Error::Request(format!("{}: no such file or directory", output.display())));
    }
    Err(Error::Request(format!(
        "{}: no manifest of it (looked for {}); a download is checked as a directory, other files with a list \
         as sha256sum writes it",
        output.display(),
        direct.display()
    )))
}

/// `dir/model-00002-of-00007.gguf` belongs to `dir/model.gguf`.
fn split_base(path: &Path) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(total) && is_number(number)).then(|| path.with_file_name(format!("{prefix}.gguf")))
}

/// The problem with a file that is a link to something outside of the result's directory.
fn way_out(root: &Path, path: &Path) -> Result<Option<String>> {
    match inside::leads_out(root, path) {
        Ok(target) => Ok(target.map(|target| {
            format!("not checked: it is a link to {}, outside of the result", target.display())
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "follow the link")(error)),
    }
}

/// Problems of one file.
fn check_file(manifest: &Manifest, record: &FileRecord, path: &Path) -> Result<Vec<String>> {
    match path.metadata() {
        Ok(metadata) => {
            if let Some(kind) = small::not_ordinary(&metadata) {
                return Ok(vec![format!("is {kind}, expected an ordinary file")]);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec!["missing".into()]),
        Err(error) => return Err(Error::io(path, "stat")(error)),
    }
    let file = Disk::default().open_to_read(path)?;
    let found_bytes = file.len_bytes()?;
    if found_bytes < record.bytes {
        let beyond = manifest
            .tensors
            .iter()
            .filter(|tensor| tensor.file == record.name && tensor.offset + tensor.bytes > found_bytes);
        let names: Vec<&str> = beyond.map(|tensor| tensor.name.as_str()).collect();
        let which = match names.as_slice() {
            [] => String::new(),
            [first, ..] => format!("; {} tensors cut off, first {first}", names.len()),
        };
        return Ok(vec![format!("truncated: found {found_bytes} bytes, expected {}{which}", record.bytes)]);
    }
    if found_bytes > record.bytes {
        let extra = found_bytes - record.bytes;
        return Ok(vec![format!("{extra} bytes too long: found {found_bytes}, expected {}", record.bytes)]);
    }
    let found = digest::range(&file, 0, found_bytes)?;
    if found == record.sha256 {
        return Ok(Vec::new());
    }
    let mut problems = vec![format!("sha256: found {found}, expected {}", record.sha256)];
    problems.extend(damaged_tensors(manifest, record, &file)?);
    Ok(problems)
}

/// Which tensors of a damaged file differ; when none does, the damage is in header or padding.
fn damaged_tensors(manifest: &Manifest, record: &FileRecord, file: &DiskFile) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut tensors = 0;
    for tensor in manifest.tensors.iter().filter(|tensor| tensor.file == record.name) {
        tensors += 1;
        let found = digest::range(file, tensor.offset, tensor.bytes)?;
        if found != tensor.sha256 {
            problems.push(format!(
                "tensor {} (bytes {} to {}): its data changed",
                tensor.name,
                tensor.offset,
                tensor.offset + tensor.bytes
            ));
        }
    }
    if problems.is_empty() && tensors > 0 {
        problems.push("every tensor is intact: the header or padding changed".into());
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_members_name_their_set() {
        let base = split_base(Path::new("a/m-00002-of-00007.gguf"));
        assert_eq!(base, Some(PathBuf::from("a/m.gguf")));
        assert_eq!(split_base(Path::new("a/m-2-of-7.gguf")), None);
        assert_eq!(split_base(Path::new("a/m.gguf")), None);
    }
}
