//! `requant verify`: a result against its manifest.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::{Subcommand, report};
use crate::error::{Error, Result};
use crate::pipeline;

/// The subcommand.
pub(super) struct Verify;

impl Subcommand for Verify {
    fn command(&self) -> Command {
        Command::new("verify")
            .about("Check a result against the manifest beside it")
            .arg(super::path_argument("PATH", "GGUF file, one file of a split set, or MLX directory"))
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let output = super::path(matches, "PATH");
        let progress = report::progress(matches.get_flag("quiet"));
        let checks = pipeline::verify(output, &*progress)?;
        drop(progress);
        let bad = checks.iter().filter(|check| !check.problems.is_empty()).count();
        if matches.get_flag("json") {
            super::print_json(&json!({ "output": output, "ok": bad == 0, "files": checks }));
        } else {
            for check in &checks {
                match check.problems.as_slice() {
                    [] => println!("{}: OK", check.file),
                    problems => problems.iter().for_each(|problem| println!("{}: {problem}", check.file)),
                }
            }
        }
        if bad > 0 {
            return Err(Error::Verification {
                path: output.to_owned(),
                problems: bad,
                checked: checks.len(),
            });
        }
        Ok(())
    }
}
