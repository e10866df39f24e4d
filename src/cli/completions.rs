//! `requant completions`: what a shell needs to complete our command lines.

use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

use super::{Subcommand, console};
use crate::error::Result;

/// The subcommand.
pub(super) struct Completions;

impl Subcommand for Completions {
    fn command(&self) -> Command {
        Command::new("completions")
            .about("Print completions for a shell")
            .arg(
                Arg::new("SHELL")
                    .required(true)
                    .value_parser(clap::value_parser!(Shell))
                    .help("The shell that they are for"),
            )
            .after_help(
                "Examples:\n  \
                 requant completions bash > ~/.local/share/bash-completion/completions/requant\n  \
                 requant completions fish > ~/.config/fish/completions/requant.fish",
            )
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let Some(&shell) = matches.get_one::<Shell>("SHELL") else { return Ok(()) };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut super::command(), super::NAME, &mut script);
        console::print_own(&script)
    }
}
