//! `--imatrix` and what goes with it.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches};

use super::console::Page;
use crate::error::{Error, Result};
use crate::imatrix::Imatrix;
use crate::plan::Blueprint;

/// The arguments.
pub(super) fn arguments() -> [Arg; 3] {
    let names = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("NAME").action(ArgAction::Append).requires("imatrix").help(help)
    };
    [
        Arg::new("imatrix")
            .long("imatrix")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("GGUF: weigh errors with this importance matrix of llama-imatrix, GGUF or .dat"),
        names("include-weights", "Use the importance matrix only for tensors whose name contains this"),
        names("exclude-weights", "Do not use the importance matrix for tensors whose name contains this")
            .conflicts_with("include-weights"),
    ]
}

/// The importance matrix asked for.
///
/// # Errors
/// When it cannot be read, makes no sense, or nothing of it is left.
pub(super) fn from_matches(matches: &ArgMatches) -> Result<Option<Arc<Imatrix>>> {
    let Some(path) = matches.get_one::<PathBuf>("imatrix") else { return Ok(None) };
    let mut imatrix = Imatrix::open(path)?;
    let parts =
        |name: &str| -> Vec<String> { matches.get_many(name).into_iter().flatten().cloned().collect() };
    let (included, excluded) = (parts("include-weights"), parts("exclude-weights"));
    let is_one_of = |name: &str, parts: &[String]| parts.iter().any(|part| name.contains(part));
    imatrix.retain(|name| (included.is_empty() || is_one_of(name, &included)) && !is_one_of(name, &excluded));
    if imatrix.names().len() == 0 {
        let message = "--include-weights and --exclude-weights leave nothing of it";
        return Err(Error::Request(format!("{}: {message}", path.display())));
    }
    Ok(Some(Arc::new(imatrix)))
}

/// Says for how many tensors an importance matrix is used, and for which not.
pub(super) fn print(blueprint: &Blueprint, page: &mut Page) {
    let used: Vec<_> = blueprint.tensors.iter().filter_map(|tensor| tensor.importance.as_ref()).collect();
    let Some(first) = used.first() else { return };
    page.line(format_args!(
        "importance matrix {}: used for {} tensors",
        first.imatrix.path().display(),
        used.len()
    ));
    let without =
        blueprint.tensors.iter().filter(|tensor| tensor.codec.weighs() && tensor.importance.is_none());
    for tensor in without {
        page.line(format_args!("  nothing about {}", tensor.names[0]));
    }
}
