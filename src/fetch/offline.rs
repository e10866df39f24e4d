//! Which files a snapshot in the Hugging Face cache has, when the hub may not be asked.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::source::hub::{Notices, Snapshot, files_below, linked};
use crate::source::{ContentDigest, RemoteFile, Source};

/// Lists the shards of a model.
const INDEX: &str = "model.safetensors.index.json";

/// The files of the snapshot at `snapshot`, with the digests that name their blobs.
///
/// # Errors
/// When nothing says what a file must be, or the index names weights that are not there.
pub fn cached_files(snapshot: &Path) -> Result<Vec<RemoteFile>> {
    let mut files = Vec::new();
    let links = linked(snapshot)?;
    for name in files_below(snapshot)? {
        let path = snapshot.join(&name);
        let link = links.iter().find(|link| link.name == name);
        let Some(digest) = link.and_then(|link| ContentDigest::from_hex(&link.etag)) else {
            let message = "no link to a blob that is named as its content, so that it cannot be verified; \
                           HF_HUB_OFFLINE is set: unset it to ask the hub";
            return Err(Error::Request(format!("{}: {message}", path.display())));
        };
        let len_bytes = path.metadata().map_err(Error::io(&path, "read from the cache"))?.len();
        files.push(RemoteFile { name, len_bytes, digest, xet_hash: None });
    }
    for name in shards(snapshot)? {
        if !files.iter().any(|file| file.name == name) {
            let message = format!(
                "{name} is in {INDEX} but not in the cache; HF_HUB_OFFLINE is set: unset it to download the file"
            );
            return Err(Error::Request(format!("{}: {message}", snapshot.display())));
        }
    }
    Ok(files)
}

/// Names of the files that the index lists, if there is one.
fn shards(snapshot: &Path) -> Result<BTreeSet<String>> {
    let path = snapshot.join(INDEX);
    let Some(bytes) = Snapshot::open(snapshot, "", Notices::default(), Arc::default())?.read_small(INDEX)?
    else {
        return Ok(BTreeSet::new());
    };
    let index: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::checkpoint(path.display().to_string(), format!("not JSON: {error}")))?;
    let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
}
