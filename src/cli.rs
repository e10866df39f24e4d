//! The command line: one file per subcommand, and the one table that lists them.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::{Error, Result};

mod convert;
mod errors;
mod fetch;
mod inspect;
mod measured;
mod model;
mod perplexity;
mod plan;
mod report;
mod rules;
mod size;
mod validation;
mod verify;

/// A subcommand.
trait Subcommand: Sync {
    /// Its name, help and arguments.
    fn command(&self) -> Command;
    /// Runs it.
    fn run(&self, matches: &ArgMatches) -> Result<()>;
}

/// Every subcommand.
const SUBCOMMANDS: &[&dyn Subcommand] = &[
    &convert::Convert,
    &plan::Plan,
    &fetch::Fetch,
    &inspect::Inspect,
    &verify::Verify,
    &perplexity::Perplexity,
];

/// Parses the process arguments and runs what they ask for.
pub fn main() -> ExitCode {
    let mut command = Command::new("requant")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .subcommand_required(true)
        .arg_required_else_help(true);
    for subcommand in SUBCOMMANDS {
        command = command.subcommand(subcommand.command());
    }
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if is_help { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
    let chosen = SUBCOMMANDS.iter().find(|subcommand| subcommand.command().get_name() == name);
    match chosen.map_or(Ok(()), |subcommand| subcommand.run(matches)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
            {
                eprintln!("what is done is kept: make room and run the same command again");
            }
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGINT and SIGTERM set; the second signal ends the process at once.
fn stop_on_signal() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Fails only when a handler is installed twice in one process: then the first one serves.
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping; once more to stop at once");
    });
    stop
}

/// Help of the MODEL argument.
const MODEL_HELP: &str =
    "Checkpoint directory, GGUF file (any of a split set), or hub id org/name[@revision]";

/// The positional MODEL or PATH.
fn path_argument(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name)
        .required(true)
        .help(help)
        .value_parser(clap::value_parser!(std::path::PathBuf))
}

/// `--json` and `--quiet`.
fn output_arguments() -> [Arg; 2] {
    [
        Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one JSON object on stdout"),
        Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue).help("No progress on stderr"),
    ]
}

/// `--threads`.
fn threads_argument() -> Arg {
    Arg::new("threads")
        .long("threads")
        .value_name("N")
        .value_parser(clap::value_parser!(u16).range(1..))
        .help("Worker threads [default: one per core]")
}

/// The value of `--threads`.
fn threads(matches: &ArgMatches) -> usize {
    match matches.get_one::<u16>("threads") {
        Some(&threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// The value of a path argument.
fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a std::path::Path {
    matches.get_one::<std::path::PathBuf>(name).map_or(std::path::Path::new(""), std::path::PathBuf::as_path)
}

/// Prints `value` as one JSON object on stdout.
fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}
