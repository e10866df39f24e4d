//! MODEL: a local directory, or a repository on the hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Arg, ArgAction, ArgMatches};

use super::size::{self, human};
use crate::error::{Error, Result};
use crate::pipeline::Pinned;
use crate::source::hub::{Environment, HubCache, HubId, Repository};
use crate::source::{Deposit, LocalDirectory, Remote, Source, Spool, Streamed};

/// Shards that fit into the spool unless `--spool-limit` says otherwise.
const SPOOLED_SHARDS: u64 = 3;
/// Requests under way at once, unless `--connections` says otherwise.
const CONNECTIONS: usize = 8;

/// Where a model is.
pub(super) enum Place {
    /// A directory with a checkpoint.
    Directory(PathBuf),
    /// A repository, and what the environment says about the hub.
    Hub(HubId, Environment),
}

/// What a conversion of a streamed model needs beside the output.
pub(super) struct Streaming {
    /// Where shards are spooled.
    pub(super) spool_directory: PathBuf,
    /// Most bytes of them.
    pub(super) spool_limit_bytes: u64,
    /// For the journal.
    pub(super) pinned: Pinned,
    /// Bytes that will stay in the cache: those of `--keep-source`.
    pub(super) kept_bytes: u64,
    /// Where that cache is.
    pub(super) cache_directory: PathBuf,
}

/// An opened model.
pub(super) struct Model {
    /// Its files.
    pub(super) source: Box<dyn Source>,
    /// Set when weights come from the hub.
    pub(super) streaming: Option<Streaming>,
    /// Files that would have to be downloaded, if the model is on the hub: number, bytes.
    pub(super) remote_files: Vec<(usize, u64)>,
}

/// Arguments of every subcommand that takes a hub id.
pub(super) fn arguments() -> Vec<Arg> {
    vec![
        Arg::new("revision")
            .long("revision")
            .value_name("REV")
            .help("Hub: branch, tag or commit [default: main, or what follows @ in MODEL]"),
        Arg::new("cache-dir")
            .long("cache-dir")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Hub: the Hugging Face cache [default: HF_HUB_CACHE, or hub in HF_HOME]"),
        Arg::new("connections")
            .long("connections")
            .value_name("N")
            .value_parser(clap::value_parser!(u16).range(1..=64))
            .help("Hub: requests under way at once [default: 8]"),
    ]
}

/// Arguments about the spool, beside [`arguments`].
pub(super) fn spool_arguments() -> Vec<Arg> {
    vec![
        Arg::new("spool")
            .long("spool")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Hub: where shards lie while they are converted [default: OUTPUT.spool]"),
        Arg::new("spool-limit")
            .long("spool-limit")
            .value_name("SIZE")
            .value_parser(size::parse)
            .help("Hub: most bytes of shards on the disk at once [default: three shards]"),
        Arg::new("keep-source")
            .long("keep-source")
            .action(ArgAction::SetTrue)
            .help("Hub: move shards into the Hugging Face cache instead of deleting them"),
    ]
}

/// Decides what `text` names: a path that exists wins over a hub id.
pub(super) fn place(text: &Path, matches: &ArgMatches) -> Result<Place> {
    if text.is_dir() {
        return Ok(Place::Directory(text.to_owned()));
    }
    let id = text.to_str().and_then(HubId::parse).filter(|_| !text.exists());
    let Some(id) = id else {
        let message = format!(
            "{}: neither a directory with a Hugging Face checkpoint nor a hub id such as org/name",
            text.display()
        );
        return Err(Error::Request(message));
    };
    let (id, environment) = on_hub(id, matches)?;
    Ok(Place::Hub(id, environment))
}

/// `id` with `--revision`, and the environment with `--cache-dir`.
pub(super) fn on_hub(mut id: HubId, matches: &ArgMatches) -> Result<(HubId, Environment)> {
    if let Some(revision) = matches.get_one::<String>("revision") {
        if id.revision.as_ref().is_some_and(|other| other != revision) {
            return Err(Error::Request(format!("{id} and --revision {revision} contradict each other")));
        }
        id.revision = Some(revision.clone());
    }
    let mut environment = Environment::from_env()?;
    if let Some(directory) = matches.get_one::<PathBuf>("cache-dir") {
        environment.cache_dir.clone_from(directory);
    }
    Ok((id, environment))
}

/// A path, for subcommands that read weights of this machine only; a hub id is told how to get here.
pub(super) fn here(path: &Path) -> Result<&Path> {
    let is_file_name =
        path.extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    match path.to_str().and_then(HubId::parse) {
        Some(id) if !is_file_name && !path.exists() => Err(Error::Request(format!(
            "{id}: no such file or directory; a model on the hub has to be here first: requant fetch {id} -o DIR"
        ))),
        _ => Ok(path),
    }
}

/// The repository `id` names, at the commit an unfinished run has pinned or at the newest one.
pub(super) fn repository(
    id: &HubId,
    environment: &Environment,
    pinned: Option<&Pinned>,
    stop: &AtomicBool,
) -> Result<Repository> {
    let revision = revision(id);
    let opened = match pinned {
        Some(pinned) if pinned.repo == id.repo && pinned.revision == revision => {
            Repository::open_at(environment, &id.repo, Some(revision), &pinned.commit, stop)
        }
        _ => Repository::open(environment, id, stop),
    };
    // A mistyped path looks like a hub id.
    opened.map_err(|error| match error {
        Error::Hub { place, message } => {
            Error::hub(place, format!("{message} (nor is there a directory {} here)", id.repo))
        }
        other => other,
    })
}

/// The revision asked for.
pub(super) fn revision(id: &HubId) -> &str {
    id.revision.as_deref().unwrap_or("main")
}

/// Requests under way at once.
pub(super) fn connections(matches: &ArgMatches) -> usize {
    matches.get_one::<u16>("connections").map_or(CONNECTIONS, |&connections| usize::from(connections))
}

/// The snapshot of `id` in the cache, for work without the network.
pub(super) fn offline_snapshot(id: &HubId, environment: &Environment) -> Result<PathBuf> {
    let cache = HubCache::new(environment.cache_dir.clone());
    let snapshot =
        cache.commit_of(&id.repo, revision(id)).and_then(|commit| cache.snapshot(&id.repo, &commit));
    snapshot.ok_or_else(|| {
        let message = format!(
            "not in the cache at {}, and HF_HUB_OFFLINE is set: unset it, or fetch the model first",
            environment.cache_dir.display()
        );
        Error::hub(id.to_string(), message)
    })
}

/// Opens the MODEL argument for headers only, or with `output` for conversion to it.
pub(super) fn open(
    matches: &ArgMatches,
    output: Option<(&Path, Option<&Pinned>)>,
    stop: &Arc<AtomicBool>,
) -> Result<Model> {
    let local = |source: LocalDirectory| Model {
        source: Box::new(source),
        streaming: None,
        remote_files: Vec::new(),
    };
    let (id, environment) = match place(super::path(matches, "MODEL"), matches)? {
        Place::Directory(path) => return Ok(local(LocalDirectory::open(&path)?)),
        Place::Hub(id, environment) => (id, environment),
    };
    if environment.offline {
        let snapshot = offline_snapshot(&id, &environment)?;
        let name = id.repo.rsplit('/').next().unwrap_or_default();
        return Ok(local(LocalDirectory::open(&snapshot)?.named(name)));
    }
    let repository = Arc::new(repository(&id, &environment, output.and_then(|(_, pinned)| pinned), stop)?);
    let cache = HubCache::new(environment.cache_dir.clone());
    let cached: Vec<Option<PathBuf>> = repository
        .files()
        .iter()
        .map(|file| cache.find(&id.repo, repository.commit(), file))
        .collect::<Result<_>>()?;
    let absent =
        repository.files().iter().zip(&cached).enumerate().filter(|(_, (_, cached))| cached.is_none());
    let remote_files: Vec<(usize, u64)> = absent.map(|(id, (file, _))| (id, file.len_bytes)).collect();
    let largest = remote_files
        .iter()
        .filter(|&&(id, _)| repository.files()[id].name.ends_with(".safetensors"))
        .map(|&(_, bytes)| bytes)
        .max()
        .unwrap_or(0);

    let remote: Arc<dyn Remote> = repository.clone();
    let source = Streamed::new(remote, cached, connections(matches), Arc::clone(stop));
    let Some((output, _)) = output else {
        return Ok(Model { source: Box::new(source), streaming: None, remote_files });
    };
    let spool_limit_bytes = match matches.get_one::<u64>("spool-limit") {
        Some(&limit) => limit,
        None => SPOOLED_SHARDS * largest,
    };
    let keep = matches.get_flag("keep-source");
    let pinned = Pinned {
        repo: id.repo.clone(),
        revision: revision(&id).to_owned(),
        commit: repository.commit().to_owned(),
    };
    let spool_directory = match matches.get_one::<PathBuf>("spool") {
        Some(directory) => {
            directory.join(format!("models--{}--{}", id.repo.replace('/', "--"), repository.commit()))
        }
        None => {
            let mut name = output.file_name().unwrap_or_default().to_owned();
            name.push(".spool");
            output.with_file_name(name)
        }
    };
    let cache_directory = environment.cache_dir.clone();
    let deposit = keep.then(|| deposit(cache, &repository, pinned.clone()));
    let kept_bytes = if keep { remote_files.iter().map(|&(_, bytes)| bytes).sum() } else { 0 };
    let streaming = Streaming { spool_directory, spool_limit_bytes, pinned, kept_bytes, cache_directory };
    let spool = Spool::open(&streaming.spool_directory, spool_limit_bytes)?;
    let source = source.with_spool(spool, deposit);
    Ok(Model { source: Box::new(source), streaming: Some(streaming), remote_files })
}

/// `--spool-limit`, which must hold the largest shard.
pub(super) fn spool_limit(matches: &ArgMatches, largest: u64) -> Result<u64> {
    match matches.get_one::<u64>("spool-limit").copied() {
        Some(limit) if limit < largest => Err(Error::Request(format!(
            "--spool-limit {}: the largest shard has {} ({largest} bytes), and one has to fit",
            human(limit),
            human(largest)
        ))),
        Some(limit) => Ok(limit),
        None => Ok(SPOOLED_SHARDS * largest),
    }
}

/// Moves released shards into the cache.
fn deposit(cache: HubCache, repository: &Arc<Repository>, pinned: Pinned) -> Deposit {
    let repository = Arc::clone(repository);
    Box::new(move |file, path| {
        let file = &repository.files()[file];
        cache.deposit(&pinned.repo, &pinned.commit, &pinned.revision, file, path)?;
        Ok(())
    })
}
