//! MODEL in an object store: what its files must be comes from `--sums`, or from the manifest that lies with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Arg, ArgMatches};

use super::{Model, Streaming, headings};
use crate::checksums;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::pipeline::{MANIFEST_NAME, Manifest, Share};
use crate::small;
use crate::source::store::{Listing, Store, StoreUrl};
use crate::source::{ContentDigest, Remote, Spool, Streamed, hub};

/// `--sums` of the subcommands that read object stores.
pub(in crate::cli) fn sums_argument() -> Arg {
    Arg::new("sums")
        .long("sums")
        .help_heading(headings::REMOTE)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Object store: digests of the model's files, as sha256sum writes them [default: the manifest that lies with them]")
}

/// Opens the model at `url` for headers only, or for a conversion to `output` or a share of it.
pub(super) fn open(
    url: &StoreUrl,
    matches: &ArgMatches,
    output: Option<&Path>,
    share: Option<Share>,
    restart: bool,
    stop: &Arc<AtomicBool>,
) -> Result<Model> {
    let store = stated(url, matches, stop)?;
    let files = store.files();
    let remote_files: Vec<(usize, u64)> =
        files.iter().enumerate().map(|(id, file)| (id, file.len_bytes)).collect();
    let shards = files.iter().filter(|file| file.name.ends_with(".safetensors"));
    let largest_bytes = shards.map(|file| file.len_bytes).max().unwrap_or(0);
    let nothing_cached = vec![None; files.len()];
    let source =
        Streamed::new(Arc::new(store), nothing_cached, super::connections(matches), Arc::clone(stop));
    let Some(output) = output else {
        return Ok(Model { source: Box::new(source), streaming: None, remote_files });
    };
    let given = matches.get_one::<u64>("spool-limit").copied();
    let spool_limit_bytes = given.unwrap_or(super::SPOOLED_SHARDS * largest_bytes);
    let spool_directory = super::spool_directory(matches, &url.folder_name(), output, share);
    let spool = Spool::open(&Disk::default(), &spool_directory, spool_limit_bytes)?;
    if restart {
        spool.clear()?;
    }
    let streaming = Streaming { spool_directory, spool_limit_bytes, pinned: None, kept: None };
    Ok(Model { source: Box::new(source.with_spool(spool, None)), streaming: Some(streaming), remote_files })
}

/// The model, once it is known what each of its files must be.
fn stated(url: &StoreUrl, matches: &ArgMatches, stop: &AtomicBool) -> Result<Store> {
    let list = matches.get_one::<PathBuf>("sums");
    // Before the store is asked for anything.
    let expected = list.map(|list| digests(list)).transpose()?;
    let listing = Listing::open(url, super::notices(matches), stop)?;
    if let Some((list, expected)) = list.zip(expected) {
        let own_name = list.file_name().and_then(|name| name.to_str());
        let aside = |name: &str| hub::is_bookkeeping(name) || Some(name) == own_name;
        return listing.stated(|name| expected.get(name).cloned(), aside, &list.display().to_string());
    }
    let place = format!("{url}: {MANIFEST_NAME}");
    let Some(bytes) = listing.read(MANIFEST_NAME, small::MANIFEST, stop)? else {
        return Err(Error::Request(format!(
            "{url}: nothing says what its files must be, and an object store does not. Give --sums FILE, a list as sha256sum \
             writes it, made where the model is known to be good (sha256sum * > SHA256SUMS)"
        )));
    };
    let manifest = Manifest::parse(&bytes, Path::new(&place))?;
    let expected: BTreeMap<String, ContentDigest> =
        manifest.files.into_iter().map(|file| (file.name, ContentDigest::Sha256(file.sha256))).collect();
    let aside = |name: &str| hub::is_bookkeeping(name) || name == MANIFEST_NAME;
    listing.stated(|name| expected.get(name).cloned(), aside, MANIFEST_NAME)
}

/// What the list at `path` says, by name.
fn digests(path: &Path) -> Result<BTreeMap<String, ContentDigest>> {
    let mut found = BTreeMap::new();
    for file in checksums::read_sums(path)? {
        let name = file.name.trim_start_matches("./").to_owned();
        // A list has digests only.
        let Ok(digest) = file.digest else { continue };
        if found.insert(name, digest.clone()).is_some_and(|earlier| earlier != digest) {
            let message = format!("{}: {} is there twice, with different digests", path.display(), file.name);
            return Err(Error::Request(message));
        }
    }
    Ok(found)
}
