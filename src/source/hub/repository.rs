//! A model repository on a hub, pinned to one commit.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::client::Client;
use super::environment::Environment;
use super::id::{HubId, is_commit};
use super::listing;
use super::range::{self, Wanted};
use crate::error::{Error, Result};
use crate::source::{Remote, RemoteFile, notice};

/// The branch that is meant when none is named.
const MAIN: &str = "main";

/// The files of one commit of a model repository.
pub struct Repository {
    client: Client,
    repo: String,
    revision: String,
    commit: String,
    location: String,
    files: Vec<RemoteFile>,
}

impl Repository {
    /// Asks the hub which commit the revision is now, and lists its files. That commit is read
    /// from then on, whatever happens to the branch.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses, with what to do; when `HF_HUB_OFFLINE` is set;
    /// [`Error::Interrupted`] once `stop` is set.
    pub fn open(environment: &Environment, id: &HubId, stop: &AtomicBool) -> Result<Self> {
        let place = id.to_string();
        let client = connect(environment, &place)?;
        let revision = id.revision.as_deref();
        let commit = client.block_on(listing::pin(&client, &place, &id.repo, revision, stop))?;
        Self::list(client, &id.repo, revision, &commit, stop)
    }

    /// As [`Repository::open`] at the commit that an earlier run pinned `revision` to.
    ///
    /// # Errors
    /// As there, and when the commit is not there any more.
    pub fn open_at(
        environment: &Environment,
        repo: &str,
        revision: Option<&str>,
        commit: &str,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let place = format!("{repo}@{commit}");
        if !is_commit(commit) {
            return Err(Error::hub(place, "this is not a full commit id"));
        }
        Self::list(connect(environment, &place)?, repo, revision, commit, stop)
    }

    fn list(
        client: Client,
        repo: &str,
        revision: Option<&str>,
        commit: &str,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let location = format!("{repo}@{commit}");
        let files = client.block_on(listing::files(&client, &location, repo, commit, stop))?;
        Ok(Self {
            client,
            repo: repo.to_owned(),
            revision: revision.unwrap_or(MAIN).to_owned(),
            commit: commit.to_owned(),
            location,
            files,
        })
    }

    /// `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The revision as it was asked for; `main` when none was.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The commit, 40 hex digits.
    pub fn commit(&self) -> &str {
        &self.commit
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("location", &self.location)
            .field("files", &self.files.len())
            .finish()
    }
}

impl Remote for Repository {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn files(&self) -> &[RemoteFile] {
        &self.files
    }

    fn read_range(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read(file, range, false, stop, sink)
    }

    fn read_awaited(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read(file, range, true, stop, sink)
    }

    fn mistrust(&self, file: usize) {
        let file = &self.files[file];
        if self.client.xet().mistrust(file) {
            let place = format!("{}: {}", self.location, file.name);
            let what = "what came from Xet storage is not what the hub states; it comes anew as plain ranges, and Xet is not asked again in this run";
            self.client.notices().say(&place, what);
            return;
        }
        let place = format!("{}: {}", self.location, file.name);
        self.client.notices().say(&place, notice::ANEW);
    }
}

impl Repository {
    fn read(
        &self,
        file: usize,
        range: Range<u64>,
        is_awaited: bool,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let file = &self.files[file];
        let wanted = Wanted {
            client: &self.client,
            place: format!("{}: {}", self.location, file.name),
            repo: &self.repo,
            commit: &self.commit,
            file,
            is_awaited,
        };
        self.client.block_on(range::read(&wanted, range, stop, sink))
    }
}

/// Whether a file may have this name below a folder of ours.
pub(super) fn is_safe_name(name: &str) -> bool {
    name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !name.chars().any(|c| c == '\\' || c.is_control())
}

fn connect(environment: &Environment, place: &str) -> Result<Client> {
    if environment.offline {
        return Err(Error::hub(
            place,
            format!(
                "HF_HUB_OFFLINE is set, so that only {} is looked at; unset it to use the network",
                environment.cache_dir.display()
            ),
        ));
    }
    Client::new(environment)
}
