//! `requant fetch`: a repository on the disk, verified, and nothing converted.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::console::{self, Page};
use super::size::human;
use super::{Subcommand, destination, model, named, report};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fetch::{self, Request};
use crate::pipeline::output::{self, Kept};
use crate::source::hub::{self, Environment, HubCache, HubId};
use crate::source::{Remote, RemoteFile};

/// The subcommand.
pub(super) struct Fetch;

impl Subcommand for Fetch {
    fn command(&self) -> Command {
        Command::new("fetch")
            .about("Download a repository and verify every file")
            .arg(super::path_argument("MODEL", "Hub id org/name[@revision]"))
            .arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .value_name("DIR")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help(
                        "Directory to download to; the same command again goes on, or brings it up to date",
                    ),
            )
            .args(model::arguments())
            .arg(super::ignore_space_argument())
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let started = Instant::now();
        let text = super::path(matches, "MODEL");
        let Some(id) = named::repository(text) else {
            return Err(Error::Request(format!("{}: not a hub id such as org/name", text.display())));
        };
        let (id, environment) = model::on_hub(id, matches)?;
        let output = super::path(matches, "output");
        check_output(output, &destination::of_cache(matches)?)?;
        let stop = super::stop_on_signal();
        let found = Found::new(&id, &environment, &stop)?;
        let request = Request {
            location: format!("{}@{}", id.repo, found.commit),
            commit: &found.commit,
            files: &found.files,
            cached: &found.cached,
            remote: found.remote.as_deref(),
            output,
            disk: &Disk::default(),
            connections: model::connections(matches),
            ignore_space: matches.get_flag("ignore-space"),
        };
        let progress = report::progress(matches.get_flag("quiet"));
        let downloaded_bytes = fetch::fetch(&request, &*progress, &stop).map_err(|error| match error {
            Error::Interrupted => Error::Request(format!(
                "interrupted; {} keeps what is there, and the same command goes on from here",
                output.display()
            )),
            error => error,
        })?;
        drop(progress);

        let files: Vec<&RemoteFile> =
            found.files.iter().filter(|file| !hub::is_bookkeeping(&file.name)).collect();
        let bytes: u64 = files.iter().map(|file| file.len_bytes).sum();
        let seconds = started.elapsed().as_secs_f64();
        if matches.get_flag("json") {
            return console::print_json(&json!({
                "output": output.display().to_string(),
                "repo": id.repo,
                "commit": found.commit,
                "files": files.iter().map(|file| file_json(file)).collect::<Vec<Value>>(),
                "bytes": bytes,
                "downloaded_bytes": downloaded_bytes,
                "seconds": seconds,
            }));
        }
        let mut page = Page::default();
        page.line(format_args!("{}: {} files, {}, verified", output.display(), files.len(), human(bytes)));
        let rate = downloaded_bytes as f64 / seconds.max(1e-9) / 1e9;
        let how = match downloaded_bytes {
            0 => "nothing had to be downloaded".to_owned(),
            bytes => format!("{} downloaded in {seconds:.1} s, {rate:.2} GB/s", human(bytes)),
        };
        page.line(format_args!("{}: {how}", request.location));
        page.print()
    }
}

/// A directory that is there or can be made, and is no part of the cache that files are copied from.
fn check_output(path: &Path, cache: &Kept) -> Result<()> {
    let refuse = |message: &str| Err(Error::Request(format!("-o {}: {message}", path.display())));
    if path == Path::new("-") {
        return refuse("files are written to disk, not to standard output; ./- is a directory of that name");
    }
    let cache = std::slice::from_ref(cache);
    if let Some(Kept { what, path }) = output::is_in_one_of(path, cache) {
        return refuse(&format!("is part of {what} ({}); name another place", path.display()));
    }
    match path.ancestors().find(|above| above.symlink_metadata().is_ok()) {
        Some(above) if !above.is_dir() => {
            refuse(&format!("{} is there and is no directory; name another place", above.display()))
        }
        _ => Ok(()),
    }
}

fn file_json(file: &RemoteFile) -> Value {
    let key = file.digest.kind().replace("git blob id", "blob_id");
    json!({ "name": file.name, "bytes": file.len_bytes, key: file.digest.hex() })
}

/// What there is to fetch.
struct Found {
    commit: String,
    files: Vec<RemoteFile>,
    /// Where each file lies in the cache.
    cached: Vec<Option<PathBuf>>,
    remote: Option<Box<dyn Remote>>,
}

impl Found {
    fn new(id: &HubId, environment: &Environment, stop: &AtomicBool) -> Result<Self> {
        if environment.offline {
            let snapshot = model::offline_snapshot(id, environment)?;
            let files = fetch::cached_files(&snapshot)?;
            let cached = files.iter().map(|file| Some(snapshot.join(&file.name))).collect();
            let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Self { commit, files, cached, remote: None });
        }
        let repository = model::repository(id, environment, None, stop)?;
        let cache = HubCache::new(environment.cache_dir.clone());
        let commit = repository.commit().to_owned();
        let files = repository.files().to_vec();
        let find = |file: &RemoteFile| cache.find(&id.repo, &commit, file);
        let cached = files.iter().map(find).collect::<Result<Vec<Option<PathBuf>>>>()?;
        Ok(Self { commit, files, cached, remote: Some(Box::new(repository)) })
    }
}
