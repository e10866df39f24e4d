//! `requant man`: manual pages, for those who make packages.

use clap::{ArgMatches, Command};

use super::Subcommand;
use super::console::Page;
use crate::error::{Error, Result};

/// The subcommand.
pub(super) struct Man;

impl Subcommand for Man {
    fn command(&self) -> Command {
        Command::new("man")
            .about("Write manual pages: one for requant, and one for each command")
            .arg(super::path_argument("DIR", "Directory to write them to; it is made if it is not there"))
            .hide(true)
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let directory = super::path(matches, "DIR");
        std::fs::create_dir_all(directory).map_err(Error::io(directory, "create"))?;
        clap_mangen::generate_to(super::command(), directory).map_err(Error::io(directory, "write"))?;
        let mut page = Page::default();
        page.line(format_args!("{}: requant.1 and a page for each command", directory.display()));
        page.print()
    }
}
