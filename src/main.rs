//! The `requant` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    end_quietly_without_a_reader();
    requant::cli::main()
}

/// When whoever reads our output has seen enough (`| head`), `println!` panics. That is no bug to report: the
/// run ends without a word.
fn end_quietly_without_a_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(1);
        }
        report(panic);
    }));
}
