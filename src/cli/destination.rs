//! `-o`: where a result goes, checked before any work.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use requant_formats::container::gguf::split;

use super::{model, named};
use crate::error::{Error, Result};
use crate::opened;
use crate::pipeline;
use crate::pipeline::output::{self, Kept};
use crate::plan::{self, Blueprint};

mod unnamed;

/// A place that a result can have.
pub(super) struct Destination {
    /// The path, without a slash at its end.
    pub(super) path: PathBuf,
    kept: Vec<Kept>,
    force: bool,
    /// Whether an unfinished run left something to go on with: what has its final name may be that run's.
    goes_on: bool,
}

impl Destination {
    /// That of `-o`, for a result of the format of `--to`, or for a share of it.
    ///
    /// # Errors
    /// When no result of the kind can be there, or it would be, contain, lie in or alias what the command reads.
    pub(super) fn new(matches: &ArgMatches, is_share: bool) -> Result<Self> {
        let format = matches.get_one::<String>("to").map_or("", String::as_str);
        let is_directory = plan::is_directory(format)?;
        let given = given(matches)?;
        named::not_in_store(&given)?;
        output::check_path(&given, is_directory, &format.to_lowercase())?;
        if !is_directory && given.file_name().is_some_and(|name| name.to_str().is_none()) {
            let message =
                "the name is not UTF-8, and GGUF files are found by their names as text; name another";
            return Err(Error::Request(format!("-o {}: {message}", given.display())));
        }
        let path = path(matches)?;
        let kept = kept(matches)?;
        output::check_apart(&path, &[], &kept)?;
        // Whether a share may go on is for the shares to know.
        let goes_on = is_share || !matches.get_flag("restart") && pipeline::unfinished(&path).is_some();
        let destination = Self { path, kept, force: matches.get_flag("force"), goes_on };
        if is_directory || !matches.contains_id("split-max-size") {
            destination.check_replace(std::slice::from_ref(&destination.path), is_directory)?;
        }
        Ok(destination)
    }

    /// What the command reads, and the result.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let own = Kept { what: "the result", path: self.path.clone() };
        [own].into_iter().chain(self.kept.clone()).collect()
    }

    /// The same for every file of the result, now that they are known.
    ///
    /// # Errors
    /// As [`Destination::new`].
    pub(super) fn check(&self, blueprint: &Blueprint) -> Result<()> {
        let paths = output::final_paths(blueprint, &self.path);
        output::check_apart(&self.path, &paths, &self.kept)?;
        self.check_replace(&paths, blueprint.is_directory)
    }

    fn check_replace(&self, paths: &[PathBuf], is_directory: bool) -> Result<()> {
        if self.goes_on {
            return output::check_replaceable(paths, is_directory);
        }
        output::check_replace(&self.path, paths, is_directory, self.force)
    }
}

/// The path of `-o` as its components give it, or the name that a result has without it: no slash at the end, no dots between.
///
/// # Errors
/// When none is given and MODEL gives none.
pub(super) fn path(matches: &ArgMatches) -> Result<PathBuf> {
    Ok(given(matches)?.components().collect())
}

/// The path of `-o` as it is written.
fn given(matches: &ArgMatches) -> Result<PathBuf> {
    let format = matches.get_one::<String>("to").map_or("", String::as_str);
    let given = matches.get_one::<PathBuf>("output").cloned();
    given.map_or_else(|| unnamed::path(super::path(matches, "MODEL"), format), Ok)
}

/// What the command reads, and where it keeps what it reads.
fn kept(matches: &ArgMatches) -> Result<Vec<Kept>> {
    let model = super::path(matches, "MODEL");
    let mut kept = of_model(model);
    for (what, option) in [
        ("the text of --validate", "validate"),
        ("the recipe", "recipe"),
        ("the importance matrix", "imatrix"),
    ] {
        kept.extend(matches.get_one::<PathBuf>(option).map(|path| Kept { what, path: path.clone() }));
    }
    let what = "the file of --save-recipe";
    kept.extend(matches.get_one::<PathBuf>("save-recipe").map(|path| Kept { what, path: path.clone() }));
    if named::is_on_network(model) {
        let what = "the directory of --spool";
        kept.extend(matches.get_one::<PathBuf>("spool").map(|path| Kept { what, path: path.clone() }));
    }
    if named::hub_id(model).is_some() {
        kept.push(of_cache(matches)?);
    }
    let what = "the list of --sums";
    kept.extend(matches.get_one::<PathBuf>("sums").map(|path| Kept { what, path: path.clone() }));
    Ok(kept)
}

/// The Hugging Face cache.
///
/// # Errors
/// When the environment makes no sense.
pub(super) fn of_cache(matches: &ArgMatches) -> Result<Kept> {
    Ok(Kept { what: "the Hugging Face cache", path: model::environment(matches)?.cache_dir })
}

/// The directory and the files of a model on this machine.
pub(super) fn of_model(model: &Path) -> Vec<Kept> {
    let kept = |path: PathBuf| Kept { what: "a file of the source", path };
    if opened::is_gguf(model) {
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        let siblings = split::siblings(&name).unwrap_or_default();
        let files = siblings.iter().map(|name| model.with_file_name(name));
        return [Kept { what: "the source", path: model.to_owned() }]
            .into_iter()
            .chain(files.map(kept))
            .collect();
    }
    if !model.exists() {
        return Vec::new();
    }
    // Files may be links to others elsewhere.
    let entries = std::fs::read_dir(model).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
    [Kept { what: "the source", path: model.to_owned() }].into_iter().chain(files.map(kept)).collect()
}
