//! One attempt to read a range by plain HTTP.
//!
//! The hub answers `GET /org/name/resolve/COMMIT/NAME` itself, with a redirection to another path
//! of its own (307), or with one to a content network (302). Redirections are followed by hand:
//! what the hub says about the file is in its own answer only, and the token is for the hub only.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION,
    RANGE,
};
use reqwest::{Response, StatusCode, Url};

use super::client::{MAX_HOPS, unless_stopped};
use super::pace::Pace;
use super::patience::{Failure, is_transient};
use super::range::{Delivery, Wanted};
use crate::error::Error;

/// Passes on what is missing, or as much of it as comes; counts in `came` what has come, needed or not.
pub(super) async fn attempt(
    wanted: &Wanted<'_>,
    delivery: &mut Delivery<'_>,
    came: &Cell<u64>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let missing = delivery.missing();
    let mut answer = ask(wanted, &missing, stop).await?;
    let mut skip = leading_bytes(&answer, wanted, &missing)?;
    let mut pace = Pace::new(wanted.client.timeout());
    loop {
        let start = Instant::now();
        let chunk = unless_stopped(stop, answer.chunk()).await?;
        let Some(chunk) = chunk.map_err(|error| Failure::transport(wanted.client, error))? else {
            return Err(Failure::again("the answer ended early"));
        };
        came.set(came.get() + chunk.len() as u64);
        let pace = pace.came(start, chunk.len());
        let skipped = skip.min(chunk.len() as u64);
        skip -= skipped;
        if delivery.pass(&chunk[skipped as usize..])? {
            return Ok(());
        }
        pace?;
    }
}

/// The answer that has the content, after redirections.
async fn ask(wanted: &Wanted<'_>, missing: &Range<u64>, stop: &AtomicBool) -> Result<Response, Failure> {
    let Wanted { client, place, repo, commit, file, .. } = wanted;
    let mut url = client.url(repo.split('/').chain(["resolve", commit]).chain(file.name.split('/')));
    for hop in 0..=MAX_HOPS {
        let request = client
            .get(url.clone())
            .header(ACCEPT_ENCODING, "identity")
            .header(RANGE, format!("bytes={}-{}", missing.start, missing.end - 1));
        let sent = unless_stopped(stop, request.send()).await?;
        let answer = sent.map_err(|error| Failure::transport(client, error))?;
        let status = answer.status();
        if client.is_home(&url) && (status.is_success() || status.is_redirection()) {
            check_unchanged(wanted, answer.headers())?;
        }
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(answer);
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(not_satisfiable(wanted, answer.headers()));
        }
        if !status.is_redirection() {
            // Only the hub itself knows who may read; elsewhere a link has expired, or a server is at fault.
            let is_link =
                !client.is_home(&url) || (hop > 0 && !answer.headers().contains_key("x-error-code"));
            if is_link && !is_transient(status.as_u16()) {
                let why = "access was refused by the server that the hub's link leads to";
                return Err(Failure::again(format!("{why} (status {})", status.as_u16())));
            }
            return Err(Failure::refused(client, place, repo, status.as_u16(), answer.headers()));
        }
        url = target(wanted, &url, answer.headers())?;
    }
    Err(Error::hub(place, format!("more than {MAX_HOPS} redirects")).into())
}

/// What a server means that has no such range: that it is about another file, or nothing that makes sense.
fn not_satisfiable(wanted: &Wanted<'_>, headers: &HeaderMap) -> Failure {
    let len = wanted.file.len_bytes.to_string();
    let found = text(headers, CONTENT_RANGE.as_str()).and_then(|range| range.rsplit('/').next());
    match found.map(str::trim).filter(|found| *found != len && found.parse::<u64>().is_ok()) {
        Some(found) => wanted.changed("its length", &len, found),
        None => Failure::again("the server refused the range (status 416)"),
    }
}

fn target(wanted: &Wanted<'_>, url: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let target = text(headers, LOCATION.as_str()).and_then(|location| url.join(location).ok());
    // Never from an encrypted connection to a plain one.
    let target =
        target.filter(|to| to.scheme() == "https" || (to.scheme() == "http" && url.scheme() == "http"));
    target.ok_or_else(|| Error::hub(&wanted.place, "redirected to nowhere that can be followed").into())
}

/// Compares what the hub says about the file with the listing.
fn check_unchanged(wanted: &Wanted<'_>, headers: &HeaderMap) -> Result<(), Failure> {
    if let Some(commit) = text(headers, "x-repo-commit").filter(|commit| *commit != wanted.commit) {
        return Err(wanted.changed("the commit", wanted.commit, commit));
    }
    let digest = wanted.file.digest.hex();
    if let Some(etag) = text(headers, "x-linked-etag") {
        let found = etag.trim_start_matches("W/").trim_matches('"');
        if !found.eq_ignore_ascii_case(digest) {
            return Err(wanted.changed("its digest", digest, found));
        }
    }
    let len = wanted.file.len_bytes.to_string();
    match text(headers, "x-linked-size").filter(|size| size.trim() != len) {
        Some(size) => Err(wanted.changed("its length", &len, size)),
        None => Ok(()),
    }
}

/// How many bytes come before the first one that is missing; a failure when the answer is not
/// about the range asked for.
fn leading_bytes(answer: &Response, wanted: &Wanted<'_>, missing: &Range<u64>) -> Result<u64, Failure> {
    let headers = answer.headers();
    let name = wanted.file.name.to_ascii_lowercase();
    let is_page = text(headers, CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("text/html"));
    if is_page && !name.ends_with(".html") && !name.ends_with(".htm") {
        return Err(Failure::again("a web page came in place of the file"));
    }
    if let Some(encoding) =
        text(headers, CONTENT_ENCODING.as_str()).filter(|encoding| *encoding != "identity")
    {
        return Err(Failure::again(format!("the content came encoded as {}", wanted.client.clean(encoding))));
    }
    let total = wanted.file.len_bytes;
    let (skip, len) = if answer.status() == StatusCode::PARTIAL_CONTENT {
        let stated = text(headers, CONTENT_RANGE.as_str()).unwrap_or_default();
        // A server may give less of the range than asked for, but nothing else.
        let end = content_range(stated)
            .filter(|(range, of)| range.start == missing.start && range.end <= missing.end && *of == total)
            .map(|(range, _)| range.end);
        let Some(end) = end else {
            return Err(Failure::again(format!(
                "asked for bytes {}-{}/{total}, the answer has {:?}",
                missing.start,
                missing.end - 1,
                wanted.client.clean(stated)
            )));
        };
        (0, end - missing.start)
    } else {
        // The server ignores ranges: wasteful, but the bytes are there.
        (missing.start, total)
    };
    match text(headers, CONTENT_LENGTH.as_str()).filter(|stated| stated.trim() != len.to_string()) {
        Some(stated) => Err(Failure::again(format!(
            "expected {len} bytes, the answer has {}",
            wanted.client.clean(stated)
        ))),
        None => Ok(skip),
    }
}

/// Reads `bytes 10-19/100` as `(10..20, 100)`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<u64>().ok()?);
    (first <= last).then_some((first..last.checked_add(1)?, total.trim().parse().ok()?))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
