//! A repository's commit, and the files of that commit with their digests.

use std::sync::atomic::AtomicBool;

use hf_hub::{HFError, split_id};
use reqwest::header::{HeaderMap, LINK, LOCATION};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::client::{Client, MAX_HOPS, unless_stopped};
use super::id::is_commit;
use super::patience::{Failure, Patience, is_transient};
use super::refusal::{self, Refusal};
use super::repository::is_safe_name;
use crate::error::{Error, Result};
use crate::source::{ContentDigest, RemoteFile};

/// Attempts in a row that may bring nothing; few, since someone waits for the run to start.
const ATTEMPTS: u32 = 6;
/// Most pages of a listing, and most bytes of a page.
const MAX_PAGES: usize = 10_000;
const MAX_PAGE_BYTES: usize = 64 << 20;

/// An entry of `/api/models/ID/tree/COMMIT`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: Option<u64>,
}

/// The commit that `revision` is now.
pub(super) async fn pin(
    client: &Client,
    place: &str,
    repo: &str,
    revision: Option<&str>,
    stop: &AtomicBool,
) -> Result<String> {
    let mut patience = Patience { client, place, stop, allowed: ATTEMPTS, idle: 0 };
    let (owner, name) = split_id(repo);
    let model = client.hub().model(owner, name);
    loop {
        let asked = model.info().maybe_revision(revision.map(str::to_owned)).send();
        match unless_stopped(stop, asked).await? {
            Ok(info) => {
                let commit = info.sha.filter(|sha| is_commit(sha));
                return commit.ok_or_else(|| Error::hub(place, "the hub does not state the commit"));
            }
            Err(error) => patience.after(failure_of(client, place, repo, error)).await?,
        }
    }
}

/// What an error of the `hf-hub` crate means for us. Its own text may carry signed URLs.
fn failure_of(client: &Client, place: &str, repo: &str, error: HFError) -> Failure {
    let known = |code: &str| Refusal { status: 404, code: Some(code.to_owned()), message: None };
    let retry_after = match &error {
        HFError::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let refusal = match error {
        HFError::Request { source, .. } => return Failure::again(refusal::transport(client, source)),
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RateLimited { context, .. }
        | HFError::RepoNotFound { context: Some(context), .. }
        | HFError::RevisionNotFound { context: Some(context), .. } => Refusal {
            status: context.status.as_u16(),
            code: context.error_code,
            message: context.server_message,
        },
        HFError::RepoNotFound { .. } => known("RepoNotFound"),
        HFError::RevisionNotFound { .. } => known("RevisionNotFound"),
        error => return Failure::Fatal(Error::hub(place, client.clean(&error.to_string()))),
    };
    if is_transient(refusal.status) {
        let why = format!("the server answered with status {}", refusal.status);
        return Failure::Again { why, retry_after };
    }
    Failure::Fatal(refusal.error(client, place, repo))
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
    let mut files = Vec::new();
    for _ in 0..MAX_PAGES {
        let (entries, next) = page(client, place, repo, &url, stop).await?;
        for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
            files.push(file_of(place, entry)?);
        }
        let Some(next) = next else {
            files.sort_by(|a, b| a.name.cmp(&b.name));
            if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
                return Err(Error::hub(place, format!("the listing names {:?} twice", pair[0].name)));
            }
            return Ok(files);
        };
        url = next_page(client, place, &url, &next)?;
    }
    Err(Error::hub(place, format!("the listing does not end after {MAX_PAGES} pages")))
}

fn file_of(place: &str, entry: Entry) -> Result<RemoteFile> {
    let bad = |what: &str| Error::hub(place, format!("the listing's entry {:?} {what}", entry.path));
    if !is_safe_name(&entry.path) {
        return Err(bad(
            "has a name that is refused: absolute, with `..`, a backslash or control characters",
        ));
    }
    let is_hex = |text: &str, chars| text.len() == chars && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (len_bytes, digest) = match &entry.lfs {
        Some(lfs) => {
            let oid = lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid);
            if !is_hex(oid, 64) {
                return Err(bad("has no SHA-256"));
            }
            (lfs.size.unwrap_or(entry.size), ContentDigest::Sha256(oid.to_ascii_lowercase()))
        }
        None if is_hex(&entry.oid, 40) => {
            (entry.size, ContentDigest::GitBlob(entry.oid.to_ascii_lowercase()))
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

/// One page, and the address of the next.
async fn page(
    client: &Client,
    place: &str,
    repo: &str,
    url: &Url,
    stop: &AtomicBool,
) -> Result<(Vec<Entry>, Option<String>)> {
    let mut patience = Patience { client, place, stop, allowed: ATTEMPTS, idle: 0 };
    loop {
        match try_page(client, place, repo, url.clone(), stop).await {
            Ok(page) => return Ok(page),
            Err(failure) => patience.after(failure).await?,
        }
    }
}

/// The files of a page.
///
/// # Errors
/// When it is no page, or a file has no digest or a name that is refused.
pub(crate) fn parse_page(page: &[u8]) -> Result<Vec<RemoteFile>> {
    let place = "listing";
    let entries: Vec<Entry> = crate::small::json(place, page)?;
    entries.into_iter().filter(|entry| entry.kind == "file").map(|entry| file_of(place, entry)).collect()
}

async fn try_page(
    client: &Client,
    place: &str,
    repo: &str,
    mut url: Url,
    stop: &AtomicBool,
) -> std::result::Result<(Vec<Entry>, Option<String>), Failure> {
    for _ in 0..=MAX_HOPS {
        let sent = unless_stopped(stop, client.get(url.clone()).send()).await?;
        let mut answer = sent.map_err(|error| Failure::transport(client, error))?;
        if answer.status().is_redirection() {
            // A renamed repository.
            url = moved(client, place, &url, answer.headers())?;
            continue;
        }
        if !answer.status().is_success() {
            return Err(Failure::refused(client, place, repo, answer.status().as_u16(), answer.headers()));
        }
        let body = body(client, place, &mut answer, stop).await?;
        let entries = serde_json::from_slice(&body)
            .map_err(|error| Failure::again(format!("the hub's listing cannot be read: {error}")))?;
        return Ok((entries, next_link(answer.headers())));
    }
    Err(Failure::Fatal(Error::hub(place, format!("more than {MAX_HOPS} redirects"))))
}

fn moved(client: &Client, place: &str, url: &Url, headers: &HeaderMap) -> Result<Url> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let target = location.and_then(|location| url.join(location).ok());
    target
        .filter(|target| client.is_home(target))
        .ok_or_else(|| Error::hub(place, "the hub redirects its listing to somewhere else"))
}

async fn body(
    client: &Client,
    place: &str,
    answer: &mut Response,
    stop: &AtomicBool,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) =
        unless_stopped(stop, answer.chunk()).await?.map_err(|error| Failure::transport(client, error))?
    {
        if body.len() + chunk.len() > MAX_PAGE_BYTES {
            return Err(
                Error::hub(place, format!("a page of the listing exceeds {MAX_PAGE_BYTES} bytes")).into()
            );
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
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
    }
}
