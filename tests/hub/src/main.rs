//! `test-hub`: serves a directory, or a simulated DeepSeek-V3, as a local Hugging Face hub until it is killed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use test_hub::simulate::{Dimensions, Options, deepseek_v3};
use test_hub::{Cut, Gate, GateMode, Hub, Repo};

const USAGE: &str = "\
test-hub serve DIR --id ORG/NAME [options]
test-hub simulate --id ORG/NAME [--layers N] [--dense N] [--experts N] [--mtp | --no-mtp] [--vocab N]
                  [--shard-bytes N] [--no-hash] [--tokenizer DIR] [options]

serve      the files of a directory
simulate   DeepSeek-V3 with real widths and made-up weights; all of it without --layers, else the first
           N layers (3 of them dense, or --dense) without the prediction layer, or with --mtp

options: --port N            default: a free one
         --token T           the repository is private
         --gated T           the repository is gated, and the owner of this token has access
         --rate BYTES        limit of bytes per second, all connections together
         --page-size N       entries of a page of the file tree
         --xet               large files are in Xet storage as well, packed in memory";

struct Arguments {
    words: Vec<String>,
    values: Vec<(String, String)>,
    flags: Vec<String>,
}

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("test-hub: {message}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Vec<String>) -> Result<(), String> {
    let arguments = Arguments::parse(arguments)?;
    let id = arguments.value("--id").ok_or("--id ORG/NAME is missing")?;
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    let mut repo = match words.as_slice() {
        ["serve", directory] => {
            Repo::from_directory(id, Path::new(directory)).map_err(|error| format!("{directory}: {error}"))?
        }
        ["simulate"] => simulated(id, &arguments)?,
        _ => return Err("say `serve DIR` or `simulate`".to_string()),
    };
    if let Some(token) = arguments.value("--token") {
        repo = repo.with_token(token);
    }
    if let Some(token) = arguments.value("--gated") {
        repo = repo.gated(Gate { mode: GateMode::Manual, granted: vec![token.to_string()] });
    }
    if arguments.flag("--xet") {
        repo = repo.in_xet(Cut::REAL).map_err(|error| format!("Xet storage: {error}"))?;
    }
    let port = arguments.number("--port")?.unwrap_or(0);
    let port = u16::try_from(port).map_err(|_| format!("--port {port} is not a port"))?;
    let hub = Hub::start_at(port, vec![repo]).map_err(|error| format!("port {port}: {error}"))?;
    hub.set_rate(arguments.number("--rate")?);
    if let Some(entries) = arguments.number("--page-size")? {
        hub.set_page_size(usize::try_from(entries).unwrap_or(usize::MAX));
    }
    println!("listening on {}", hub.url());
    loop {
        std::thread::park();
    }
}

fn simulated(id: &str, arguments: &Arguments) -> Result<Repo, String> {
    let mut dimensions = Dimensions::FULL;
    let count = |name: &str| Ok::<_, String>(arguments.number(name)?.map(|number| number as usize));
    if let Some(layers) = count("--layers")? {
        let dense = count("--dense")?.unwrap_or(3).min(layers);
        dimensions = Dimensions::slice(dense, layers - dense, dimensions.experts);
    }
    dimensions.mtp = (dimensions.mtp || arguments.flag("--mtp")) && !arguments.flag("--no-mtp");
    dimensions.experts = count("--experts")?.unwrap_or(dimensions.experts);
    dimensions.vocab = count("--vocab")?.unwrap_or(dimensions.vocab);
    dimensions.shard_bytes = arguments.number("--shard-bytes")?.unwrap_or(dimensions.shard_bytes);
    let tokenizer = arguments.value("--tokenizer").map(PathBuf::from);
    let options = Options {
        tokenizer: tokenizer.as_deref(),
        hashed: !arguments.flag("--no-hash"),
        progress: &|done, total| eprintln!("hashed {done} of {total} shards"),
    };
    deepseek_v3(id, &dimensions, &options).map_err(|error| error.to_string())
}

impl Arguments {
    fn parse(arguments: Vec<String>) -> Result<Arguments, String> {
        let mut parsed = Arguments { words: Vec::new(), values: Vec::new(), flags: Vec::new() };
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--no-hash" | "--mtp" | "--no-mtp" | "--xet" => parsed.flags.push(argument),
                "--id" | "--port" | "--token" | "--gated" | "--rate" | "--page-size" | "--layers"
                | "--dense" | "--experts" | "--vocab" | "--shard-bytes" | "--tokenizer" => {
                    let value = rest.next().ok_or_else(|| format!("{argument} needs a value"))?;
                    parsed.values.push((argument, value));
                }
                other if other.starts_with('-') => return Err(format!("{other} is not an option")),
                _ => parsed.words.push(argument),
            }
        }
        Ok(parsed)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let parse =
            |text: &str| text.replace('_', "").parse().map_err(|_| format!("{name} {text} is not a number"));
        self.value(name).map(parse).transpose()
    }
}
