//! Makes one result of what the shares have written: compares every byte with their journals, hashes it, seals it and gives
//! it its name. Nothing is copied, and neither the source nor the network is needed.
//!
//! Stopped anywhere, the same command goes on. Bytes that are not what a share wrote are that share's to write again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Share;
use super::folder::{Agreement, Folder, Seal};
use super::skeleton::Skeleton;
use super::standing::{self, Standing};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frontier::Frontier;
use crate::pipeline::digest::{self, Digests};
use crate::pipeline::errors::Sums;
use crate::pipeline::execute;
use crate::pipeline::journal::{Done, Journal};
use crate::pipeline::kept::Kept;
use crate::pipeline::manifest::About;
use crate::pipeline::names::{self, Names};
use crate::pipeline::staging::{Begun, Opened, Request, Stage};
use crate::pipeline::{Card, ErrorReport, Manifest, Progress, manifest_path};

/// Names in a message, at most.
const SHOWN: usize = 5;

/// How to join.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Threads that read and compare.
    pub threads: usize,
    /// Replace an existing output.
    pub force: bool,
    /// Writes the card of a directory, where the shares were to have one.
    pub card: Option<Card>,
    /// What everything is written with.
    pub disk: Disk,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Whether this run gave the result its name; else it had it already.
    pub is_new: bool,
    /// The manifest of the result.
    pub manifest_path: PathBuf,
    /// Its content.
    pub manifest: Manifest,
}

/// What the shares together have said.
struct Said {
    /// For each job what its share has recorded.
    done: Vec<Option<Done>>,
    seals: Vec<Seal>,
}

/// Joins the shares of `output`.
///
/// # Errors
/// When a share is missing, is still running, or has written what is not there any more: names them. When `output`
/// exists and may not be replaced, a file cannot be read or written, and [`Error::Interrupted`] once `stop` is set.
pub fn join(output: &Path, joining: &Joining, progress: &dyn Progress, stop: &AtomicBool) -> Result<Joined> {
    let folder = Folder::of(output);
    let Some(agreement) = folder.agreement()? else { return cleaned(output, &folder, joining) };
    let version = &agreement.request.requant_version;
    if version != env!("CARGO_PKG_VERSION") {
        return Err(Error::Request(format!(
            "{}: its shares were written by requant {version}, and this is {}; join them with the same version",
            output.display(),
            env!("CARGO_PKG_VERSION")
        )));
    }
    let skeleton = Skeleton::read(&folder.plan(), &agreement)?;
    let said = said(output, &folder, &agreement, &skeleton)?;
    let request = Request {
        disk: &joining.disk,
        blueprint: &skeleton.blueprint,
        output,
        record: &agreement.request,
        force: joining.force,
        restart: false,
    };
    let (stage, manifest) = match Stage::adopt(&request, progress)? {
        Opened::Complete(stage, manifest) => (stage, *manifest),
        Opened::Work(mut stage, Begun { mut journal, .. }) => {
            let joint = Joint { output, folder: &folder, agreement: &agreement, skeleton: &skeleton };
            let mut manifest = joint.manifest(&stage, said, joining, progress, stop)?;
            if let Some(card) = joining.card.filter(|_| skeleton.about.has_card) {
                stage.add_card(&mut manifest, card)?;
            }
            progress.stage("sync", 0);
            stage.seal(&manifest, &mut journal)?;
            (stage, manifest)
        }
    };
    let manifest_path = stage.place()?;
    finish(stage, &folder, &joining.disk)?;
    Ok(Joined { is_new: true, manifest_path, manifest })
}

/// The result has its name: what is left is to remove what led to it, the plan last.
fn finish(stage: Stage, folder: &Folder, disk: &Disk) -> Result<()> {
    if folder.has_plan() {
        disk.rename(&folder.plan(), &folder.joined())?;
        disk.sync_directory(folder.path())?;
    }
    stage.close()?;
    folder.clear(disk)?;
    // If it comes back after a power cut, the same command removes it again.
    let _ = disk.sync_parent(folder.path());
    Ok(())
}

/// There are no shares to join: the result may have been joined before, and a run that was stopped may have left
/// something to remove.
fn cleaned(output: &Path, folder: &Folder, joining: &Joining) -> Result<Joined> {
    if folder.joined().exists() {
        // Without a readable plan the temporary files were removed before it.
        let skeleton = folder
            .agreement_in(&folder.joined())
            .and_then(|agreement| Skeleton::read(&folder.joined(), &agreement));
        if let Ok(skeleton) = skeleton {
            let names = Names::new(&skeleton.blueprint, output);
            for pair in &names.pairs {
                joining.disk.remove(&pair.temporary)?;
            }
            joining.disk.remove(&names::journal(output))?;
            joining.disk.sync_parent(output)?;
        }
        folder.clear(&joining.disk)?;
    } else if folder.path().is_dir()
        && std::fs::read_dir(folder.path()).is_ok_and(|mut names| names.next().is_none())
    {
        joining.disk.remove(folder.path())?;
    }
    let manifest_path = manifest_path(output);
    if folder.path().exists() || !manifest_path.is_file() {
        return Err(Error::Request(format!(
            "{}: there is nothing to join: no share of it has begun (looked for {})",
            output.display(),
            folder.plan().display()
        )));
    }
    let manifest = Manifest::read(&manifest_path)?;
    Ok(Joined { is_new: false, manifest_path, manifest })
}

/// What all shares have said, once all are done.
fn said(output: &Path, folder: &Folder, agreement: &Agreement, skeleton: &Skeleton) -> Result<Said> {
    let mut said = Said { done: vec![None; agreement.request.jobs], seals: Vec::new() };
    for share in shares(agreement) {
        let there = Journal::read(&folder.journal(share))?;
        let Some((_, progress)) = there.filter(|(request, _)| *request == agreement.request) else {
            continue;
        };
        let Some(seal) = folder.done(share, &progress, &skeleton.share_of) else { continue };
        for done in progress.done.into_iter().flatten() {
            if skeleton.share_of.get(done.job) == Some(&(share.job - 1)) {
                said.done[done.job] = Some(done);
            }
        }
        said.seals.push(seal);
    }
    let is_said = |share: &Share| said.seals.iter().any(|seal| seal.share == *share);
    let missing: Vec<Share> = shares(agreement).filter(|share| !is_said(share)).collect();
    if missing.is_empty() {
        return Ok(said);
    }
    Err(Error::Request(format!(
        "{}: {} of {} shares are not done: {}. Run those, each with the command it had, and join again",
        output.display(),
        missing.len(),
        agreement.shares,
        described(output, &missing)
    )))
}

/// `2 (not begun), 4 (running, 37 %)`.
fn described(output: &Path, shares: &[Share]) -> String {
    let standings = match standing::standing(output) {
        Ok(Standing::Shares(standings)) => standings,
        _ => Vec::new(),
    };
    let of = |share: &Share| {
        let found = standings.iter().find(|standing| standing.share == *share);
        found.map_or_else(|| share.job.to_string(), |found| format!("{} ({found})", share.job))
    };
    listed(shares.iter().map(of).collect())
}

fn listed(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn shares(agreement: &Agreement) -> impl Iterator<Item = Share> {
    let jobs = agreement.shares;
    (1..=jobs).map(move |job| Share { job, jobs })
}

/// What is joined.
struct Joint<'a> {
    output: &'a Path,
    folder: &'a Folder,
    agreement: &'a Agreement,
    skeleton: &'a Skeleton,
}

impl Joint<'_> {
    /// The manifest of what is in the files of `stage`, once all of it is what the shares wrote.
    fn manifest(
        &self,
        stage: &Stage,
        said: Said,
        joining: &Joining,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Manifest> {
        let Skeleton { about, is_witnessed, blueprint, written, .. } = self.skeleton;
        let about = if *is_witnessed { self.witnessed(about, &said.seals)? } else { about.clone() };
        let sums: Vec<Sums> = said.done.iter().flatten().map(|done| done.sums).collect();
        let digests = self.digests(stage, said.done, joining, progress, stop)?;
        let errors = self
            .agreement
            .request
            .error_report
            .then(|| ErrorReport::new(blueprint, written.iter().map(|written| written.tensor), &sums));
        Ok(Manifest::new(about, blueprint, self.output, Some(&digests), errors))
    }

    /// The source's files with the digests that the shares have found.
    fn witnessed(&self, about: &About, seals: &[Seal]) -> Result<About> {
        let mut found: BTreeMap<&str, (&str, Share)> = BTreeMap::new();
        for seal in seals {
            for (name, sha256) in &seal.source_files {
                let (known, by) = *found.entry(name).or_insert((sha256, seal.share));
                if known != sha256 {
                    return Err(Error::changed(
                        name,
                        format!(
                            "share {by} has read a file with SHA-256 {known}, share {} one with {sha256}: the source was \
                             changed, or is another one elsewhere. Nothing is under the final name. Remove {} and begin all \
                             shares anew",
                            seal.share,
                            self.folder.path().display()
                        ),
                    ));
                }
            }
        }
        let mut about = about.clone();
        for file in &mut about.source_files {
            let Some((sha256, _)) = found.get(file.name.as_str()) else {
                return Err(Error::changed(&file.name, "no share has read it to its end".to_owned()));
            };
            file.sha256 = Some((*sha256).to_owned());
        }
        Ok(about)
    }

    /// Reads the result once: compares what every job wrote, and hashes files and tensors behind that.
    fn digests(
        &self,
        stage: &Stage,
        mut done: Vec<Option<Done>>,
        joining: &Joining,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Digests> {
        let Skeleton { blueprint, written, .. } = self.skeleton;
        let frontiers: Vec<Frontier> = blueprint.files.iter().map(|_| Frontier::new()).collect();
        for (file, start, end) in execute::of_no_job(blueprint) {
            frontiers[file].add(start, end);
        }
        let files = stage.files();
        let kept = Kept { blueprint, written, files, progress, stop };
        let digests = Mutex::new(Digests::none(blueprint));
        let next = AtomicUsize::new(0);
        let follow = || -> Result<bool> {
            while let Some(number) =
                Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&number| number < files.len())
            {
                let Some(found) =
                    digest::follow_result(blueprint, number, &files[number], &frontiers[number])?
                else {
                    return Ok(false);
                };
                digests.lock().unwrap_or_else(PoisonError::into_inner).add(number, found);
            }
            Ok(true)
        };
        let (checked, followed) = std::thread::scope(|scope| {
            let followers: Vec<_> =
                (0..joining.threads.clamp(1, files.len().max(1))).map(|_| scope.spawn(follow)).collect();
            let sound = |job: usize| written[job].advance(blueprint, &frontiers);
            let checked = kept.check(&mut done, joining.threads, &sound);
            if !matches!(checked, Ok(0)) {
                frontiers.iter().for_each(Frontier::close);
            }
            let followed: Vec<Result<bool>> = followers
                .into_iter()
                .map(|follower| follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            (checked, followed)
        });
        if checked? > 0 {
            return Err(self.damaged(&done, &joining.disk)?);
        }
        for all in followed {
            if !all? {
                return Err(Error::Interrupted);
            }
        }
        Ok(digests.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The shares that wrote what is not in `done` are done no more; says which.
    fn damaged(&self, done: &[Option<Done>], disk: &Disk) -> Result<Error> {
        let Skeleton { blueprint, written, share_of, .. } = self.skeleton;
        let damaged: Vec<usize> = (0..done.len()).filter(|&job| done[job].is_none()).collect();
        let of_shares: BTreeSet<u32> = damaged.iter().map(|&job| share_of[job] + 1).collect();
        let jobs = self.agreement.shares;
        for &job in &of_shares {
            disk.remove(&self.folder.sealed(Share { job, jobs }))?;
        }
        disk.sync_directory(self.folder.path())?;
        let tensors: BTreeSet<usize> = damaged.iter().map(|&job| written[job].tensor).collect();
        let names = tensors.into_iter().map(|tensor| blueprint.tensors[tensor].names[0].clone()).collect();
        let numbers: Vec<String> = of_shares.iter().map(|job| format!("{job}/{jobs}")).collect();
        Ok(Error::Request(format!(
            "{}: {} pieces of the unfinished result are not what was written, of tensors {}: they were damaged since. Run \
             --job {} again, which does only these anew, and join again",
            self.output.display(),
            damaged.len(),
            listed(names),
            listed(numbers)
        )))
    }
}
