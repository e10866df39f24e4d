//! The command line: one file per subcommand, and the one table that lists them.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, ColorChoice, Command};

use crate::error::{Error, Result};
use crate::source::hub::XET_THREAD;

mod applies;
mod calibrate;
mod card;
mod completions;
mod console;
mod convert;
mod destination;
mod diff;
mod errors;
mod families;
mod feedback;
mod fetch;
mod formats;
mod headings;
mod html;
mod imatrix;
mod inspect;
mod job;
mod join;
mod log;
mod man;
mod measured;
mod model;
mod named;
mod perplexity;
mod plan;
mod reference;
mod report;
mod rules;
mod sensitivity;
mod size;
mod status;
mod texts;
mod validation;
mod verify;

/// A subcommand.
trait Subcommand: Sync {
    /// Its name, help and arguments.
    fn command(&self) -> Command;
    /// Runs it.
    fn run(&self, matches: &ArgMatches) -> Result<()>;
}

/// What the program is called.
const NAME: &str = "requant";

/// Every subcommand.
const SUBCOMMANDS: &[&dyn Subcommand] = &[
    &convert::Convert,
    &plan::Plan,
    &join::Join,
    &status::Status,
    &fetch::Fetch,
    &inspect::Inspect,
    &verify::Verify,
    &card::Card,
    &perplexity::Perplexity,
    &diff::Diff,
    &calibrate::Calibrate,
    &formats::Formats,
    &families::Families,
    &completions::Completions,
    &man::Man,
    &reference::Reference,
];

/// Parses the process arguments and runs what they ask for.
pub fn main() -> ExitCode {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Another way to the same bytes is taken then, and a notice says so.
        if std::thread::current().name() != Some(XET_THREAD) {
            show(info);
        }
    }));
    let color = color_choice(std::env::args_os().skip(1));
    console::set_color(color);
    let matches = match command().color(color).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return match console::print_clap(&error) {
                Err(error) => failed(&error),
                Ok(()) if is_help => ExitCode::SUCCESS,
                Ok(()) => ExitCode::from(2),
            };
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
    let chosen = SUBCOMMANDS.iter().find(|subcommand| subcommand.command().get_name() == name);
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let run = || {
        log::start(matches, words)?;
        chosen.map_or(Ok(()), |subcommand| subcommand.run(matches))
    };
    match run() {
        Ok(()) => {
            log::line("done");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// Everything that can be on a command line.
fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(color_argument().hide(true))
        .subcommands(SUBCOMMANDS.iter().map(|subcommand| subcommand.command().arg(color_argument())))
}

/// `--color`.
fn color_argument() -> Arg {
    Arg::new("color")
        .long("color")
        .value_name("WHEN")
        .value_parser(clap::value_parser!(ColorChoice))
        .hide_possible_values(true)
        .help("Colour messages: auto, always or never [default: auto, and NO_COLOR counts]")
}

/// The value of `--color` among `words`: what is wrong with the others is said in colours, or not.
fn color_choice(words: impl Iterator<Item = OsString>) -> ColorChoice {
    let mut words = words.take_while(|word| word != "--");
    let mut choice = ColorChoice::Auto;
    while let Some(word) = words.next() {
        let value = match word.to_str() {
            Some("--color") => words.next().and_then(|value| value.into_string().ok()),
            Some(text) => text.strip_prefix("--color=").map(str::to_owned),
            None => None,
        };
        choice = value.and_then(|value| value.parse().ok()).unwrap_or(choice);
    }
    choice
}

/// Says what went wrong, and gives the exit code for it.
fn failed(error: &Error) -> ExitCode {
    let of_stdout = console::of_stdout(error);
    // Whoever was reading has seen enough (`| head`): that is no bug to report.
    if of_stdout != Some(std::io::ErrorKind::BrokenPipe) {
        console::message(format_args!("error: {error}"));
    }
    let is_full =
        matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
    if is_full && of_stdout.is_none() {
        console::note("what is done is kept: make room and run the same command again");
    }
    if matches!(error, Error::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
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
        console::note(format_args!("stopping; once more to stop at once"));
    });
    stop
}

/// Help of the MODEL argument.
const MODEL_HELP: &str = "Checkpoint directory, GGUF file (any of a split set), hub id [hf://]org/name[@revision], or \
    s3://, gs:// or az://BUCKET/FOLDER";

/// The positional MODEL or PATH.
fn path_argument(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(name)
        .required(true)
        .help(help)
        .value_parser(clap::value_parser!(std::path::PathBuf))
}

/// `--json`.
fn json_argument() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one JSON object on stdout")
}

/// `--json`, `--quiet`, `--verbose` and `--log`.
fn output_arguments() -> impl Iterator<Item = Arg> {
    let quiet =
        Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue).help("No progress on stderr");
    [json_argument(), quiet].into_iter().chain(log::arguments())
}

/// `--threads`.
fn threads_argument() -> Arg {
    Arg::new("threads")
        .long("threads")
        .value_name("N")
        .value_parser(clap::value_parser!(u16).range(1..))
        .help_heading(headings::RESOURCES)
        .help("Worker threads, at most one per core [default: one per core]")
}

/// The value of `--threads`, at most one per core: more of them only wait for each other.
fn threads(matches: &ArgMatches) -> usize {
    let cores = cores();
    matches.get_one::<u16>("threads").map_or(cores, |&threads| usize::from(threads).min(cores))
}

/// Says on stderr, unless `--quiet` is given, that fewer threads will run than `--threads` asks for.
fn note_threads(matches: &ArgMatches) {
    let (cores, asked) = (cores(), matches.get_one::<u16>("threads").copied().map_or(0, usize::from));
    if asked > cores && !matches.get_flag("quiet") {
        let s = if cores == 1 { "" } else { "s" };
        console::note(format_args!(
            "--threads {asked}: this machine offers {cores} core{s}; running {cores} thread{s}"
        ));
    }
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// `--ignore-space`.
fn ignore_space_argument() -> Arg {
    Arg::new("ignore-space")
        .long("ignore-space")
        .action(ArgAction::SetTrue)
        .help_heading(headings::RESOURCES)
        .help("Go ahead on a disk that seems to have too little room")
}

/// The value of a path argument.
fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a std::path::Path {
    matches.get_one::<std::path::PathBuf>(name).map_or(std::path::Path::new(""), std::path::PathBuf::as_path)
}
