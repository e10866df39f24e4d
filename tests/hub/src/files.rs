//! Files: the redirects of the hub, the small ones from its cache, the large ones from the other server.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::url_path;
use crate::digest::sha256_of;
use crate::http::{Body, HttpRequest, Response, encode};
use crate::hub::Shared;
use crate::repo::{Commit, Repo, RepoFile};
use crate::routes::{Answer, commit_of, error, pass_gate, visible};
use crate::xet;

/// `GET /{id}/resolve/{rev}/{path}`: to another host for LFS, to another path for the rest.
pub(crate) fn resolve(
    shared: &Shared,
    request: &HttpRequest,
    id: &str,
    revision: &str,
    path: &str,
) -> Answer {
    let answer = find(shared, request, id, revision, path, |repo, commit, file| {
        let response = match &file.sha256 {
            Some(sha256) => redirect(302, signed_link(shared, repo, file, sha256))
                .with("X-Linked-ETag", quoted(sha256))
                .with("ETag", quoted(&file.oid)),
            None => {
                let place = url_path(&repo.id, &commit.sha, &file.name);
                let query = format!("{}=&etag={}", encode(request.path()), encode(&quoted(&file.oid)));
                redirect(307, format!("/api/resolve-cache/models/{place}?{query}"))
                    .with("X-Linked-ETag", quoted(&file.oid))
            }
        };
        let response = response.with("X-Linked-Size", file.len().to_string());
        let Some(hash) = &file.xet_hash else { return response };
        let token = format!("{}/api/models/{}/xet-read-token/{}", shared.hub_url, repo.id, commit.sha);
        let place = format!("{}/v1/reconstructions/{hash}", shared.cas_url);
        let link = format!("<{token}>; rel=\"xet-auth\", <{place}>; rel=\"xet-reconstruction-info\"");
        response.with("X-Xet-Hash", hash).with("Link", link)
    });
    Answer { file: Some(path.to_string()), ..answer }
}

/// `GET /api/resolve-cache/models/{id}/{commit}/{path}`
pub(crate) fn from_cache(
    shared: &Shared,
    request: &HttpRequest,
    id: &str,
    commit: &str,
    path: &str,
) -> Answer {
    let answer = find(shared, request, id, commit, path, |_, _, file| {
        Response::file(request, &file.name, &file.content, &quoted(&file.oid))
    });
    Answer { file: Some(path.to_string()), ..answer }
}

/// What the server of large files says: nothing but the bytes, to whoever has a signed link.
pub(crate) fn from_cdn(shared: &Shared, request: &HttpRequest) -> Answer {
    let name = request.parameter("response-content-disposition").unwrap_or_default();
    let name = name.split("filename=\"").nth(1).and_then(|text| text.strip_suffix("\";")).unwrap_or_default();
    let expires = request.parameter("Expires").unwrap_or_default();
    let signed = request.parameter("Signature") == Some(signature(request.path(), name, &expires));
    if !signed || expires.parse::<u128>().is_ok_and(|end| end < now_ms()) {
        return Answer::from(Response::text(403, "<Error><Code>AccessDenied</Code></Error>"));
    }
    let sha256 = request.path().rsplit('/').next().unwrap_or_default();
    if request.path().starts_with("/xorbs/") {
        return xet::xorb(shared, request, sha256);
    }
    let repos = shared.repos();
    let files = repos.iter().flat_map(|repo| &repo.commits).flat_map(|commit| &commit.files);
    let found = files.into_iter().find(|file| file.name == name && file.sha256.as_deref() == Some(sha256));
    let Some(file) = found else {
        return Answer::from(Response::text(404, "<Error><Code>NoSuchKey</Code></Error>"));
    };
    // Sixty-four hex digits, but not those of the file, as on the real one.
    let etag = quoted(&sha256_of(format!("etag of {sha256}").as_bytes()));
    Answer {
        response: Response::file(request, &file.name, &file.content, &etag),
        file: Some(file.name.clone()),
    }
}

fn find(
    shared: &Shared,
    request: &HttpRequest,
    id: &str,
    revision: &str,
    path: &str,
    respond: impl FnOnce(&Repo, &Commit, &RepoFile) -> Response,
) -> Answer {
    let response = visible(shared, request, id).and_then(|repo| {
        pass_gate(&repo, request)?;
        let commit = commit_of(&repo, revision)?;
        let missing =
            || error(404, Some("EntryNotFound"), "Entry not found").with("X-Repo-Commit", &commit.sha);
        let file = commit.file(path).ok_or_else(missing)?;
        Ok(respond(&repo, commit, file).with("X-Repo-Commit", &commit.sha))
    });
    response.unwrap_or_else(|refusal| refusal).into()
}

fn redirect(status: u16, location: String) -> Response {
    let text = format!("Temporary Redirect. Redirecting to {location}");
    Response { status, headers: Vec::new(), body: Body::Bytes(text.into_bytes()) }.with("Location", location)
}

fn signed_link(shared: &Shared, repo: &Repo, file: &RepoFile, sha256: &str) -> String {
    signed(shared, &format!("/repos/{}/{sha256}", repo.id), &file.name)
}

/// A link to `path` on the server of large files, for a file of this name.
pub(crate) fn signed(shared: &Shared, path: &str, name: &str) -> String {
    let lifetime_ms = u128::from(shared.link_lifetime_ms.load(Ordering::Relaxed));
    let expires = (now_ms() + lifetime_ms).to_string();
    let disposition = encode(&format!("inline; filename=\"{name}\";"));
    let signature = signature(path, name, &expires);
    format!(
        "{}{path}?response-content-disposition={disposition}&Expires={expires}&Signature={signature}&Key-Pair-Id=TEST",
        shared.cdn_url
    )
}

fn signature(path: &str, name: &str, expires: &str) -> String {
    sha256_of(format!("signed {path} {name} {expires}").as_bytes())
}

pub(crate) fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_millis())
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}
