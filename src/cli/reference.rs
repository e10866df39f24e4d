//! `requant reference`: pages of the documentation that are made from the program itself. A test holds them against it.

use std::fmt::Write;

use clap::builder::StyledStr;
use clap::{Arg, ArgMatches, Command};

use super::{Subcommand, console, families, formats};
use crate::error::Result;

/// A page of the documentation.
struct Documented {
    /// `docs/NAME.md`.
    name: &'static str,
    text: fn() -> String,
}

/// Every page that is made here.
const PAGES: &[Documented] = &[
    Documented { name: "cli", text: command_line },
    Documented { name: "families", text: families::markdown },
];

/// What stands before the commands.
const INTRODUCTION: &str = include_str!("reference/introduction.md");

/// The subcommand.
pub(super) struct Reference;

impl Subcommand for Reference {
    fn command(&self) -> Command {
        Command::new("reference")
            .about("Print a page of the documentation, as Markdown")
            .arg(
                Arg::new("PAGE")
                    .required(true)
                    .value_parser(clap::builder::PossibleValuesParser::new(
                        PAGES.iter().map(|page| page.name),
                    ))
                    .help("docs/PAGE.md"),
            )
            .hide(true)
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let asked = matches.get_one::<String>("PAGE").map_or("", String::as_str);
        let text = PAGES.iter().find(|page| page.name == asked).map(|page| (page.text)()).unwrap_or_default();
        console::print_own(text.as_bytes())
    }
}

/// docs/cli.md.
fn command_line() -> String {
    let mut command = super::command();
    command.build();
    let shown: Vec<&Command> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
        .collect();
    let mut page = format!("{INTRODUCTION}\n## Commands\n\n| command | what it does |\n|---|---|\n");
    for command in &shown {
        let name = command.get_name();
        page += &format!("| [`requant {name}`](#requant-{name}) | {} |\n", cell(command.get_about()));
    }
    for command in shown {
        of_command(command.clone(), &mut page);
    }
    page += "\n## Formats\n\nValues of `--to`, any case; `requant formats` prints the same. Bits per weight are those of the type that most \
             matrices get, scales included.\n";
    page += &formats::markdown();
    page
}

fn of_command(mut command: Command, page: &mut String) {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    *page += &format!(
        "\n## requant {}\n\n{}.\n\n    {usage}\n",
        command.get_name(),
        cell(command.get_long_about().or(command.get_about()))
    );
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set() && argument.get_id() != "help")
        .collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for argument in &arguments {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    // Arguments and options without a heading come first.
    headings.sort_by_key(Option::is_some);
    for heading in headings {
        *page += &format!("\n| {} | meaning |\n|---|---|\n", heading.unwrap_or("argument or option"));
        for argument in arguments.iter().filter(|argument| argument.get_help_heading() == heading) {
            *page += &format!("| {} | {} |\n", written(argument), meaning(argument));
        }
    }
    if let Some(after) = command.get_after_help() {
        let after = after.to_string();
        match after.strip_prefix("Examples:\n") {
            Some(examples) => {
                *page += "\nExamples:\n\n";
                examples.lines().for_each(|line| *page += &format!("    {}\n", line.trim()));
            }
            None => *page += &format!("\n{after}\n"),
        }
    }
}

/// `-o`, `--output PATH`.
fn written(argument: &Arg) -> String {
    let value = argument.get_value_names().filter(|_| argument.get_action().takes_values());
    let value = value.map_or(String::new(), |names| {
        names.iter().map(|name| name.to_string()).collect::<Vec<_>>().join(" ")
    });
    if argument.is_positional() {
        let name = if value.is_empty() { argument.get_id().to_string() } else { value };
        return format!("`{name}`");
    }
    let names = argument.get_short().map(|short| format!("-{short}")).into_iter();
    let names = names.chain(argument.get_long().map(|long| format!("--{long}")));
    let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if let Some(last) = names.last_mut().filter(|_| !value.is_empty()) {
        last.insert_str(last.len() - 1, &format!(" {value}"));
    }
    names.join(", ")
}

fn meaning(argument: &Arg) -> String {
    let mut text = cell(argument.get_long_help().or(argument.get_help()));
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|_| argument.get_action().takes_values() && !argument.is_hide_possible_values_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, "; one of {}", values.join(", "));
    }
    let defaults = argument.get_default_values().iter().filter(|_| argument.get_action().takes_values());
    let defaults: Vec<String> = defaults.map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty() {
        let _ = write!(text, "; default: {}", defaults.join(" "));
    }
    text
}

/// Text in a cell of a table: a line, and nothing in it that would be taken for markup.
fn cell(text: Option<&StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    // A list of several lines has the formats, which the page has at its end.
    let first = text.split(":\n").next().unwrap_or_default();
    first.replace('\n', " ").replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}
