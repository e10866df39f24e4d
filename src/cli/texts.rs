//! Texts that a model runs over, and the windows they are cut into: arguments that commands share.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};

use super::console;
use crate::error::{Error, Result};
use crate::evaluate::{Bos, Windows};
use crate::pipeline::output::Kept;
use crate::small;

/// The text that is read from standard input.
const STDIN: &str = "-";
/// What it is called in messages.
const STDIN_NAME: &str = "standard input";

/// `--text`.
pub(super) fn text_argument(help: &'static str) -> Arg {
    Arg::new("text")
        .long("text")
        .short('f')
        .value_name("FILE")
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(PathBuf))
        .help(help)
}

/// `--context`.
pub(super) fn context_argument(help: &'static str) -> Arg {
    Arg::new("context")
        .long("context")
        .short('c')
        .value_name("N")
        .default_value("512")
        .value_parser(clap::value_parser!(u32).range(4..=1 << 20))
        .help(help)
}

/// The value of `--context`.
pub(super) fn context(matches: &ArgMatches) -> usize {
    matches.get_one::<u32>("context").map_or(512, |&context| context as usize)
}

/// `--bos`.
pub(super) fn bos_argument() -> Arg {
    Arg::new("bos")
        .long("bos")
        .value_name("WHEN")
        .default_value("auto")
        .value_parser(|text: &str| text.parse::<Bos>())
        .help("Begin windows with BOS: always, never, or auto, as the tokenizer does")
}

/// The value of `--bos`.
pub(super) fn bos(matches: &ArgMatches) -> Bos {
    matches.get_one::<Bos>("bos").copied().unwrap_or_default()
}

/// `--chunks`: llama.cpp's word for windows.
pub(super) fn chunks_argument() -> Arg {
    Arg::new("chunks")
        .long("chunks")
        .value_name("N")
        .value_parser(clap::value_parser!(u32).range(1..))
        .help("Use N windows at most, from the beginning; of several texts equal parts")
}

/// Most windows of each of so many texts.
pub(super) fn most_windows(matches: &ArgMatches, texts: usize) -> Option<usize> {
    let chunks = matches.get_one::<u32>("chunks")?;
    Some((*chunks as usize / texts.max(1)).max(1))
}

/// The texts that are given.
pub(super) fn given(matches: &ArgMatches) -> Vec<&Path> {
    matches.get_many::<PathBuf>("text").into_iter().flatten().map(PathBuf::as_path).collect()
}

/// Refuses texts that cannot be read together.
///
/// # Errors
/// When standard input is to be read twice.
pub(super) fn check(matches: &ArgMatches) -> Result<()> {
    if given(matches).into_iter().filter(|text| is_stdin(text)).count() > 1 {
        return Err(Error::Usage("--text -: standard input can be read only once".to_owned()));
    }
    Ok(())
}

/// Those of the texts that are files, which nothing may be written over.
pub(super) fn kept(matches: &ArgMatches, what: &'static str) -> Vec<Kept> {
    let files = given(matches).into_iter().filter(|text| !is_stdin(text));
    files.map(|path| Kept { what, path: path.to_owned() }).collect()
}

/// A text; `-` is standard input.
///
/// # Errors
/// When it cannot be read, is too long, or is not UTF-8.
pub(super) fn read(path: &Path) -> Result<String> {
    if !is_stdin(path) {
        return small::text(path, small::read_given(path, small::TEXT)?);
    }
    if std::io::stdin().is_terminal() {
        console::note("reading the text from standard input; end it with Ctrl-D");
    }
    let place = Path::new(STDIN_NAME);
    small::text(place, small::TEXT.read_from(place, std::io::stdin().lock())?)
}

/// The windows of several texts, one text after the other. `cut` gives those of a text.
///
/// # Errors
/// As `cut`; names the text if there are several.
pub(super) fn windows(
    texts: &[&Path],
    mut cut: impl FnMut(&Path) -> Result<Windows>,
) -> Result<Option<Windows>> {
    let mut all: Option<Windows> = None;
    for path in texts {
        let windows = cut(path)?;
        match &mut all {
            None => all = Some(windows),
            Some(all) => all.append(windows),
        }
    }
    Ok(all)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}
