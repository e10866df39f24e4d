//! `requant verify`: files against what is stated about them, whoever states it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::console::{self, Page};
use super::{Subcommand, applies, model, named, report};
use crate::checksums::{self, Expected};
use crate::error::{Error, Result};
use crate::pipeline::{self, Check, Progress};
use crate::source::Remote;
use crate::source::hub::{self, Environment, HubCache, HubId, Repository};

/// The subcommand.
pub(super) struct Verify;

/// What came out.
#[derive(Default)]
struct Verdict {
    checks: Vec<Check>,
    /// Files that nothing is stated about; no failure.
    unlisted: Vec<String>,
}

impl Subcommand for Verify {
    fn command(&self) -> Command {
        let help = "A result of requant, a downloaded directory, a list of checksums, or a hub id: its copy in the cache";
        Command::new("verify")
            .about("Check files against a manifest, the hub or a list")
            .long_about(
                "Check files against a manifest, the hub, the records of a download, or a list of checksums",
            )
            .arg(super::path_argument("PATH", help))
            .arg(
                Arg::new("against")
                    .long("against")
                    .value_name("ID")
                    .help("Check the directory PATH against the hub's org/name[@revision]"),
            )
            .arg(
                Arg::new("sums")
                    .long("sums")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .conflicts_with("against")
                    .help("Check the directory PATH against a list as sha256sum writes it"),
            )
            .args(model::arguments().into_iter().filter(|argument| argument.get_id() != "connections"))
            .args(super::output_arguments())
    }

    fn run(&self, matches: &ArgMatches) -> Result<()> {
        let path = super::path(matches, "PATH");
        let progress = report::progress(matches.get_flag("quiet"));
        let Verdict { checks, unlisted } = verdict(path, matches, &*progress)?;
        drop(progress);
        let bad = checks.iter().filter(|check| !check.problems.is_empty()).count();
        if matches.get_flag("json") {
            console::print_json(&json!({
                "output": path.display().to_string(),
                "ok": bad == 0,
                "files": checks,
                "unlisted": unlisted,
            }))?;
        } else {
            let mut page = Page::default();
            for Check { file, problems } in &checks {
                match problems.as_slice() {
                    [] => page.line(format_args!("{file}: OK")),
                    problems => {
                        problems.iter().for_each(|problem| page.line(format_args!("{file}: {problem}")))
                    }
                }
            }
            unlisted.iter().for_each(|name| page.line(format_args!("{name}: not listed")));
            page.print()?;
        }
        if bad == 0 {
            return Ok(());
        }
        Err(Error::Verification { path: path.to_owned(), problems: bad, checked: checks.len() })
    }
}

/// Finds out what is to be held against what, and does it.
fn verdict(path: &Path, matches: &ArgMatches, progress: &dyn Progress) -> Result<Verdict> {
    if let Some(list) = matches.get_one::<PathBuf>("sums") {
        need_directory(path, "--sums")?;
        applies::refuse(
            matches,
            &["revision", "cache-dir"],
            "is for models on the hub, and --sums is a list",
        )?;
        let expected = checksums::read_sums(list)?;
        let mut verdict = directory(path, &expected, progress)?;
        let list = list.canonicalize().ok();
        verdict.unlisted.retain(|name| path.join(name).canonicalize().ok() != list);
        return Ok(verdict);
    }
    if let Some(text) = matches.get_one::<String>("against") {
        need_directory(path, "--against")?;
        let why = "is for hub ids as PATH; --against asks the hub itself";
        applies::refuse(matches, &["cache-dir"], why)?;
        let Some(id) = HubId::parse(text) else {
            return Err(Error::Request(format!("--against {text}: not a hub id such as org/name")));
        };
        let (id, environment) = model::on_hub(id, matches)?;
        let repository = model::repository(&id, &environment, None, &AtomicBool::new(false))?;
        return directory(path, &listed(&repository), progress);
    }
    let is_result = pipeline::has_manifest(path);
    if is_result {
        let why = format!("is for models on the hub, and {} is on this machine", path.display());
        applies::refuse(matches, &["revision", "cache-dir"], why)?;
    }
    applies::check_local(matches, &[path], &["revision", "cache-dir"])?;
    if path.is_dir() && !is_result {
        let Some(expected) = recorded(path)? else {
            return Err(Error::Request(format!(
                "{}: no manifest, and no records of a download: say what to check it against, with --against \
                 org/name[@revision] or --sums FILE",
                path.display()
            )));
        };
        return directory(path, &expected, progress);
    }
    if path.is_file() && !is_result && checksums::looks_like_sums(path) {
        let expected = checksums::read_sums(path)?;
        let checks = checksums::check(path.parent().unwrap_or(Path::new("")), &expected, progress);
        return Ok(Verdict { checks, unlisted: Vec::new() });
    }
    if let Some(id) = hub_id(path).filter(|_| !is_result) {
        let (id, environment) = model::on_hub(id, matches)?;
        return cached(&id, &environment, progress);
    }
    Ok(Verdict { checks: pipeline::verify(path, progress)?, unlisted: Vec::new() })
}

fn need_directory(path: &Path, option: &str) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    Err(Error::Request(format!("{}: not a directory, which {option} needs", path.display())))
}

/// The hub id that `path` is, if it is none of a file: a result that is gone must not be looked for
/// on the hub.
fn hub_id(path: &Path) -> Option<HubId> {
    named::hub_id(path).filter(|id| id.repo.contains('/'))
}

fn directory(root: &Path, expected: &[Expected], progress: &dyn Progress) -> Result<Verdict> {
    let checks = checksums::check(root, expected, progress);
    Ok(Verdict { checks, unlisted: checksums::unlisted(root, expected)? })
}

/// What the hub lists, less what `fetch` leaves out.
fn listed(repository: &Repository) -> Vec<Expected> {
    let files = repository.files().iter().filter(|file| !hub::is_bookkeeping(&file.name));
    files.map(Expected::from).collect()
}

/// What the records of a download, or the links of a cache's snapshot, say about a directory.
fn recorded(root: &Path) -> Result<Option<Vec<Expected>>> {
    let mut records = hub::recorded(root)?;
    if records.is_empty() {
        records = hub::linked(root)?;
    }
    let expected: Vec<Expected> = records.into_iter().map(Expected::from).collect();
    Ok((!expected.is_empty()).then_some(expected))
}

/// The copy of a repository in the cache, as the commit that it is of.
fn cached(id: &HubId, environment: &Environment, progress: &dyn Progress) -> Result<Verdict> {
    let cache = HubCache::new(environment.cache_dir.clone());
    let revision = model::revision(id);
    let commit = cache.commit_of(&id.repo, revision);
    let copy = commit.and_then(|commit| Some((cache.snapshot(&id.repo, &commit)?, commit)));
    let Some((snapshot, commit)) = copy else {
        let message = format!(
            "no copy in the cache at {}; to check another directory: requant verify DIR --against {id}",
            environment.cache_dir.display()
        );
        return Err(Error::hub(id.to_string(), message));
    };
    if !environment.offline {
        let stop = AtomicBool::new(false);
        let repository = Repository::open_at(environment, &id.repo, Some(revision), &commit, &stop)?;
        return directory(&snapshot, &listed(&repository), progress);
    }
    match recorded(&snapshot)? {
        Some(expected) => directory(&snapshot, &expected, progress),
        None => Err(Error::Request(format!(
            "{}: no links to blobs, and HF_HUB_OFFLINE is set: unset it to check against the hub",
            snapshot.display()
        ))),
    }
}
