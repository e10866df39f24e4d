//! MODEL: a local directory, a repository on the hub, or a folder in an object store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Arg, ArgAction, ArgMatches};

use super::size::{self, human};
use super::{headings, named, report};
use crate::disk::{Disk, with_suffix};
use crate::error::{Error, Result};
use crate::pipeline::{Pinned, Share};
use crate::source::hub::{Environment, HubCache, HubId, Notices, Repository, Snapshot};
use crate::source::store::StoreUrl;
use crate::source::{self, Deposit, Remote, Source, Spool, Streamed};

mod store;

pub(super) use store::sums_argument;

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
    /// A folder in an object store.
    Store(StoreUrl),
}

/// What a conversion of a streamed model needs beside the output.
pub(super) struct Streaming {
    /// Where shards are spooled.
    pub(super) spool_directory: PathBuf,
    /// Most bytes of them.
    pub(super) spool_limit_bytes: u64,
    /// For the journal: the commit of a repository.
    pub(super) pinned: Option<Pinned>,
    /// `--keep-source`: the cache, and bytes that will stay in it.
    pub(super) kept: Option<(PathBuf, u64)>,
}

/// An opened model.
pub(super) struct Model {
    /// Its files.
    pub(super) source: Box<dyn Source>,
    /// Set when weights come from the network.
    pub(super) streaming: Option<Streaming>,
    /// Files that would have to be downloaded, if the model is not on this machine: number, bytes.
    pub(super) remote_files: Vec<(usize, u64)>,
}

/// Arguments of every subcommand that takes a hub id.
pub(super) fn arguments() -> Vec<Arg> {
    vec![
        Arg::new("revision")
            .long("revision")
            .help_heading(headings::REMOTE)
            .value_name("REV")
            .help("Hub: branch, tag or commit [default: main, or what follows @ in MODEL]"),
        Arg::new("cache-dir")
            .long("cache-dir")
            .help_heading(headings::REMOTE)
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Hub: the Hugging Face cache [default: HF_HUB_CACHE, or hub in HF_HOME]"),
        Arg::new("connections")
            .long("connections")
            .help_heading(headings::REMOTE)
            .value_name("N")
            .value_parser(clap::value_parser!(u16).range(1..=64))
            .help("Hub: requests under way at once [default: 8]"),
    ]
}

/// Argument of the subcommands that download weights, beside [`arguments`].
pub(super) fn xet_argument() -> Arg {
    Arg::new("xet")
        .long("xet")
        .help_heading(headings::REMOTE)
        .action(ArgAction::SetTrue)
        .help("Hub: read weights from Xet storage, where they are there, instead of by plain ranges")
}

/// Arguments about the spool, beside [`arguments`].
pub(super) fn spool_arguments() -> Vec<Arg> {
    vec![
        Arg::new("spool")
            .long("spool")
            .help_heading(headings::REMOTE)
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Hub: where shards lie while they are read [default: OUTPUT.spool, or NAME.spool here]"),
        Arg::new("spool-limit")
            .long("spool-limit")
            .help_heading(headings::REMOTE)
            .value_name("SIZE")
            .value_parser(size::parse)
            .help("Hub: most bytes of shards on the disk at once [default: three shards]"),
        Arg::new("keep-source")
            .long("keep-source")
            .help_heading(headings::REMOTE)
            .action(ArgAction::SetTrue)
            .help("Hub: move shards into the Hugging Face cache instead of deleting them"),
    ]
}

/// Decides what `text` names: a path that exists wins over a hub id.
pub(super) fn place(text: &Path, matches: &ArgMatches) -> Result<Place> {
    if text.is_dir() {
        return Ok(Place::Directory(text.to_owned()));
    }
    if let Some(url) = named::store(text)? {
        return Ok(Place::Store(url));
    }
    named::check(text)?;
    let Some(id) = named::hub_id(text) else { return Err(named::not_a_directory(text)) };
    let (id, environment) = on_hub(id, matches)?;
    Ok(Place::Hub(id, environment))
}

/// `id` with `--revision`, and the environment with `--cache-dir`.
pub(super) fn on_hub(mut id: HubId, matches: &ArgMatches) -> Result<(HubId, Environment)> {
    let environment = environment(matches)?;
    if let Some(revision) = matches.get_one::<String>("revision") {
        if id.revision.as_ref().is_some_and(|other| other != revision) {
            return Err(Error::Request(format!("{id} and --revision {revision} contradict each other")));
        }
        id.revision = Some(revision.clone());
    }
    Ok((id, environment))
}

/// Who hears of the network: the log, and unless `--quiet` whoever reads stderr.
fn notices(matches: &ArgMatches) -> Notices {
    let quiet = matches.get_flag("quiet");
    Notices::new(move |notice| report::on_network(notice, quiet))
}

/// The environment with `--cache-dir`; waits are shown unless `--quiet`.
pub(super) fn environment(matches: &ArgMatches) -> Result<Environment> {
    let mut environment = Environment::from_env()?;
    environment.notices = notices(matches);
    if let Some(directory) = matches.get_one::<PathBuf>("cache-dir") {
        environment.cache_dir.clone_from(directory);
    }
    // Not every subcommand has it.
    environment.use_xet = matches.try_get_one::<bool>("xet").is_ok_and(|value| value == Some(&true));
    if environment.use_xet && environment.disable_xet {
        let message = "--xet and HF_HUB_DISABLE_XET contradict each other: leave one of them out";
        return Err(Error::Request(message.to_owned()));
    }
    Ok(environment)
}

/// A repository that answers.
pub(super) struct Connected {
    pub(super) repository: Arc<Repository>,
    pub(super) cache: HubCache,
    /// Its files, without a spool.
    pub(super) source: Streamed,
    /// Files that are not on this machine: number, bytes.
    pub(super) remote_files: Vec<(usize, u64)>,
}

impl Connected {
    /// Asks the hub for `id`, at the commit an unfinished run has pinned or at the newest one.
    pub(super) fn open(
        id: &HubId,
        environment: &Environment,
        pinned: Option<&Pinned>,
        matches: &ArgMatches,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let repository = Arc::new(repository(id, environment, pinned, stop)?);
        let cache = HubCache::new(environment.cache_dir.clone());
        let files = repository.files();
        let find = |file| cache.find(&id.repo, repository.commit(), file);
        let cached: Vec<Option<PathBuf>> = files.iter().map(find).collect::<Result<_>>()?;
        let absent = files.iter().zip(&cached).enumerate().filter(|(_, (_, cached))| cached.is_none());
        let remote_files = absent.map(|(id, (file, _))| (id, file.len_bytes)).collect();
        let remote: Arc<dyn Remote> = repository.clone();
        let source = Streamed::new(remote, cached, connections(matches), Arc::clone(stop));
        Ok(Self { repository, cache, source, remote_files })
    }

    /// Bytes of the largest shard to be downloaded.
    fn largest_shard_bytes(&self) -> u64 {
        let files = self.repository.files();
        let shards = self.remote_files.iter().filter(|&&(id, _)| files[id].name.ends_with(".safetensors"));
        shards.map(|&(_, bytes)| bytes).max().unwrap_or(0)
    }

    /// Bytes that the spool may hold: those given, or three shards.
    pub(super) fn spool_limit_bytes(&self, matches: &ArgMatches) -> u64 {
        let given = matches.get_one::<u64>("spool-limit").copied();
        given.unwrap_or_else(|| SPOOLED_SHARDS * self.largest_shard_bytes())
    }

    /// Name of the repository at its commit, as a directory.
    pub(super) fn folder_name(&self, id: &HubId) -> String {
        format!("models--{}--{}", id.repo.replace('/', "--"), self.repository.commit())
    }

    /// What this run reads, for the journal and the cache.
    pub(super) fn pinned(&self, id: &HubId) -> Pinned {
        Pinned {
            repo: id.repo.clone(),
            revision: revision(id).to_owned(),
            commit: self.repository.commit().to_owned(),
        }
    }
}

/// A snapshot of the cache with the model's name, for work without the network.
pub(super) fn offline(id: &HubId, environment: &Environment, stop: &Arc<AtomicBool>) -> Result<Snapshot> {
    let snapshot = offline_snapshot(id, environment)?;
    let name = id.repo.rsplit('/').next().unwrap_or_default();
    Snapshot::open(&snapshot, name, environment.notices.clone(), Arc::clone(stop))
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

/// Opens the MODEL argument for headers only, or with `output` for conversion to it or of a share of it; with `restart`, without
/// what an unfinished run has left in the spool.
pub(super) fn open(
    matches: &ArgMatches,
    output: Option<(&Path, Option<&Pinned>)>,
    share: Option<Share>,
    restart: bool,
    stop: &Arc<AtomicBool>,
) -> Result<Model> {
    let local = |source| Model { source, streaming: None, remote_files: Vec::new() };
    let (id, environment) = match place(super::path(matches, "MODEL"), matches)? {
        Place::Directory(path) => return Ok(local(source::open_directory(&path)?)),
        Place::Hub(id, environment) => (id, environment),
        Place::Store(url) => {
            return store::open(&url, matches, output.map(|(output, _)| output), share, restart, stop);
        }
    };
    if environment.offline {
        return Ok(local(Box::new(offline(&id, &environment, stop)?)));
    }
    let pinned = output.and_then(|(_, pinned)| pinned);
    let connected = Connected::open(&id, &environment, pinned, matches, stop)?;
    let Some((output, _)) = output else {
        let Connected { source, remote_files, .. } = connected;
        return Ok(Model { source: Box::new(source), streaming: None, remote_files });
    };
    let spool_limit_bytes = connected.spool_limit_bytes(matches);
    let pinned = connected.pinned(&id);
    let spool_directory = spool_directory(matches, &connected.folder_name(&id), output, share);
    let Connected { repository, cache, source, remote_files } = connected;
    let keep = matches.get_flag("keep-source");
    let deposit = keep.then(|| deposit(cache, &repository, pinned.clone()));
    let kept_bytes = remote_files.iter().map(|&(_, bytes)| bytes).sum();
    let kept = keep.then(|| (environment.cache_dir.clone(), kept_bytes));
    let streaming = Streaming { spool_directory, spool_limit_bytes, pinned: Some(pinned), kept };
    let spool = Spool::open(&Disk::default(), &streaming.spool_directory, spool_limit_bytes)?;
    if restart {
        spool.clear()?;
    }
    let source = source.with_spool(spool, deposit);
    Ok(Model { source: Box::new(source), streaming: Some(streaming), remote_files })
}

/// Where the shards of the model that is called `folder_name` lie while they are read. Every share has a place of its own.
fn spool_directory(matches: &ArgMatches, folder_name: &str, output: &Path, share: Option<Share>) -> PathBuf {
    let of_share = share.map_or(String::new(), |share| format!("-{}", share.stem()));
    match matches.get_one::<PathBuf>("spool") {
        Some(directory) => directory.join(format!("{folder_name}{of_share}")),
        None => with_suffix(output, &format!(".spool{of_share}")),
    }
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
pub(super) fn deposit(cache: HubCache, repository: &Arc<Repository>, pinned: Pinned) -> Deposit {
    let repository = Arc::clone(repository);
    Box::new(move |file, path| {
        let file = &repository.files()[file];
        cache.deposit(&pinned.repo, &pinned.commit, &pinned.revision, file, path)
    })
}
