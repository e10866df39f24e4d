//! `requant perplexity`: how well a model predicts a text.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::Subcommand;
use crate::error::{Error, Result};
use crate::evaluate::{self, Bos, Windows};
use crate::model::{Choice, Observer};
use crate::weights::Model;

/// The subcommand.
pub(super) struct Perplexity;

impl Subcommand for Perplexity {
    fn command(&self) -> Command {
        Command::new("perplexity")
            .about("Measure perplexity on a text, as llama-perplexity defines it")
            .arg(super::path_argument(
                "MODEL",
                "Checkpoint directory, GGUF file (the first of a split set), MLX directory",
            ))
            .arg(
                Arg::new("text")
                    .long("text")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("The text, UTF-8"),
            )
            .arg(
                Arg::new("context")
                    .long("context")
                    .short('c')
                    .value_name("N")
                    .default_value("512")
                    .value_parser(clap::value_parser!(u32).range(4..=1 << 20))
                    .help("Tokens of a window; the second half of each is scored"),
            )
            .arg(
                Arg::new("bos")
                    .long("bos")
                    .value_name("WHEN")
                    .default_value("auto")
                    .value_parser(|text: &str| text.parse::<Bos>())
                    .help("Begin windows with BOS: always, never, or auto, as the tokenizer does"),
            )
            .arg(super::threads_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        let model = super::path(matches, "MODEL");
        let text_path = super::path(matches, "text");
        let text = std::fs::read_to_string(text_path).map_err(Error::io(text_path, "read"))?;
        let context = matches.get_one::<u32>("context").map_or(512, |&context| context as usize);
        let bos = matches.get_one::<Bos>("bos").copied().unwrap_or_default();
        let model = Model::open(model)?;
        let windows = Windows::new(&model.tokenizer()?, &text, context, bos)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(super::threads(matches))
            .build()
            .map_err(|error| Error::Request(format!("cannot start threads: {error}")))?;
        let mut progress = Layers { quiet: matches.get_flag("quiet"), started };
        let measured = pool.install(|| evaluate::perplexity(model.store(), &windows, &mut progress))?;
        let seconds = started.elapsed().as_secs_f64();
        if matches.get_flag("json") {
            super::print_json(&json!({
                "perplexity": measured.perplexity,
                "perplexity_error": measured.error,
                "tokens": windows.text_tokens,
                "windows": windows.len(),
                "context": context,
                "seconds": seconds,
                "peak_rss_bytes": peak_rss_bytes(),
            }));
        } else {
            println!(
                "perplexity {:.4} +/- {:.4} ({} windows of {context}, {} tokens scored, {seconds:.1} s)",
                measured.perplexity,
                measured.error,
                windows.len(),
                measured.losses.len()
            );
        }
        Ok(())
    }
}

/// A line per layer, with the time left.
struct Layers {
    quiet: bool,
    started: Instant,
}

impl Observer for Layers {
    fn layer(&mut self, layer: usize, layers: usize, _: Option<&[Vec<Choice>]>) {
        if !self.quiet {
            let seconds = self.started.elapsed().as_secs_f64();
            let left = seconds / (layer + 1) as f64 * (layers - layer - 1) as f64;
            eprintln!("layer {} of {layers}: {seconds:.1} s, ETA {left:.0} s", layer + 1);
        }
    }
}

/// Largest resident set so far; `None` where the system does not say.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
