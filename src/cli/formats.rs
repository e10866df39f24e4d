//! `requant formats`: every value of `--to`, with what is known about it.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::Subcommand;
use super::console::{self, Page};
use crate::error::{Error, Result};
use crate::plan::{self, Format, TARGETS, Target};

/// Columns of a terminal that lists of formats keep to.
const COLUMNS: usize = 80;

/// The subcommand.
pub(super) struct Formats;

impl Subcommand for Formats {
    fn command(&self) -> Command {
        Command::new("formats")
            .about("List what can be written: every value of --to")
            .arg(Arg::new("WORD").help("Only formats with this in their name, or of the group of this name"))
            .arg(super::json_argument())
            .after_help(
                "Bits per weight are those of the type that most matrices get, scales included; requant plan says them exactly for \
                 a model. An importance matrix is made by requant calibrate and given to convert with --imatrix.",
            )
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let word = matches.get_one::<String>("WORD").map(|word| word.to_lowercase());
        let found: Vec<(&dyn Target, Vec<&Format>)> =
            TARGETS.iter().map(|&target| (target, of(target, word.as_deref()))).collect();
        if let Some(word) = word.filter(|_| found.iter().all(|(_, formats)| formats.is_empty())) {
            let near = plan::nearest_formats(&word);
            let then = if near.is_empty() {
                "`requant formats` lists all".to_owned()
            } else {
                format!("did you mean {}?", near.join(", "))
            };
            return Err(Error::Usage(format!(
                "{}: no format with this in its name; {then}",
                crate::small::shown(&word)
            )));
        }
        if matches.get_flag("json") {
            let formats = found
                .iter()
                .flat_map(|(target, formats)| formats.iter().map(|format| to_json(*target, format)));
            return console::print_json(&json!({ "formats": formats.collect::<Vec<_>>() }));
        }
        let mut page = Page::default();
        let mut is_first = true;
        for (target, formats) in found.iter().filter(|(_, formats)| !formats.is_empty()) {
            if !std::mem::take(&mut is_first) {
                page.line("");
            }
            print(*target, formats, &mut page);
        }
        page.print()
    }
}

/// The formats of a target that are asked for.
fn of(target: &'static dyn Target, word: Option<&str>) -> Vec<&'static Format> {
    let is_meant = |format: &&Format| {
        word.is_none_or(|word| format.name.contains(word) || target.family().eq_ignore_ascii_case(word))
    };
    target.formats().iter().filter(is_meant).collect()
}

fn to_json(target: &dyn Target, format: &Format) -> serde_json::Value {
    json!({
        "name": format.name,
        "group": target.family(),
        "about": format.about,
        "bits_per_weight": target.bits_per_weight(format),
        "is_directory": target.is_directory(),
        "read_by": target.readers(format),
        "importance_matrix": target.importance(format).as_str(),
    })
}

fn print(target: &dyn Target, formats: &[&Format], page: &mut Page) {
    let what = if target.is_directory() { "directory" } else { "file or split set" };
    page.line(format_args!("{} ({what})", target.family()));
    let name_width = formats.iter().map(|format| format.name.len()).max().unwrap_or(0).max(4);
    let readers = |format: &Format| target.readers(format).join(", ");
    let reader_width = formats.iter().map(|format| readers(format).len()).max().unwrap_or(0).max(7);
    page.line(format_args!(
        "  {:<name_width$}  {:>6}  {:<7} {:<reader_width$}  what it is",
        "--to", "bits", "imatrix", "read by"
    ));
    for format in formats {
        page.line(format_args!(
            "  {:<name_width$}  {:>6.3}  {:<7} {:<reader_width$}  {}",
            format.name,
            target.bits_per_weight(format),
            target.importance(format).as_str(),
            readers(format),
            format.about
        ));
    }
}

/// A table for each target, for the documentation.
pub(super) fn markdown() -> String {
    let mut page = String::new();
    for target in TARGETS {
        page += &format!("\n### {}\n\n", target.family());
        page += "| `--to` | bits per weight | importance matrix | read by | what it is |\n|---|---|---|---|---|\n";
        for format in target.formats() {
            page += &format!(
                "| `{}` | {:.3} | {} | {} | {} |\n",
                format.name,
                target.bits_per_weight(format),
                target.importance(format).as_str(),
                target.readers(format).join(", "),
                format.about
            );
        }
    }
    page
}

/// The value of `--to`: any text, so that what is wrong with it is said with the nearest names; shells complete the names.
#[derive(Clone)]
pub(super) struct AnyFormat;

impl TypedValueParser for AnyFormat {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> std::result::Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = TARGETS.iter().flat_map(|target| target.formats()).map(|format| format.name);
        Some(Box::new(names.map(PossibleValue::new)))
    }
}

/// A line for each target: the formats that people use most, as many as fit, and how many more there are.
pub(super) fn by_group() -> String {
    let width = TARGETS.iter().map(|target| target.family().len()).max().unwrap_or(0);
    let line = |target: &&dyn Target| {
        let all = target.formats().len();
        let mut usual = target.usual().to_vec();
        loop {
            let more = match all - usual.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let line = format!("  {:<width$}  {}{more}", target.family(), usual.join(", "));
            // Help is indented by ten columns more.
            if line.len() + 10 <= COLUMNS || usual.len() == 1 {
                return line;
            }
            usual.pop();
        }
    };
    TARGETS.iter().map(line).collect::<Vec<_>>().join("\n")
}
