//! A model to be measured: a file or directory, or a repository on the hub whose weights stream by.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ArgMatches;

use super::console;
use super::model::{self, Connected};
use super::named;
use super::size::human;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::model::order_of_need;
use crate::opened::Opened;
use crate::pipeline::{Need, Pinned};
use crate::source::hub::HubId;
use crate::source::{Arrival, Feed, Spool};

/// An opened model.
pub(super) struct Measured {
    pub(super) model: Opened,
    /// Its shards, when they are on the hub.
    shards: Option<Shards>,
}

/// Shards that come and go.
struct Shards {
    feed: Arc<Feed>,
    /// Where they lie meanwhile, and the most bytes of them.
    spool_directory: PathBuf,
    limit_bytes: u64,
    /// The cache that they go to, if they are kept.
    cache_directory: Option<PathBuf>,
}

/// Which of the models on a command line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The one that `--revision` speaks of.
    Model,
    /// What it is compared with.
    Original,
}

impl Measured {
    /// Opens what `path` names. `--spool-limit` is for all streamed models: this one gets its share of
    /// `sharing`.
    pub(super) fn open(
        matches: &ArgMatches,
        path: &Path,
        which: Which,
        sharing: u64,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        named::check(path)?;
        let Some(id) = named::hub_id(path) else {
            return Ok(Self { model: Opened::open(path)?.evaluable()?, shards: None });
        };
        let (id, environment) = match which {
            Which::Model => model::on_hub(id, matches)?,
            Which::Original => (id, model::environment(matches)?),
        };
        if environment.offline {
            let source = model::offline(&id, &environment, stop)?;
            return Ok(Self { model: Opened::from_source(Box::new(source))?.evaluable()?, shards: None });
        }
        let connected = Connected::open(&id, &environment, None, matches, stop)?;
        let directory = spool_directory(matches, &connected, &id, which);
        let share = if matches.get_one::<u64>("spool-limit").is_some() { sharing.max(1) } else { 1 };
        let limit_bytes = connected.spool_limit_bytes(matches) / share;
        let keep = matches.get_flag("keep-source");
        Self::stream(connected, keep.then_some(&id), &directory, limit_bytes, stop)
    }

    /// The source of a conversion once more, through the spool that was the conversion's.
    pub(super) fn again(
        matches: &ArgMatches,
        pinned: &Pinned,
        directory: &Path,
        limit_bytes: u64,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let id = HubId { repo: pinned.repo.clone(), revision: Some(pinned.commit.clone()) };
        let connected = Connected::open(&id, &model::environment(matches)?, None, matches, stop)?;
        Self::stream(connected, None, directory, limit_bytes, stop)
    }

    /// `keep`: the revision under which shards go into the cache.
    fn stream(
        connected: Connected,
        keep: Option<&HubId>,
        directory: &Path,
        limit_bytes: u64,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let pinned = keep.map(|id| connected.pinned(id));
        let Connected { repository, cache, source, .. } = connected;
        let cache_directory = keep.map(|_| cache.directory().to_owned());
        let deposit = pinned.map(|pinned| model::deposit(cache, &repository, pinned));
        let spool = Spool::open(&Disk::default(), directory, limit_bytes)?;
        // A measurement cannot be gone on with, so what an earlier one has left is of no use.
        spool.clear()?;
        let feed = Arc::new(Feed::new(source.with_spool(spool, deposit), Arc::clone(stop)));
        let model = Opened::from_source(Box::new(Arc::clone(&feed)))?.evaluable()?;
        let spool_directory = directory.to_owned();
        Ok(Self { model, shards: Some(Shards { feed, spool_directory, limit_bytes, cache_directory }) })
    }

    /// Fixes the order in which weights will come to a walk that begins with layer `first`; says on stderr how much that is. Returns what they will take of
    /// the disk.
    pub(super) fn follow(&self, first: usize, with_prediction: bool, quiet: bool) -> Result<Vec<Need>> {
        let Some(shards) = &self.shards else { return Ok(Vec::new()) };
        let Shards { feed, spool_directory, limit_bytes, cache_directory } = shards;
        let store = self.model.store()?;
        let extents = |roles: Vec<_>| {
            let lists: Result<Vec<Vec<_>>> = roles.into_iter().map(|role| store.extents(role)).collect();
            lists.map(|lists| lists.concat())
        };
        let visits: Result<Vec<_>> =
            order_of_need(store, first, with_prediction).into_iter().map(extents).collect();
        feed.follow(visits?)?;
        let bytes = feed.download_bytes();
        if !quiet {
            console::note(format_args!(
                "{}: {} to download",
                crate::source::Source::location(&**feed),
                human(bytes)
            ));
        }
        let spool =
            Need { what: "the spool", directory: spool_directory.clone(), bytes: bytes.min(*limit_bytes) };
        let kept = cache_directory.clone().map(|directory| Need { what: "--keep-source", directory, bytes });
        Ok([spool].into_iter().chain(kept).collect())
    }

    /// Runs `work`, which reads the weights, all of it.
    pub(super) fn run<T>(&self, quiet: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.feed(quiet, work).map_err(|error| match error {
            Error::Interrupted => {
                Error::Request("interrupted; a measurement has to begin again from its first shard".into())
            }
            other => other,
        })
    }

    /// Runs `work`, which reads the weights, and which the same command can go on with.
    pub(super) fn feed<T>(&self, quiet: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let on_file = |arrival: Arrival| {
            let Arrival { name, bytes, number, files, is_again, held_bytes } = arrival;
            if !quiet {
                let (bytes, held) = (human(bytes), human(held_bytes));
                let here = if is_again { "here again" } else { "here" };
                console::note(format_args!(
                    "{number} of {files} shards have come: {name}, {bytes}, is {here} ({held} in the spool)"
                ));
            }
        };
        match &self.shards {
            Some(Shards { feed, .. }) => feed.run(&on_file, work),
            None => work(),
        }
    }
}

/// Where shards lie; never where a conversion keeps its own.
fn spool_directory(matches: &ArgMatches, connected: &Connected, id: &HubId, which: Which) -> PathBuf {
    let suffix = match which {
        Which::Model => "",
        Which::Original => ".original",
    };
    match matches.get_one::<PathBuf>("spool") {
        Some(directory) => directory.join(format!("{}{suffix}.read", connected.folder_name(id))),
        None => {
            let name = id.repo.rsplit('/').next().unwrap_or_default();
            PathBuf::from(format!("{name}{suffix}.read.spool"))
        }
    }
}
