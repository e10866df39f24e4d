//! `requant card`: the model card of a result, and the options of conversions about it.

use std::path::{Component, Path};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};

use super::console;
use super::{Subcommand, applies, headings, named};
use crate::card;
use crate::error::{Error, Result};
use crate::opened::Opened;
use crate::pipeline::{self, Card as Writer, ModelRecord};
use crate::plan;
use crate::source::hub::HubId;

/// Values of `--card`.
const OWN: &str = "requant";
const OF_MLX_LM: &str = "mlx-lm";
const NONE: &str = "none";
/// How a directory of the Hugging Face cache begins that holds one repository.
const CACHED: &str = "models--";

/// The subcommand.
pub(super) struct Card;

impl Subcommand for Card {
    fn command(&self) -> Command {
        Command::new("card")
            .about("Print the model card of a result")
            .long_about(
                "Print the model card (README.md) of a result, from its manifest. Directories have theirs in them; a GGUF file has none \
                 beside it, so that several can share a folder",
            )
            .arg(super::path_argument("PATH", "A result of requant: a GGUF file (any of a split set), or a directory"))
            .arg(base_model_argument())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let mut manifest = pipeline::manifest_of(super::path(matches, "PATH"))?;
        if let Some(id) = base_model(matches)? {
            manifest.model.get_or_insert_default().base_model = Some(id);
        }
        console::print_own(card::markdown(&manifest).as_bytes())
    }
}

/// `--card` and `--base-model`.
pub(super) fn arguments() -> impl Iterator<Item = Arg> {
    let card = Arg::new("card")
        .long("card")
        .value_name("WHOSE")
        .value_parser(PossibleValuesParser::new([OWN, OF_MLX_LM, NONE]))
        .default_value(OWN)
        .hide_possible_values(true)
        .help("Directories: README.md as requant writes it, as mlx-lm does (MLX alone), or none");
    headings::under(headings::CARD, [card, base_model_argument()])
}

fn base_model_argument() -> Arg {
    Arg::new("base-model")
        .long("base-model")
        .value_name("ID")
        .help("Model card: hub id of the original [default: MODEL, when it is one]")
}

/// Whether the plan leaves README.md to the card that is written when all is done.
pub(super) fn leaves_to_us(matches: &ArgMatches) -> bool {
    chosen(matches) != OF_MLX_LM
}

/// What writes the card of a directory.
pub(super) fn writer(matches: &ArgMatches) -> Option<Writer> {
    (chosen(matches) == OWN).then_some(card::markdown as Writer)
}

/// Refuses, before any work, a card that results of this format do not have, and ids that are none.
///
/// # Errors
/// Names the option.
pub(super) fn check(matches: &ArgMatches, format: &str) -> Result<()> {
    if !plan::is_directory(format)? {
        applies::refuse(
            matches,
            &["card"],
            "is for directories; requant card prints the card of a GGUF file",
        )?;
    }
    if chosen(matches) == OF_MLX_LM && plan::find_format(format)?.0.family() != "MLX" {
        applies::refuse(matches, &["card"], format_args!("mlx-lm writes no {format}"))?;
    }
    base_model(matches).map(|_| ())
}

/// What the source says of itself; says on stderr when its own card is damaged.
///
/// # Errors
/// When that card cannot be read.
pub(super) fn model(matches: &ArgMatches, source: &Opened) -> Result<ModelRecord> {
    let given = base_model(matches)?;
    let path = super::path(matches, "MODEL");
    let (model, damage) = ModelRecord::of(source, given.or_else(|| known_id(path)))?;
    if let Some(damage) = damage.filter(|_| !matches.get_flag("quiet")) {
        console::note(format_args!("{damage}; the new model card does not say the license"));
    }
    Ok(model)
}

fn chosen(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("card").map_or(OWN, String::as_str)
}

fn base_model(matches: &ArgMatches) -> Result<Option<String>> {
    let Some(text) = matches.get_one::<String>("base-model") else { return Ok(None) };
    match HubId::parse(text).filter(|id| id.revision.is_none()) {
        Some(id) => Ok(Some(id.repo)),
        None => Err(Error::Usage(format!("--base-model {text}: not a hub id such as org/name"))),
    }
}

/// The hub id that `path` is, or that a snapshot of the Hugging Face cache has in its path.
fn known_id(path: &Path) -> Option<String> {
    if let Some(id) = named::hub_id(path) {
        return Some(id.repo);
    }
    let whole = path.canonicalize().ok()?;
    let mut names = whole.components().filter_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let folder = names.find_map(|name| name.strip_prefix(CACHED))?;
    let id = HubId::parse(&folder.replacen("--", "/", 1)).filter(|id| id.revision.is_none())?;
    (names.next() == Some("snapshots")).then_some(id.repo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::convert::Convert;

    /// Every option of `convert` either decides which bytes come out, and then is shown in the card, or does not.
    #[test]
    fn every_option_is_shown_or_not_on_purpose() {
        let deciding = [
            "to",
            "allow-requantize",
            "tokenizer-pre",
            "split-max-size",
            "imatrix",
            "include-weights",
            "exclude-weights",
            "tensor-type",
            "recipe",
            "target-size",
            "target-bpw",
            "calibrate",
            "calibrate-tokens",
            "calibrate-context",
            "calibrate-mode",
            "revision",
        ];
        let command = crate::cli::command();
        let name = Convert.command().get_name().to_owned();
        let convert = command.get_subcommands().find(|command| command.get_name() == name).unwrap();
        for argument in convert.get_arguments().filter(|argument| !argument.is_positional()) {
            let takes_value = argument.get_action().takes_values();
            let list = if takes_value { card::WHERE } else { card::WHETHER };
            let mut names: Vec<String> = argument
                .get_long_and_visible_aliases()
                .unwrap()
                .iter()
                .map(|name| format!("--{name}"))
                .collect();
            names.extend(
                argument.get_all_aliases().unwrap_or_default().iter().map(|name| format!("--{name}")),
            );
            names.extend(argument.get_short().map(|short| format!("-{short}")));
            for name in names {
                let is_deciding = deciding.contains(&argument.get_id().as_str());
                assert_ne!(list.contains(&name.as_str()), is_deciding, "{name}");
            }
        }
    }

    #[test]
    fn snapshots_of_the_cache_have_an_id() {
        let directory = tempfile::tempdir().unwrap();
        let snapshot = directory.path().join("hub/models--org--a-b/snapshots/0123");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(known_id(&snapshot).as_deref(), Some("org/a-b"));
        assert_eq!(known_id(directory.path()), None);
        let other = directory.path().join("models--org--a/other");
        std::fs::create_dir_all(&other).unwrap();
        assert_eq!(known_id(&other), None);
    }
}
