//! The folder in which the shares of a result keep what they need beside it.
//!
//! ```text
//! OUTPUT.shares/plan/            what all of them do, made whole under another name and then renamed
//! OUTPUT.shares/plan/request.json   the request and the number of shares
//! OUTPUT.shares/plan/skeleton.json  what `join` needs to know of the plan
//! OUTPUT.shares/plan/content        headers and small files of the result, one after the other
//! OUTPUT.shares/2-of-4.journal   which jobs share 2 has done (as the journal of a whole run)
//! OUTPUT.shares/2-of-4.json      share 2 is done, if its journal is sealed with the fingerprint of this file
//! OUTPUT.shares/2-of-4.lock      held while it runs
//! OUTPUT.shares/joined/          the plan, once the result has its name and only cleaning up is left
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Share;
use super::skeleton::Skeleton;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::lock;
use crate::pipeline::journal::Progress;
use crate::pipeline::names;
use crate::pipeline::request::{Pinned, RequestRecord};
use crate::plan::MAX_SHARES;
use crate::small;

/// How often a lock is tried for: somebody may be asking who holds it.
const LOCK_TRIES: usize = 5;
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Numbers that a scheduler gives to the tasks of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArraySpan {
    /// The first one.
    pub first: u64,
    /// From one to the next.
    pub step: u64,
}

/// What all shares of a result do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreement {
    /// What is made from what.
    pub(super) request: RequestRecord,
    /// How many shares.
    pub(super) shares: u32,
    /// Which does what, as a digest.
    pub(super) cuts: String,
    /// What the scheduler calls them, if one started the first of them.
    pub(super) array: Option<ArraySpan>,
    /// Fingerprints of the files beside this one; empty until they are written.
    pub(super) skeleton: String,
}

/// What a share that is done says beside its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    pub(super) share: Share,
    /// SHA-256 of the source files that it has read to their ends.
    pub(super) source_files: BTreeMap<String, String>,
}

/// What came of asking for agreement.
pub(super) enum Claim {
    /// Every share does the same.
    Agreed,
    /// Another one began at another commit of the same revision.
    OtherCommit,
}

/// `OUTPUT.shares`.
pub(super) struct Folder(PathBuf);

impl Agreement {
    pub(super) fn new(
        request: RequestRecord,
        share: Share,
        share_of: &[u32],
        array: Option<ArraySpan>,
    ) -> Self {
        Self { request, shares: share.jobs, cuts: cuts(share_of), array, skeleton: String::new() }
    }

    /// Whether it is `share_of` that says which share does a job.
    pub(super) fn is_dealt_as(&self, share_of: &[u32]) -> bool {
        self.cuts == cuts(share_of)
    }

    /// What `self`, asked for now, has other than what was agreed on.
    fn difference(&self, agreed: &Self) -> Option<String> {
        if let Some(difference) = self.request.difference(&agreed.request) {
            return Some(difference);
        }
        if self.shares != agreed.shares {
            return Some(format!("they were {}, now {}", agreed.shares, self.shares));
        }
        (self.cuts != agreed.cuts).then(|| "jobs were dealt out in another way".to_owned())
    }

    /// Whether both are of one revision of one repository, at different commits.
    fn is_of_other_commit(&self, agreed: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (&self.request.pinned, &agreed.request.pinned) else { return false };
        let same = |a: &Pinned, b: &Pinned| (&a.repo, &a.revision) == (&b.repo, &b.revision);
        same(ours, theirs) && ours.commit != theirs.commit
    }
}

impl Folder {
    pub(super) fn of(output: &Path) -> Self {
        Self(names::shares(output))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn plan(&self) -> PathBuf {
        self.0.join("plan")
    }

    pub(super) fn joined(&self) -> PathBuf {
        self.0.join("joined")
    }

    pub(super) fn journal(&self, share: Share) -> PathBuf {
        self.0.join(format!("{}.journal", share.stem()))
    }

    pub(super) fn sealed(&self, share: Share) -> PathBuf {
        self.0.join(format!("{}.json", share.stem()))
    }

    pub(super) fn lock_path(&self, share: Share) -> PathBuf {
        self.0.join(format!("{}.lock", share.stem()))
    }

    /// Whether shares have begun and were not joined.
    pub(super) fn has_plan(&self) -> bool {
        self.plan().exists()
    }

    /// Removes it, what speaks of a join last.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub(super) fn clear(&self, disk: &Disk) -> Result<()> {
        let joined = self.joined();
        for entry in std::fs::read_dir(&self.0).map_err(Error::io(&self.0, "list"))? {
            let path = entry.map_err(Error::io(&self.0, "list"))?.path();
            if path != joined {
                disk.remove(&path)?;
            }
        }
        disk.remove(&joined)?;
        disk.remove(&self.0)
    }

    /// What the shares have agreed on; `None` when none has begun.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn agreement(&self) -> Result<Option<Agreement>> {
        if !self.has_plan() {
            return Ok(None);
        }
        self.agreement_in(&self.plan()).map(Some)
    }

    /// What stands in a directory such as `OUTPUT.shares/plan`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn agreement_in(&self, directory: &Path) -> Result<Agreement> {
        let path = directory.join("request.json");
        let bytes = small::read(&path, small::SHARE)?;
        let parsed = small::json::<Agreement>(&path.display().to_string(), &bytes).ok();
        match parsed.filter(|agreement| (1..=MAX_SHARES).contains(&agreement.shares)) {
            Some(agreement) => Ok(agreement),
            None => Err(Error::Request(format!(
                "{}: not what shares agree on, or of another version of requant; remove {} to begin anew",
                path.display(),
                self.0.display()
            ))),
        }
    }

    /// Sees to it that every share does what `wanted` says, and of two that begin at once the same.
    ///
    /// # Errors
    /// When another one has agreed on something else; says what is different.
    pub(super) fn agree(
        &self,
        disk: &Disk,
        output: &Path,
        wanted: &Agreement,
        share: Share,
        skeleton: impl Fn() -> Result<Skeleton>,
    ) -> Result<Claim> {
        loop {
            if let Some(agreed) = self.agreement()? {
                if wanted.is_of_other_commit(&agreed) {
                    return Ok(Claim::OtherCommit);
                }
                let Some(difference) = wanted.difference(&agreed) else { return Ok(Claim::Agreed) };
                return Err(Error::Request(format!(
                    "{}: shares of another request are there: {difference}. Every share is given the same options and reads \
                     the same copy of the source; to throw the work of all shares away, remove {}",
                    output.display(),
                    self.0.display()
                )));
            }
            // Nobody else has this name: the share is locked, and where there are no locks it is made by the same content.
            let prepared = self.0.join(format!("plan.{}", share.stem()));
            disk.remove(&prepared)?;
            disk.make_directory(&prepared)?;
            let skeleton = skeleton()?.write(disk, &prepared)?;
            let text = serde_json::to_vec_pretty(&Agreement { skeleton, ..wanted.clone() })
                .map_err(|error| Error::io(&prepared, "encode")(error.into()))?;
            write_new(disk, &prepared.join("request.json"), &text)?;
            disk.sync_directory(&prepared)?;
            if disk.rename_new(&prepared, &self.plan())? {
                disk.sync_directory(&self.0)?;
                disk.sync_parent(&self.0)?;
                return Ok(Claim::Agreed);
            }
            disk.remove(&prepared)?;
        }
    }

    /// Locks a share for this process until what is returned is dropped; without a lock where the file system has
    /// none, since a share that is done twice is the same.
    ///
    /// # Errors
    /// When another process has it.
    pub(super) fn lock(&self, share: Share, disk: &Disk) -> Result<Locked> {
        let path = self.lock_path(share);
        let busy = || format!("{}: another requant does share {share} right now", self.0.display());
        let mut tries = 1;
        loop {
            match lock::lock(&path, busy) {
                Ok(file) => return Ok(Locked { path, disk: disk.clone(), file: Some(file) }),
                Err(error) if lock::has_none(&error) => {
                    return Ok(Locked { path, disk: disk.clone(), file: None });
                }
                Err(Error::Request(_)) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes that a share is done; gives the fingerprint with which its journal is to be sealed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn seal(&self, disk: &Disk, seal: &Seal) -> Result<u128> {
        let path = self.sealed(seal.share);
        let mut text =
            serde_json::to_vec_pretty(seal).map_err(|error| Error::io(&path, "encode")(error.into()))?;
        text.push(b'\n');
        disk.replace(&path, &text)?;
        disk.sync_directory(&self.0)?;
        Ok(Fingerprint::of(0, &text))
    }

    /// What a share says that is done and whose journal was sealed with `fingerprint`.
    fn read_seal(&self, share: Share, fingerprint: Option<u128>) -> Option<Seal> {
        let bytes = small::read(&self.sealed(share), small::SHARE).ok()?;
        if Some(Fingerprint::of(0, &bytes)) != fingerprint {
            return None;
        }
        serde_json::from_slice(&bytes).ok().filter(|seal: &Seal| seal.share == share)
    }

    /// What a share says that is done, if its journal is `progress` and `share_of` says which share does a job. Each of
    /// its jobs must be recorded: where there are no locks, one of two processes may have sealed a journal in which the
    /// other was still overwriting records.
    pub(super) fn done(&self, share: Share, progress: &Progress, share_of: &[u32]) -> Option<Seal> {
        let mut own = share_of.iter().zip(&progress.done).filter(|(number, _)| **number + 1 == share.job);
        let is_whole = share_of.len() == progress.done.len() && own.all(|(_, done)| done.is_some());
        self.read_seal(share, progress.sealed).filter(|_| is_whole)
    }
}

/// A share that this process does.
pub(super) struct Locked {
    path: PathBuf,
    disk: Disk,
    file: Option<File>,
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = self.disk.remove(&self.path);
            drop(file);
        }
        // A folder in which nothing is left, because all was joined, goes too; one with something in it stays.
        if let Some(folder) = self.path.parent().filter(|folder| is_empty(folder)) {
            let _ = self.disk.remove_directory(folder);
        }
    }
}

/// A digest of which share does which job.
fn cuts(share_of: &[u32]) -> String {
    let bytes: Vec<u8> = share_of.iter().flat_map(|share| share.to_le_bytes()).collect();
    format!("{:032x}", Fingerprint::of(0, &bytes))
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Writes a new file and syncs it.
pub(super) fn write_new(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = disk.create_new(path)?;
    file.write_all_at(bytes, 0)?;
    file.sync()
}
