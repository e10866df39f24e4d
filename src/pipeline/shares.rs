//! One result, written by several machines on a file system that they share.
//!
//! Every share does its own jobs (`plan::shares`) and writes into the same temporary files, each byte at its final
//! place, with a journal and a lock of its own. Whoever comes first writes down what all of them do, the plan; a share
//! that would do something else stops. A share leaves alone what belongs to no job (headers, padding, small files) and
//! reads nothing that another share may be writing. When all are done, [`join`] compares every byte with the journals,
//! hashes the result, and gives it its name.
//!
//! Shares may run in any order, at once, several times, be killed and be repeated elsewhere: what a share writes follows
//! from the plan, so doing it again does no harm.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use self::folder::{Agreement, Folder, Seal};
use self::skeleton::Skeleton;
use super::conversion::Conversion;
use super::journal::Journal;
use super::manifest::{About, Manifest};
use super::names::{self, Names};
use super::output::check_replace;
use super::request::{Pinned, RequestRecord};
use super::staging::open_shared;
use super::{Progress, Settings, can_go_on, manifest_path, provenance};
use crate::checkpoint::Catalogue;
use crate::disk::{DiskFile, parent_of};
use crate::error::{Error, Result};
use crate::lock;
use crate::plan::{self, Blueprint};

mod folder;
mod join;
mod skeleton;
mod standing;

pub use folder::ArraySpan;
pub use join::{Joined, Joining, join};
pub use standing::{Standing, StandingOfShare, standing};

/// One of so many parts of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its number, from 1.
    pub job: u32,
    /// How many there are.
    pub jobs: u32,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.job, self.jobs)
    }
}

/// What a run of a share has found or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareState {
    /// It is done, by this run.
    Done,
    /// It was done already.
    WasDone,
    /// The result was joined already.
    WasJoined,
    /// Another share has begun at another commit of the same revision: a plan of that commit is wanted.
    OtherCommit,
}

/// What is asked of a share.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Which one.
    pub share: Share,
    /// What the scheduler calls the shares, if one started this.
    pub array: Option<ArraySpan>,
    /// Called before any work, if there is work: looks for room, or reads what is to be verified first.
    pub before_work: &'a dyn Fn() -> Result<()>,
}

/// What a share came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareOutcome {
    /// What there was to do.
    pub state: ShareState,
    /// Bytes of weights that it reads.
    pub bytes_in: u64,
    /// Bytes of tensors that it writes.
    pub bytes_out: u64,
    /// Jobs that an earlier run had done and whose bytes were found damaged.
    pub redone: usize,
}

/// What the shares of a result have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// How many there are.
    pub jobs: u32,
    /// The hub revision that they read.
    pub pinned: Option<Pinned>,
    /// The array of a scheduler that the first one was a task of.
    pub array: Option<ArraySpan>,
}

/// What the shares of `output` have agreed on, if any has begun.
pub fn agreed(output: &Path) -> Option<Agreed> {
    let Agreement { shares, request, array, .. } = Folder::of(output).agreement().ok().flatten()?;
    Some(Agreed { jobs: shares, pinned: request.pinned, array })
}

/// Files of `source` that a share reads weights or scales of.
pub fn files_of_share(source: &Catalogue, blueprint: &Blueprint, share: Share) -> BTreeSet<usize> {
    let jobs = plan::jobs(blueprint, source.tensors());
    let share_of = plan::shares(blueprint, source.tensors(), &jobs, share.jobs);
    let own = jobs.iter().zip(share_of).filter(|(_, number)| number + 1 == share.job);
    own.flat_map(|(job, _)| plan::files_of(blueprint, source.tensors(), job)).collect()
}

/// Does one share of the result that `blueprint` describes at `output`, or goes on with it.
///
/// # Errors
/// When `output` exists and may not be replaced, when another run does the same share or the whole result, when shares
/// of another request are there, when a file cannot be read or written, or [`Error::Interrupted`] once `stop` is set.
/// What other shares have done is never touched.
pub fn convert_share(
    source: &Catalogue,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    asked: &Asked<'_>,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<ShareOutcome> {
    let Asked { share, array, before_work } = *asked;
    let jobs = plan::jobs(blueprint, source.tensors());
    let share_of = plan::shares(blueprint, source.tensors(), &jobs, share.jobs);
    let is_own: Vec<bool> = share_of.iter().map(|number| number + 1 == share.job).collect();
    let totals = plan::share_totals(blueprint, source.tensors(), &jobs, &share_of, share.jobs);
    let ours = &totals[share.job as usize - 1];
    let outcome =
        |state, redone| ShareOutcome { state, bytes_in: ours.bytes_in, bytes_out: ours.bytes_out, redone };
    let pinned = settings.pinned.clone();
    let request =
        RequestRecord::new(source, blueprint, &settings.format, pinned, jobs.len(), settings.error_report);
    let folder = Folder::of(output);
    let wanted = Agreement::new(request, share, &share_of, array);
    let all_files = provenance::files(source).unwrap_or_default();
    let read: BTreeSet<usize> =
        jobs.iter().flat_map(|job| plan::files_of(blueprint, source.tensors(), job)).collect();
    // Files that no job reads are proven too, each by one share.
    let unread = all_files.difference(&read).enumerate();
    let own_files: BTreeSet<usize> = unread
        .filter(|(at, _)| at % share.jobs as usize + 1 == share.job as usize)
        .map(|(_, &file)| file)
        .collect();
    let way_out = format!(
        "Nothing is under the final name. Put the file back as it was and repeat the command, or remove {} and begin all \
         shares anew",
        folder.path().display()
    );
    let conversion = Conversion::whole(source, blueprint, settings, progress, stop, (&jobs, &is_own))
        .of_share(own_files, &way_out);

    if folder.joined().exists() && settings.force {
        return Err(Error::Request(format!(
            "{}: a join of it was stopped while it cleaned up; run requant join first, to begin anew after that",
            output.display()
        )));
    }
    if is_joined(source, blueprint, output, settings, &folder)? {
        return Ok(outcome(ShareState::WasJoined, 0));
    }
    if !parent_of(output).is_dir() {
        let parent = parent_of(output).display();
        return Err(Error::Request(format!("{}: the directory {parent} does not exist", output.display())));
    }
    let names = Names::new(blueprint, output);
    let finals: Vec<_> = names.pairs.iter().map(|pair| pair.final_path.clone()).collect();
    let check_place = || {
        check_alone(output)?;
        check_replace(output, &finals, blueprint.is_directory, settings.force)
    };
    let is_first = !folder.has_plan();
    if is_first {
        check_place()?;
        before_work()?;
    }
    settings.disk.make_directories(folder.path())?;
    let _lock = folder.lock(share, &settings.disk)?;
    // A join may have come to its end meanwhile.
    if is_joined(source, blueprint, output, settings, &folder)? {
        return Ok(outcome(ShareState::WasJoined, 0));
    }
    match folder.agree(&settings.disk, output, &wanted, share, || {
        Ok(Skeleton::new(
            About::new(source, blueprint, settings, witnesses(source, &all_files)),
            !all_files.is_empty(),
            blueprint,
            conversion.written(),
            jobs.iter().map(|job| plan::source_bytes(blueprint, source.tensors(), job)).collect(),
            share_of.clone(),
        ))
    })? {
        folder::Claim::Agreed => {}
        folder::Claim::OtherCommit => return Ok(outcome(ShareState::OtherCommit, 0)),
    }
    let journal = folder.journal(share);
    let earlier = Journal::resume_own(&settings.disk, &journal, &wanted.request)?;
    if earlier.as_ref().is_some_and(|(_, progress)| folder.done(share, progress, &share_of).is_some()) {
        finish_supply(source)?;
        return Ok(outcome(ShareState::WasDone, 0));
    }
    check_place()?;
    if !is_first {
        before_work()?;
    }
    let files = open_shared(&settings.disk, &names, blueprint)?;
    let (mut journal, done) = match earlier {
        Some((journal, progress)) => (journal, progress.done),
        None => {
            (Journal::create(&settings.disk, &journal, &wanted.request)?, vec![None; wanted.request.jobs])
        }
    };
    let worked = work(&conversion, &files, &mut journal, done, &folder, share);
    match worked {
        Ok(redone) => {
            finish_supply(source)?;
            Ok(outcome(ShareState::Done, redone))
        }
        Err(error) => {
            if !can_go_on(&error) {
                // What came from a broken source counts no more.
                let _ = settings.disk.remove(&folder.journal(share));
            }
            Err(error)
        }
    }
}

/// Does the jobs of a share that are not in `done`, and seals it; says how many were done again.
fn work(
    conversion: &Conversion<'_>,
    files: &[DiskFile],
    journal: &mut Journal,
    done: Vec<Option<super::journal::Done>>,
    folder: &Folder,
    share: Share,
) -> Result<usize> {
    let mut executed = conversion.execute(files, journal, done)?;
    let witnessed = executed.witnessed()?.unwrap_or_default();
    let names = conversion.source.source().files();
    let seal = Seal {
        share,
        source_files: witnessed.into_iter().map(|(id, sha256)| (names[id].name.clone(), sha256)).collect(),
    };
    conversion.progress.stage("sync", 0);
    files.iter().try_for_each(DiskFile::sync)?;
    let fingerprint = folder.seal(&conversion.settings.disk, &seal)?;
    journal.seal(fingerprint)?;
    Ok(executed.redone)
}

fn finish_supply(source: &Catalogue) -> Result<()> {
    source.source().supply().map_or(Ok(()), crate::source::Supply::finish)
}

/// Files whose digests the shares find out, without them.
fn witnesses(
    source: &Catalogue,
    files: &BTreeSet<usize>,
) -> Option<std::collections::BTreeMap<usize, String>> {
    source.source().changeable()?;
    Some(files.iter().map(|&file| (file, String::new())).collect())
}

/// Nobody else writes the whole result at `output`.
fn check_alone(output: &Path) -> Result<()> {
    if lock::is_held(&names::lock(output)) {
        let message =
            format!("{}: another requant is writing it or joining its shares right now", output.display());
        return Err(Error::Request(message));
    }
    let journal = names::journal(output);
    match Journal::read(&journal)? {
        None => Ok(()),
        // A join that was stopped: it goes on by itself.
        Some((_, progress)) if progress.done.iter().all(Option::is_none) => Ok(()),
        Some(_) => Err(Error::Request(format!(
            "{}: an unfinished run of one machine is there. Repeat its command, without --job, to finish it, or remove {} and {} to \
             throw its work away",
            output.display(),
            journal.display(),
            names::partial(output).display()
        ))),
    }
}

/// Whether the shares of this very request were joined already. Not under `--force`, which asks for a new result.
fn is_joined(
    source: &Catalogue,
    blueprint: &Blueprint,
    output: &Path,
    settings: &Settings,
    folder: &Folder,
) -> Result<bool> {
    let path = manifest_path(output);
    if settings.force || folder.has_plan() || !path.is_file() {
        return Ok(false);
    }
    // A run of one machine, unless it is what a join left that was stopped at the very end.
    if names::journal(output).exists() && !folder.joined().exists() {
        return Ok(false);
    }
    let files = source.source().files();
    let written = path.metadata().and_then(|metadata| metadata.modified()).ok();
    let is_older = |file: &crate::source::SourceFile| file.modified.is_none() || file.modified <= written;
    if !files.iter().all(is_older) {
        return Ok(false);
    }
    let about = About::new(source, blueprint, settings, None);
    let wanted = Manifest::new(about, blueprint, output, None, None);
    Ok(Manifest::read(&path).is_ok_and(|found| found.is_of(&wanted, settings.error_report)))
}

impl Share {
    /// `2-of-4`: what its files are called.
    pub fn stem(self) -> String {
        format!("{}-of-{}", self.job, self.jobs)
    }
}
