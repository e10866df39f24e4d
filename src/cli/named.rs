//! What MODEL names: something on this machine, or a repository on the hub.

use std::path::Path;

use crate::error::{Error, Result};
use crate::source::hub::HubId;
use crate::source::store::StoreUrl;

/// Files with weights that PyTorch pickled.
const PICKLED: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];
/// Other files that people have on their disks; no repository's name ends so.
const OTHER_FILES: [&str; 3] = ["gguf", "safetensors", "json"];

/// The repository that `path` names, unless it is there, or looks like something that should be.
pub(super) fn hub_id(path: &Path) -> Option<HubId> {
    repository(path).filter(|_| path.symlink_metadata().is_err())
}

/// The repository that `path` names if it is none of a file, there or not.
pub(super) fn repository(path: &Path) -> Option<HubId> {
    let id = HubId::parse(path.to_str()?)?;
    let is_file = |extension: &str| ends_in(Path::new(&id.repo), extension);
    (!PICKLED.into_iter().chain(OTHER_FILES).any(is_file)).then_some(id)
}

/// The folder of an object store that `path` names.
///
/// # Errors
/// When it is not well formed, or is the name of a single file.
pub(super) fn store(path: &Path) -> Result<Option<StoreUrl>> {
    let Some(url) = path.to_str().map(StoreUrl::parse).transpose()?.flatten() else { return Ok(None) };
    if OTHER_FILES.into_iter().chain(PICKLED).any(|extension| ends_in(path, extension)) {
        let message = "a single file; of an object store, checkpoints are read: name the folder. Other files have to be copied to \
                       this machine first";
        return Err(Error::Request(format!("{}: {message}", path.display())));
    }
    Ok(Some(url))
}

/// Whether `path` is meant as a place on the network, whatever is there.
pub(super) fn is_on_network(path: &Path) -> bool {
    hub_id(path).is_some() || path.to_str().is_some_and(StoreUrl::is_meant)
}

/// Refuses to write to an object store, or to look for a result there.
///
/// # Errors
/// When `path` names one.
pub(super) fn not_in_store(path: &Path) -> Result<()> {
    let is_url = |text: &str| StoreUrl::is_meant(text) || text.starts_with("hf://");
    if !path.to_str().is_some_and(is_url) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{}: results are written to a file system, not to an object store or hub: name a path on this machine, or on a file system \
         that all machines share, and copy the finished result",
        path.display()
    )))
}

/// Refuses what is neither on this machine nor can be on the hub, without asking the hub, and files that cannot be
/// a model.
///
/// # Errors
/// Says what to name instead.
pub(super) fn check(path: &Path) -> Result<()> {
    let refuse = |message: &str| Err(Error::Request(format!("{}: {message}", path.display())));
    if path.to_str().is_some_and(StoreUrl::is_meant) {
        return refuse(
            "object stores are read by plan and convert; for this the model has to be on this machine",
        );
    }
    if path.symlink_metadata().is_err() {
        return match hub_id(path) {
            Some(_) => Ok(()),
            None => refuse("no such file or directory; a model on the hub is org/name[@revision]"),
        };
    }
    if path.metadata().is_err() {
        return refuse("a symbolic link to something that is not there");
    }
    if path.is_dir() {
        return Ok(());
    }
    if PICKLED.into_iter().any(|extension| ends_in(path, extension)) {
        return refuse(
            "weights pickled by PyTorch are not read, since unpickling can run code: save the model as safetensors \
             first (transformers: from_pretrained, then save_pretrained), and name the directory",
        );
    }
    // Files of a set are found by their names, as text.
    if ends_in(path, "gguf") && path.file_name().is_some_and(|name| name.to_str().is_none()) {
        return refuse("the name of the file is not UTF-8; rename it");
    }
    Ok(())
}

/// The same, for commands that read a checkpoint as a directory: says of a file that it is none.
///
/// # Errors
/// As [`check`].
pub(super) fn not_a_directory(path: &Path) -> Error {
    if ends_in(path, "safetensors") {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        return Error::Request(format!(
            "{}: one file of a checkpoint; name its directory, {}",
            path.display(),
            directory.display()
        ));
    }
    Error::Request(format!(
        "{}: neither a directory with a Hugging Face checkpoint, nor a .gguf file, nor a hub id such as org/name",
        path.display()
    ))
}

fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_local_is_no_repository() {
        for id in ["gpt2", "org/name", "org/name-v1.5@refs/pr/1", "a.b/c.d", "org/name.v2@abc"] {
            assert!(hub_id(Path::new(id)).is_some(), "{id}");
            check(Path::new(id)).unwrap();
        }
        for path in [
            "tiny/model-00001.safetensors",
            "tiny/m.gguf@main",
            "M.GGUF",
            "config.json",
            "org/pytorch_model.bin",
            "a/x.pt",
            "./nope",
            "../nope",
            "/abs/nope",
            "a/b/c",
            "nope/",
            "~/nope",
            "src",
        ] {
            assert_eq!(hub_id(Path::new(path)), None, "{path}");
        }
        let error = check(Path::new("tiny/x.safetensors")).unwrap_err().to_string();
        assert!(error.contains("tiny/x.safetensors: no such file"), "{error}");
    }
}
