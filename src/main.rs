//! The `requant` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    requant::cli::main()
}
