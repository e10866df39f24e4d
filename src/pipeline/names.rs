//! Every path of a run.
//!
//! ```text
//! OUTPUT                        the result: a file, or a directory; of a split set, the files beside it
//! OUTPUT.manifest.json          what a file or split set must be; a directory has DIR/requant.manifest.json
//! OUTPUT.partial                the same, unfinished (of a split set FILE.partial for each)
//! OUTPUT.journal                which jobs of it are done
//! OUTPUT.manifest.json.pending  the manifest, while files get their names
//! OUTPUT.replaced               an old directory that makes room for the new one, for a moment
//! OUTPUT.walk                   how far a calibration has come (`model/saved.rs`)
//! OUTPUT.view                   links to the unfinished files under their final names, while they are measured
//! OUTPUT.lock                   held while a run writes
//! OUTPUT.shares                 what several machines need to write one result together (see `shares/folder.rs`)
//! ```

use std::path::{Path, PathBuf};

use crate::disk::with_suffix;
use crate::plan::{Blueprint, OutputFile};

/// The manifest inside a directory.
pub(crate) const INSIDE: &str = "requant.manifest.json";

/// What follows the name of a result in those of what a run puts beside it, and may remove there.
pub(super) const BESIDE: [&str; 11] = [
    ".partial",
    ".journal",
    ".lock",
    ".shares",
    ".replaced",
    ".spool",
    ".view",
    ".walk",
    ".walk.new",
    ".manifest.json",
    ".manifest.json.pending",
];

/// A file or directory that gets its final name when it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) temporary: PathBuf,
    pub(super) final_path: PathBuf,
}

/// The paths of one run.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) output: PathBuf,
    pub(super) is_directory: bool,
    /// The directory, or each file.
    pub(super) pairs: Vec<Pair>,
}

impl Names {
    /// Of a run that writes what `blueprint` describes at `output`.
    pub(super) fn new(blueprint: &Blueprint, output: &Path) -> Self {
        let finals = final_paths(blueprint, output);
        let pair = |final_path: PathBuf| Pair { temporary: partial(&final_path), final_path };
        let pairs = finals.into_iter().map(pair).collect();
        Self { output: output.to_owned(), is_directory: blueprint.is_directory, pairs }
    }

    /// Temporary path of each file with tensors.
    pub(super) fn files(&self, blueprint: &Blueprint) -> Vec<PathBuf> {
        if self.is_directory {
            let directory = &self.pairs[0].temporary;
            blueprint.files.iter().map(|file| directory.join(&file.name)).collect()
        } else {
            self.pairs.iter().map(|pair| pair.temporary.clone()).collect()
        }
    }

    pub(super) fn manifest(&self) -> PathBuf {
        if self.is_directory { manifest_inside(&self.output) } else { manifest_beside(&self.output) }
    }

    /// Where the manifest is until it has its final name. That of a directory moves with the directory.
    pub(super) fn pending_manifest(&self) -> PathBuf {
        if self.is_directory {
            manifest_inside(&self.pairs[0].temporary)
        } else {
            pending(&manifest_beside(&self.output))
        }
    }

    pub(super) fn journal(&self) -> PathBuf {
        journal(&self.output)
    }

    pub(super) fn lock(&self) -> PathBuf {
        lock(&self.output)
    }

    pub(super) fn replaced(&self) -> PathBuf {
        with_suffix(&self.output, ".replaced")
    }

    pub(super) fn walk(&self) -> PathBuf {
        walk(&self.output)
    }

    pub(super) fn view(&self) -> PathBuf {
        with_suffix(&self.output, ".view")
    }
}

/// Final path of each thing that a run gives a name: the directory, or each file.
pub fn final_paths(blueprint: &Blueprint, output: &Path) -> Vec<PathBuf> {
    if blueprint.is_directory {
        return vec![output.to_owned()];
    }
    let name_of = |file: &OutputFile| {
        if file.name.is_empty() { output.to_owned() } else { output.with_file_name(&file.name) }
    };
    blueprint.files.iter().map(name_of).collect()
}

/// The manifest of a result that is a directory.
pub(super) fn manifest_inside(directory: &Path) -> PathBuf {
    directory.join(INSIDE)
}

/// The manifest of a file or split set; of a directory that an earlier version wrote, too.
pub(super) fn manifest_beside(output: &Path) -> PathBuf {
    with_suffix(output, ".manifest.json")
}

/// Where the manifest of the result at `output` is, or would be: in a directory, beside a file.
pub fn manifest_path(output: &Path) -> PathBuf {
    let (inside, beside) = (manifest_inside(output), manifest_beside(output));
    if output.is_dir() && (inside.is_file() || !beside.is_file()) { inside } else { beside }
}

/// What the manifest at `path` is called while files get their names.
pub(super) fn pending(path: &Path) -> PathBuf {
    with_suffix(path, ".pending")
}

/// What the file or directory at `path` is called while it is unfinished.
pub(super) fn partial(path: &Path) -> PathBuf {
    with_suffix(path, ".partial")
}

/// The journal of an unfinished `output`.
pub(super) fn journal(output: &Path) -> PathBuf {
    with_suffix(output, ".journal")
}

/// How far a calibration that writes `output` has come.
pub(crate) fn walk(output: &Path) -> PathBuf {
    with_suffix(output, ".walk")
}

/// Held while a run writes `output`.
pub(super) fn lock(output: &Path) -> PathBuf {
    with_suffix(output, ".lock")
}

/// What several machines that write `output` together keep beside it.
pub(super) fn shares(output: &Path) -> PathBuf {
    with_suffix(output, ".shares")
}
