//! A repository's commit, and the files of that commit with their digests.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::document::Asked;
use super::id::is_commit;
use super::patience::Patience;
use super::repository::is_safe_name;
use crate::error::{Error, Result};
use crate::source::{ContentDigest, RemoteFile};

/// Attempts in a row that may bring nothing; few, since someone waits for the run to start.
const ATTEMPTS: u32 = 6;
/// Timeouts that the commit may take, and the whole listing.
const PIN_TIMEOUTS: u32 = 12;
const LISTING_TIMEOUTS: u32 = 60;
/// Most bytes of a model's facts, and of a page of a listing.
const MAX_FACTS_BYTES: usize = 32 << 20;
const MAX_PAGE_BYTES: usize = 16 << 20;
/// Most pages of a listing, and most files.
const MAX_PAGES: usize = 2_000;
const MAX_FILES: usize = 200_000;
/// Most bytes of a file: more than any disk has.
const MAX_FILE_BYTES: u64 = 1 << 50;
/// Most bytes of all files.
const MAX_TOTAL_BYTES: u64 = 1 << 56;
/// Longest part of a name in a message.
const MAX_SHOWN_CHARS: usize = 200;
/// Longest name of a file: what Linux takes for a path.
const MAX_NAME_BYTES: usize = 4096;

/// What is read of `/api/models/ID[/revision/REVISION]`.
#[derive(Deserialize)]
struct Facts {
    sha: Option<String>,
}

/// An entry of `/api/models/ID/tree/COMMIT`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    /// Checked by hand, so that the error can name the file.
    #[serde(default)]
    size: Value,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    #[serde(default)]
    size: Value,
}

/// The commit that `revision` is now.
pub(super) async fn pin(
    client: &Client,
    place: &str,
    repo: &str,
    revision: Option<&str>,
    stop: &AtomicBool,
) -> Result<String> {
    let what = "the hub's answer about the model";
    let asked = Asked { client, place, repo, what, max_bytes: MAX_FACTS_BYTES, stop };
    let revision = revision.map(|revision| ["revision", revision]);
    let url = client
        .url(["api", "models"].into_iter().chain(repo.split('/')).chain(revision.into_iter().flatten()));
    let deadline = client.timeout() * PIN_TIMEOUTS;
    let mut patience = Patience::new(client, place, stop, ATTEMPTS).within(Some(deadline));
    let (Facts { sha }, _) = asked.get(&url, &mut patience).await?;
    sha.filter(|sha| is_commit(sha)).ok_or_else(|| Error::hub(place, "the hub does not state the commit"))
}

/// All files of `commit`, sorted by name.
pub(super) async fn files(
    client: &Client,
    place: &str,
    repo: &str,
    commit: &str,
    stop: &AtomicBool,
) -> Result<Vec<RemoteFile>> {
    let segments = ["api", "models"].into_iter().chain(repo.split('/')).chain(["tree", commit]);
    let mut url = client.url(segments);
    url.set_query(Some("recursive=true&expand=false"));
    let asked = Asked { client, place, repo, what: "the hub's listing", max_bytes: MAX_PAGE_BYTES, stop };
    let deadline = client.timeout() * LISTING_TIMEOUTS;
    let mut patience = Patience::new(client, place, stop, ATTEMPTS).within(Some(deadline));
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    while seen.insert(url.clone()) {
        let (entries, headers): (Vec<Entry>, _) = asked.get(&url, &mut patience).await?;
        for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
            files.push(file_of(place, entry)?);
        }
        if files.len() > MAX_FILES {
            return Err(Error::hub(place, format!("the listing has more than {MAX_FILES} files")));
        }
        if seen.len() >= MAX_PAGES {
            return Err(Error::hub(place, format!("the listing does not end after {MAX_PAGES} pages")));
        }
        let Some(next) = next_link(&headers) else {
            return checked(place, files);
        };
        url = next_page(client, place, &url, &next)?;
    }
    Err(Error::hub(
        place,
        "the listing goes in a circle: a page that was read already is named as the next one",
    ))
}

/// The files sorted by name, each there once, of a size that can be added up.
fn checked(place: &str, mut files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>> {
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::hub(place, format!("the listing names {:?} twice", pair[0].name)));
    }
    let total = files.iter().try_fold(0_u64, |total, file| total.checked_add(file.len_bytes));
    if total.is_none_or(|total| total > MAX_TOTAL_BYTES) {
        let message = format!("the sizes in the listing add up to more than {MAX_TOTAL_BYTES} bytes");
        return Err(Error::hub(place, message));
    }
    Ok(files)
}

fn file_of(place: &str, entry: Entry) -> Result<RemoteFile> {
    let shown: String = entry.path.chars().take(MAX_SHOWN_CHARS).collect();
    let bad = |what: &str| Error::hub(place, format!("the listing's entry {shown:?} {what}"));
    if entry.path.len() > MAX_NAME_BYTES {
        return Err(bad(&format!(
            "has a name of {} bytes; expected at most {MAX_NAME_BYTES}",
            entry.path.len()
        )));
    }
    if !is_safe_name(&entry.path) {
        return Err(bad(
            "has a name that is refused: absolute, with `..`, a backslash or control characters",
        ));
    }
    let is_hex = |text: &str, chars| text.len() == chars && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = |size: &Value| {
        size.as_u64().filter(|&bytes| bytes <= MAX_FILE_BYTES).ok_or_else(|| {
            let shown: String = size.to_string().chars().take(MAX_SHOWN_CHARS).collect();
            bad(&format!("has a size of {shown}; expected a whole number of bytes up to {MAX_FILE_BYTES}"))
        })
    };
    let (len_bytes, digest) = match &entry.lfs {
        Some(lfs) => {
            let oid = lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid);
            if !is_hex(oid, 64) {
                return Err(bad("has no SHA-256"));
            }
            let size = if lfs.size.is_null() { &entry.size } else { &lfs.size };
            (bytes(size)?, ContentDigest::Sha256(oid.to_ascii_lowercase()))
        }
        None if is_hex(&entry.oid, 40) => {
            (bytes(&entry.size)?, ContentDigest::GitBlob(entry.oid.to_ascii_lowercase()))
        }
        None => return Err(bad("has no git blob id")),
    };
    Ok(RemoteFile {
        name: entry.path,
        len_bytes,
        digest,
        xet_hash: entry.xet_hash.filter(|hash| !hash.is_empty()),
    })
}

/// The target of `rel="next"` in `Link` headers.
fn next_link(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|mut text| {
        loop {
            let (target, rest) = text.split_once('<')?.1.split_once('>')?;
            let parameters = rest.split('<').next().unwrap_or_default();
            let is_next = |parameter: &str| {
                matches!(parameter.trim().trim_end_matches(','), r#"rel="next""# | "rel=next")
            };
            if parameters.split(';').any(is_next) {
                return Some(target.to_owned());
            }
            text = rest;
        }
    })
}

/// The next page, on the hub's own origin: a hub behind a proxy may call itself by another scheme
/// or port, but never by another host.
fn next_page(client: &Client, place: &str, url: &Url, next: &str) -> Result<Url> {
    let home = client.endpoint_url();
    let next = url.join(next).ok().filter(|next| next.host() == home.host());
    let next = next.ok_or_else(|| Error::hub(place, "the listing continues on another host"))?;
    let mut page = home.clone();
    page.set_path(next.path());
    page.set_query(next.query());
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        for (value, expected) in [
            (r#"<https://h/a?c=1>; rel="next""#, Some("https://h/a?c=1")),
            (r#"<https://h/p>; rel="prev", <https://h/a,b>; rel="next""#, Some("https://h/a,b")),
            (r#"<https://h/a>; rel="next", <https://h/z>; rel="last""#, Some("https://h/a")),
            (r#"<https://h/p>; rel="prev""#, None),
            ("next", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, value.parse().unwrap());
            assert_eq!(next_link(&headers).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn entries_that_are_refused() {
        let oid = "ce013625030ba8dba906f756967f9e9ca394464a";
        let entry = |path: &str, oid: &str| {
            let json = serde_json::json!({ "type": "file", "path": path, "size": 6, "oid": oid });
            file_of("org/name", serde_json::from_value(json).unwrap())
        };
        assert_eq!(entry("sub/a b", oid).unwrap().digest, ContentDigest::GitBlob(oid.to_owned()));
        for path in ["../a", "a/../b", "/a", "a\\b", "a\nb", "", "a//b", "./a"] {
            assert!(entry(path, oid).is_err(), "{path:?}");
        }
        assert!(entry("a", "").is_err());
        assert!(entry(&"a".repeat(5000), oid).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn sizes_that_are_refused() {
        let oid = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let entry = |size: &str, lfs: Option<&str>| {
            let lfs =
                lfs.map_or(String::new(), |size| format!(r#","lfs":{{"oid":"{sha256}","size":{size}}}"#));
            let json = format!(r#"{{"type":"file","path":"w","size":{size},"oid":"{oid}"{lfs}}}"#);
            file_of("org/name", serde_json::from_str(&json).unwrap())
        };
        assert_eq!(entry("6", None).unwrap().len_bytes, 6);
        assert_eq!(entry("6", Some("7")).unwrap().len_bytes, 7);
        assert_eq!(entry("6", Some("null")).unwrap().len_bytes, 6);
        for size in
            ["-1", "1.5", "1e30", "9223372036854775808", "18446744073709551616", "\"6\"", "null", "[]"]
        {
            for entry in [entry(size, None), entry("6", Some(size)).and(entry(size, Some("null")))] {
                let error = entry.unwrap_err().to_string();
                assert!(error.contains("\"w\"") && error.contains("size"), "{size}: {error}");
            }
        }
    }

    #[test]
    fn sums_that_are_refused() {
        let file = |number: u64, len_bytes| RemoteFile {
            name: format!("{number}"),
            len_bytes,
            digest: ContentDigest::GitBlob(String::new()),
            xet_hash: None,
        };
        assert!(checked("org/name", vec![file(0, MAX_FILE_BYTES), file(1, MAX_FILE_BYTES)]).is_ok());
        for (files, bytes) in [(65, MAX_FILE_BYTES), (2, 1 << 63), (2, u64::MAX)] {
            let error =
                checked("org/name", (0..files).map(|number| file(number, bytes)).collect()).unwrap_err();
            assert!(error.to_string().contains("add up"), "{error}");
        }
    }
}
