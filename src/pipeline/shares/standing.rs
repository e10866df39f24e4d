//! How far an unfinished result is, whoever writes it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Share;
use super::folder::Folder;
use super::skeleton::Skeleton;
use crate::error::{Error, Result};
use crate::lock;
use crate::pipeline::journal::Journal;
use crate::pipeline::{Manifest, manifest_path, names};

/// How far a result is.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It has its name.
    Complete,
    /// Several machines write it.
    Shares(Vec<StandingOfShare>),
    /// One machine writes it.
    Run {
        /// Whether it does so now.
        is_running: bool,
        /// Units of work that are done ...
        done: usize,
        /// ... of so many.
        of: usize,
    },
}

/// How far a share is.
#[derive(Debug, Clone, PartialEq)]
pub struct StandingOfShare {
    /// Which one.
    pub share: Share,
    /// Whether all of it is done.
    pub is_done: bool,
    /// Whether a process does it now, as far as the file system's locks tell.
    pub is_running: bool,
    /// Whether it has begun.
    pub is_begun: bool,
    /// What is done of it, as a fraction of the bytes it reads.
    pub done: f64,
    /// How long ago it has recorded something.
    pub idle: Option<Duration>,
}

impl fmt::Display for StandingOfShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.done;
        match (self.is_done, self.is_running, self.is_begun) {
            (true, ..) => write!(f, "done"),
            (_, true, _) => write!(f, "running, {percent:.0} %"),
            (_, _, false) => write!(f, "not begun"),
            _ => write!(f, "not running, {percent:.0} %"),
        }
    }
}

/// How far the result at `output` is.
///
/// # Errors
/// When there is nothing of it, or it cannot be read.
pub fn standing(output: &Path) -> Result<Standing> {
    let folder = Folder::of(output);
    if let Some(agreement) = folder.agreement()? {
        let skeleton = Skeleton::read(&folder.plan(), &agreement)?;
        let shares = (1..=agreement.shares).map(|job| Share { job, jobs: agreement.shares });
        let standings = shares.map(|share| {
            let path = folder.journal(share);
            let there = Journal::read(&path)?.filter(|(request, _)| *request == agreement.request);
            let (mut done_bytes, mut all_bytes) = (0, 0);
            for (job, bytes) in skeleton.bytes_in.iter().enumerate() {
                if skeleton.share_of[job] + 1 == share.job {
                    all_bytes += bytes;
                    let is_done = there.as_ref().is_some_and(|(_, progress)| progress.done[job].is_some());
                    done_bytes += if is_done { *bytes } else { 0 };
                }
            }
            let is_done = there
                .as_ref()
                .is_some_and(|(_, progress)| folder.done(share, progress, &skeleton.share_of).is_some());
            let modified = path.metadata().and_then(|metadata| metadata.modified()).ok();
            Ok(StandingOfShare {
                share,
                is_done,
                is_running: !is_done && lock::is_held(&folder.lock_path(share)),
                is_begun: there.is_some(),
                done: if is_done { 1.0 } else { done_bytes as f64 / (all_bytes as f64).max(1.0) },
                idle: modified.and_then(|modified| SystemTime::now().duration_since(modified).ok()),
            })
        });
        return standings.collect::<Result<_>>().map(Standing::Shares);
    }
    let is_running = lock::is_held(&names::lock(output));
    if let Some((request, progress)) = Journal::read(&names::journal(output))? {
        let done = progress.done.iter().flatten().count();
        return Ok(Standing::Run { is_running, done, of: request.jobs });
    }
    if Manifest::read(&manifest_path(output)).is_ok() {
        return Ok(Standing::Complete);
    }
    Err(Error::Request(format!(
        "{}: neither a result nor an unfinished one is there (looked for {}, {} and {})",
        output.display(),
        folder.plan().display(),
        names::journal(output).display(),
        manifest_path(output).display()
    )))
}
