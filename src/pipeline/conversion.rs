//! Runs the jobs of a plan that this process does: all of them, or those of a share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::digest::Digests;
use super::errors::Sums;
use super::execute::{self, Written, written};
use super::journal::{Done, Journal};
use super::provenance::{self, Provenance};
use super::refining::{Calibration, Damped, Keep};
use super::{Progress, Settings, bytes_read, intake, kept, queue};
use crate::checkpoint::Catalogue;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::plan::{self, Blueprint, Job};
use crate::source::Supply;

/// Which jobs of which plan are to be done.
pub(super) struct Conversion<'a> {
    pub(super) source: &'a Catalogue,
    pub(super) blueprint: &'a Blueprint,
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
    /// Every job of the plan.
    pub(super) jobs: &'a [Job],
    /// Those that this process does.
    is_own: &'a [bool],
    /// The others are done elsewhere.
    is_share: bool,
    /// Source files that are to be proven beside those that are read.
    files: BTreeSet<usize>,
    /// What to do about a source that has changed.
    way_out: &'a str,
    /// Encodes some of the jobs, and keeps how far it has come.
    calibration: Option<(&'a dyn Calibration, Keep)>,
}

/// What came of it.
pub(super) struct Executed<'a> {
    /// Of the result, unless parts of it are written elsewhere.
    pub(super) digests: Option<Digests>,
    /// What jobs say for an error report, if there is to be one.
    pub(super) sums: Option<Vec<Sums>>,
    /// Jobs that an earlier run had done and whose bytes were found damaged.
    pub(super) redone: usize,
    provenance: Option<Provenance<'a>>,
}

impl Executed<'_> {
    /// SHA-256 of the source files that count, by their number; `None` for a source that verifies its files by itself.
    ///
    /// # Errors
    /// When a file is not what was read of it.
    pub(super) fn witnessed(&mut self) -> Result<Option<std::collections::BTreeMap<usize, String>>> {
        self.provenance.take().map(Provenance::finish).transpose()
    }
}

impl<'a> Conversion<'a> {
    /// All jobs.
    pub(super) fn whole(
        source: &'a Catalogue,
        blueprint: &'a Blueprint,
        settings: &'a Settings,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
        (jobs, is_own): (&'a [Job], &'a [bool]),
    ) -> Self {
        let files = provenance::files(source).unwrap_or_default();
        let (is_share, way_out) = (false, provenance::WAY_OUT);
        let calibration = None;
        Self {
            source,
            blueprint,
            settings,
            progress,
            stop,
            jobs,
            is_own,
            is_share,
            files,
            way_out,
            calibration,
        }
    }

    /// With `calibration`, which encodes some of the jobs.
    pub(super) fn calibrated(mut self, calibration: Option<(&'a dyn Calibration, Keep)>) -> Self {
        self.calibration = calibration;
        self
    }

    /// Matrices that needed more damping than others, after [`Conversion::execute`].
    pub(super) fn damped(&self) -> Vec<Damped> {
        self.calibration.as_ref().map_or_else(Vec::new, |(calibration, _)| calibration.damped())
    }

    /// Only those that `is_own`, with `files` to be proven beside those that they read.
    pub(super) fn of_share(mut self, files: BTreeSet<usize>, way_out: &'a str) -> Self {
        (self.is_share, self.files, self.way_out) = (true, files, way_out);
        self
    }

    /// What each job writes.
    pub(super) fn written(&self) -> Vec<Written> {
        self.jobs.iter().map(|job| written(self.source, self.blueprint, job)).collect()
    }

    /// Bytes of weights, and for a whole run of scales, that are read.
    pub(super) fn bytes_in(&self) -> u64 {
        if !self.is_share {
            return bytes_read(self.source, self.blueprint);
        }
        let own = self.jobs.iter().zip(self.is_own).filter(|(_, is_own)| **is_own);
        own.map(|(job, _)| plan::source_bytes(self.blueprint, self.source.tensors(), job)).sum()
    }

    /// Does what is not in `done`, of which every job is compared with what is in `files` first.
    ///
    /// # Errors
    /// When a file cannot be read or written, and [`Error::Interrupted`] when the run was stopped.
    pub(super) fn execute(
        &self,
        files: &[DiskFile],
        journal: &mut Journal,
        mut done: Vec<Option<Done>>,
    ) -> Result<Executed<'a>> {
        let Self { source, blueprint, jobs, progress, stop, is_own, settings, .. } = *self;
        let calibration = self.calibration.as_ref().map(|(calibration, _)| *calibration);
        let written = self.written();
        let kept = kept::Kept { blueprint, written: &written, files, progress, stop };
        let redone = kept.check(&mut done, settings.threads, &|_| {})?;
        if redone > 0 {
            progress.damaged(redone);
        }
        let is_refined = |job: usize| calibration.is_some_and(|calibration| calibration.takes(job));
        if let Some((calibration, keep)) = &self.calibration {
            // What a calibrated matrix is depends on those before it: what is behind the place to which the walk has
            // come is done anew.
            let kept = calibration.go_on(keep.clone(), &|job| done[job].is_some())?;
            let kept: BTreeSet<usize> = kept.into_iter().collect();
            let is_again = |job: &usize| calibration.takes(*job) && !kept.contains(job);
            (0..jobs.len()).filter(is_again).for_each(|job| done[job] = None);
        }
        if self.is_share {
            // What was read for this may be older than what other machines have written beside it, and would be
            // written back with what is written next to it.
            files.iter().for_each(DiskFile::forget_cached);
        }
        let is_to_do = |job: usize| is_own[job] && done[job].is_none() && !is_refined(job);
        let supply = source.source().supply();
        let schedule = supply.map_or_else(plan::Schedule::default, |supply| self.schedule(supply, is_to_do));
        if let Some(supply) = supply {
            check_room(source, supply, &schedule)?;
        }
        let intake = supply.map(|supply| intake::Intake::new(source.source(), supply, &schedule));
        let at_once = (0..jobs.len()).filter(|&job| supply.is_none() && is_to_do(job)).collect();
        let queue = queue::Queue::new(at_once, &schedule.needs);
        queue.promise((0..jobs.len()).filter(|&job| is_refined(job) && done[job].is_none()).count());
        progress.stage("convert", self.bytes_in());
        let provenance = Provenance::new(source, blueprint, (jobs, is_own), &self.files, &done, self.way_out);
        let run = execute::Run {
            source,
            blueprint,
            jobs,
            done: &done,
            error_report: settings.error_report,
            follows: !self.is_share,
            intake: intake.as_ref(),
            calibration,
            provenance: provenance.as_ref(),
            files,
            sync_interval: settings.sync_interval,
            progress,
            stop,
        };
        run.report_done();
        // A thread without a job would only look for one.
        let threads = settings.threads.min(jobs.len().max(1));
        let (digests, sums) = run.execute(threads, queue, journal)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(Executed { digests, sums, redone, provenance })
    }

    /// When the files of a streamed source come.
    fn schedule(&self, supply: &dyn Supply, is_to_do: impl Fn(usize) -> bool) -> plan::Schedule {
        let tensors = self.source.tensors();
        let mut schedule = plan::schedule(
            self.blueprint,
            tensors,
            self.jobs,
            is_to_do,
            |file| supply.room_bytes(file),
            supply.limit_bytes(),
            |file, range| supply.is_kept(file, range),
        );
        let own = self.jobs.iter().zip(self.is_own).filter(|(_, is_own)| **is_own);
        let read: BTreeSet<usize> =
            own.flat_map(|(job, _)| plan::files_of(self.blueprint, tensors, job)).collect();
        schedule.bring_too(read.into_iter().filter(|&file| supply.is_owed(file)));
        schedule
    }
}

/// Each file that is to come fits into the spool, at least alone.
fn check_room(source: &Catalogue, supply: &dyn Supply, schedule: &plan::Schedule) -> Result<()> {
    let (room_bytes, limit_bytes) = (|file| supply.room_bytes(file), supply.limit_bytes());
    let mut files = schedule.steps.iter().map(|step| step.file);
    let Some(file) = files.find(|&file| room_bytes(file) > limit_bytes) else { return Ok(()) };
    Err(Error::Request(format!(
        "{} has {} bytes and the spool is limited to {limit_bytes}: give it room for the largest file",
        source.source().files()[file].name,
        room_bytes(file)
    )))
}
