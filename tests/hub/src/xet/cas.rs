//! Answers of Xet storage: the hub's tokens for it, what a file is put together from, ranges of xorbs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::stored::{Piece, Stored};
use crate::digest::sha256_of;
use crate::files::{self, now_ms};
use crate::http::{HttpRequest, Response};
use crate::hub::Shared;
use crate::record::lock;
use crate::repo::RepoFile;
use crate::routes::Answer;

/// `GET /api/models/{id}/xet-read-token/{rev}`
pub(crate) fn read_token(shared: &Shared) -> Response {
    let lifetime = Duration::from_millis(shared.xet_token_lifetime_ms.load(Ordering::Relaxed));
    let expires = (now_ms() + lifetime.as_millis()) / 1000;
    let token = format!("xet_{expires}_{}", signature(expires));
    let answer = json!({ "accessToken": token, "exp": expires, "casUrl": shared.cas_url });
    Response::json(&answer)
        .with("X-Xet-Access-Token", token)
        .with("X-Xet-Token-Expiration", expires.to_string())
        .with("X-Xet-Cas-Url", &shared.cas_url)
}

/// What the server of Xet storage says.
pub(crate) fn answer(shared: &Shared, request: &HttpRequest) -> Answer {
    let segments: Vec<&str> = request.path().trim_matches('/').split('/').collect();
    let response = match segments.as_slice() {
        [version @ ("v1" | "v2"), "reconstructions", hash] if request.method == "GET" => {
            reconstruction(shared, request, hash, *version == "v2")
        }
        _ => Response::text(404, "not found"),
    };
    response.into()
}

/// `GET /v1/reconstructions/{hash}` and `/v2/...`: which chunks of which xorbs make up a range of a file.
fn reconstruction(shared: &Shared, request: &HttpRequest, hash: &str, second_version: bool) -> Response {
    if !is_valid_token(request) {
        return Response::text(401, "Unauthorized");
    }
    let Some(stored) = find(shared, |stored| stored.hash == hash) else {
        return Response::text(404, "File not found");
    };
    let range = match request.header("range").map(file_range) {
        None => 0..stored.len_bytes,
        Some(Some(range)) if range.start < stored.len_bytes => range.start..range.end.min(stored.len_bytes),
        Some(Some(_)) => return Response::text(416, "Range Not Satisfiable"),
        Some(None) => return Response::text(400, "Bad Request"),
    };
    let (mut terms, mut fetches, mut skip) = (Vec::new(), Map::new(), None);
    for piece in stored.pieces(&range) {
        let file = piece.file();
        skip.get_or_insert(range.start - file.start);
        let chunks = json!({ "start": piece.chunks.start, "end": piece.chunks.end });
        terms.push(json!({
            "hash": piece.xorb.hash, "unpacked_length": file.end - file.start, "range": chunks,
        }));
        // The same xorb twice in a file is not distinguished: its chunks would be the same.
        fetches.insert(piece.xorb.hash.clone(), fetch(shared, &piece, &chunks, second_version));
    }
    let key = if second_version { "xorbs" } else { "fetch_info" };
    let mut answer = json!({ "offset_into_first_range": skip.unwrap_or(0), "terms": terms, key: fetches });
    if let Some(edit) = &*lock(&shared.xet_edit) {
        edit(&mut answer);
    }
    Response::json(&answer)
}

fn fetch(shared: &Shared, piece: &Piece<'_>, chunks: &Value, second_version: bool) -> Value {
    let url = files::signed(shared, &format!("/xorbs/default/{}", piece.xorb.hash), "");
    let packed = piece.packed();
    // The last byte, not the one after it.
    let bytes = json!({ "start": packed.start, "end": packed.end - 1 });
    if second_version {
        json!([{ "url": url, "ranges": [{ "chunks": chunks, "bytes": bytes }] }])
    } else {
        json!([{ "range": chunks, "url": url, "url_range": bytes }])
    }
}

/// A range of a xorb, for a request whose link is good.
pub(crate) fn xorb(shared: &Shared, request: &HttpRequest, hash: &str) -> Answer {
    let has_it = |stored: &Stored| stored.xorbs.iter().any(|xorb| xorb.hash == hash);
    let found = find(shared, has_it);
    let xorb = found.as_ref().and_then(|stored| stored.xorbs.iter().find(|xorb| xorb.hash == hash));
    let Some(xorb) = xorb else { return Response::text(404, "no such xorb").into() };
    let name = format!("xorb {hash}");
    Answer {
        response: Response::file(request, &name, &xorb.packed, &format!("\"{hash}\"")),
        file: Some(name),
    }
}

fn find(shared: &Shared, is_it: impl Fn(&Stored) -> bool) -> Option<Arc<Stored>> {
    let repos = shared.repos();
    let files = repos.iter().flat_map(|repo| &repo.commits).flat_map(|commit| &commit.files);
    let stored = |file: &RepoFile| file.stored.clone().filter(|stored| is_it(stored));
    files.into_iter().find_map(stored)
}

fn is_valid_token(request: &HttpRequest) -> bool {
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer xet_"));
    let Some((expires, found)) = token.and_then(|token| token.split_once('_')) else { return false };
    expires.parse().is_ok_and(|end: u128| found == signature(end) && end * 1000 > now_ms())
}

fn signature(expires: u128) -> String {
    sha256_of(format!("token {expires}").as_bytes())
}

/// `bytes=10-19` as `10..20`.
fn file_range(text: &str) -> Option<Range<u64>> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    (start <= last).then_some(start..last.saturating_add(1))
}
