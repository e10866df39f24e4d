//! What people and programs write down: model cards, recipes, lists, records of runs, answers of a hub.

use std::path::Path;

use requant::disk::Disk;
use requant::fuzzing;
use requant::imatrix::Imatrix;
use requant::plan::Rules;
use requant::source::Spool;

/// A model card either is refused, or metadata can be made of it.
pub(crate) fn front_matter(bytes: &[u8]) {
    let _ = fuzzing::front_matter(bytes);
}

/// A recipe either is refused, or what is written from it reads back the same.
pub(crate) fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("recipe.toml");
    let Ok(rules) = Rules::from_toml(path, text) else { return };
    match Rules::from_toml(path, &rules.to_toml("q4_k_m")) {
        Ok(again) => {
            let plain = |rules: &Rules| -> Vec<_> {
                rules.iter().map(|rule| (rule.target.as_str().to_owned(), rule.choice.clone())).collect()
            };
            assert_eq!(plain(&again), plain(&rules));
        }
        Err(error) => panic!("what was written cannot be read: {error}"),
    }
}

/// A list of checksums either is refused, or names files.
pub(crate) fn sums(bytes: &[u8]) {
    for file in fuzzing::sums(bytes).into_iter().flatten() {
        assert!(!file.name.is_empty());
    }
}

/// A manifest either is refused, or speaks of bytes in files of its own.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = fuzzing::manifest(bytes) else { return };
    for file in &manifest.files {
        assert!(!file.name.starts_with('/') && !file.name.split('/').any(|part| part == ".."));
    }
    for tensor in &manifest.tensors {
        let Some(file) = manifest.files.iter().find(|file| file.name == tensor.file) else {
            panic!("{} is in no file", tensor.name);
        };
        assert!(tensor.offset + tensor.bytes <= file.bytes);
    }
}

/// A journal either is refused, or can be gone on with.
pub(crate) fn journal(bytes: &[u8]) {
    let _ = fuzzing::journal(bytes);
}

/// What a spool has kept of a shard either counts, or counts as not kept: neither stops a run.
pub(crate) fn kept(bytes: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { return };
    let kept = directory.path().join("kept");
    if std::fs::create_dir(&kept).is_err() || std::fs::write(kept.join("one"), bytes).is_err() {
        return;
    }
    if let Err(error) = Spool::open(&Disk::default(), directory.path(), 0) {
        panic!("a kept file stops a run: {error}");
    }
}

/// An importance matrix either is refused, or has a number that is not below zero for every column.
pub(crate) fn imatrix(bytes: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { return };
    let path = directory.path().join("imatrix");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let Ok(imatrix) = Imatrix::open(&path) else { return };
    for name in imatrix.names() {
        let Some(len) = imatrix.len(name) else { panic!("{name} is named and has nothing") };
        match imatrix.importance(name, 0..len) {
            Ok(values) => {
                assert_eq!(values.len(), len, "{name}");
                assert!(values.iter().all(|value| *value >= 0.0), "{name}");
            }
            Err(error) => panic!("what was opened cannot be read: {error}"),
        }
    }
}

/// A page of a hub's listing either is refused, or names files below a folder of ours.
pub(crate) fn listing(bytes: &[u8]) {
    for file in fuzzing::listing(bytes).into_iter().flatten() {
        assert!(!file.name.starts_with('/') && !file.name.split('/').any(|part| part == ".."));
    }
}
