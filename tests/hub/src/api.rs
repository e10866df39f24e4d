//! The JSON of the API: a model's facts, its file tree, single paths, branches.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use crate::digest::sha1_of;
use crate::http::{HttpRequest, Response, decode, encode};
use crate::hub::Shared;
use crate::repo::{Commit, GateMode, Repo, RepoFile};
use crate::routes::error;

const DATE: &str = "2025-01-01T00:00:00.000Z";

/// `GET /api/models/{id}[/revision/{rev}]`
pub(crate) fn info(repo: &Repo, commit: &Commit, request: &HttpRequest) -> Response {
    let with_blobs = request.flag("blobs");
    let siblings: Vec<Value> = commit.files.iter().map(|file| sibling(file, with_blobs)).collect();
    let gated = match repo.gate.as_ref().map(|gate| gate.mode) {
        None => json!(false),
        Some(GateMode::Auto) => json!("auto"),
        Some(GateMode::Manual) => json!("manual"),
    };
    Response::json(&json!({
        "_id": &sha1_of(repo.id.as_bytes())[..24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split('/').next(),
        "sha": commit.sha,
        "createdAt": DATE,
        "lastModified": DATE,
        "private": repo.token.is_some(),
        "gated": gated,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": ["transformers", "safetensors"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "spaces": [],
        "siblings": siblings,
        "usedStorage": commit.files.iter().map(RepoFile::len).sum::<u64>(),
    }))
}

/// `GET /api/models/{id}/tree/{rev}[/{path}]`, in pages.
pub(crate) fn tree(
    shared: &Shared,
    commit: &Commit,
    below: &str,
    request: &HttpRequest,
) -> Result<Response, Response> {
    let entries = tree_entries(commit, below, request.flag("recursive"));
    if entries.is_empty() && !below.is_empty() {
        return Err(error(
            404,
            Some("EntryNotFound"),
            &format!("{below} does not exist on \"{}\"", commit.sha),
        ));
    }
    let most = shared.page_entries.load(Ordering::Relaxed);
    let asked = request.parameter("limit").and_then(|text| text.parse().ok()).unwrap_or(most);
    let start: usize = request.parameter("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
    let end = start.saturating_add(asked.clamp(1, most)).min(entries.len());
    let page = entries.get(start..end).unwrap_or_default();
    let response = Response::json(&Value::Array(page.to_vec()));
    if end == entries.len() || page.is_empty() {
        return Ok(response);
    }
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    let kept: String = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="))
        .fold(String::new(), |text, pair| text + pair + "&");
    let next = format!("<{}{}?{kept}cursor={end}>; rel=\"next\"", shared.hub_url, request.path());
    Ok(response.with("Link", next))
}

/// `POST /api/models/{id}/paths-info/{rev}`, whose body is a form or JSON.
pub(crate) fn paths_info(commit: &Commit, request: &HttpRequest) -> Response {
    let all = tree_entries(commit, "", true);
    let wanted = wanted_paths(request);
    let found = all.into_iter().filter(|entry| {
        entry["path"]
            .as_str()
            .is_some_and(|path| wanted.iter().any(|wanted| wanted.trim_matches('/') == path))
    });
    Response::json(&Value::Array(found.collect()))
}

/// `GET /api/models/{id}/refs`
pub(crate) fn refs(repo: &Repo) -> Response {
    let branches: Vec<Value> = repo
        .refs
        .iter()
        .map(|(name, sha)| json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": sha }))
        .collect();
    Response::json(&json!({ "branches": branches, "tags": [], "converts": [] }))
}

fn sibling(file: &RepoFile, with_blobs: bool) -> Value {
    let mut entry = Map::new();
    entry.insert("rfilename".into(), json!(file.name));
    if with_blobs {
        entry.insert("blobId".into(), json!(file.oid));
        entry.insert("size".into(), json!(file.len()));
        if let Some(sha256) = &file.sha256 {
            let lfs = json!({ "sha256": sha256, "size": file.len(), "pointerSize": file.pointer_bytes() });
            entry.insert("lfs".into(), lfs);
        }
    }
    Value::Object(entry)
}

/// Directories and files under `below`, each directory before what is in it.
fn tree_entries(commit: &Commit, below: &str, recursive: bool) -> Vec<Value> {
    let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
    let (mut entries, mut directories) = (Vec::new(), BTreeSet::new());
    for file in &commit.files {
        let Some(inner) = file.name.strip_prefix(&prefix) else { continue };
        for (at, _) in inner.match_indices('/') {
            let path = format!("{prefix}{}", &inner[..at]);
            if (recursive || !inner[..at].contains('/')) && directories.insert(path.clone()) {
                let oid = sha1_of(format!("tree {} {path}", commit.sha).as_bytes());
                entries.push(json!({ "type": "directory", "oid": oid, "size": 0, "path": path }));
            }
        }
        if recursive || !inner.contains('/') {
            entries.push(file_entry(file));
        }
    }
    entries
}

fn file_entry(file: &RepoFile) -> Value {
    let mut entry = json!({ "type": "file", "oid": file.oid, "size": file.len(), "path": file.name });
    if let Some(hash) = &file.xet_hash {
        entry["xetHash"] = json!(hash);
    }
    if let Some(sha256) = &file.sha256 {
        entry["lfs"] = json!({ "oid": sha256, "size": file.len(), "pointerSize": file.pointer_bytes() });
    }
    entry
}

fn wanted_paths(request: &HttpRequest) -> Vec<String> {
    if let Ok(body) = serde_json::from_slice::<Value>(&request.body) {
        return match &body["paths"] {
            Value::Array(paths) => {
                paths.iter().filter_map(|path| path.as_str().map(str::to_string)).collect()
            }
            Value::String(path) => vec![path.clone()],
            _ => Vec::new(),
        };
    }
    let form = String::from_utf8_lossy(&request.body).replace('+', " ");
    form.split('&').filter_map(|pair| pair.strip_prefix("paths=")).map(decode).collect()
}

/// The path of a file in a URL.
pub(crate) fn url_path(repo: &str, commit: &str, file: &str) -> String {
    format!("{repo}/{commit}/{}", encode(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_directories_before_their_files() {
        let repo = Repo::empty("o/n").file("a/b/c.txt", "1").unwrap().file("a/d.txt", "2").unwrap();
        let repo = repo.file("e.safetensors", "3").unwrap();
        let commit = repo.main().unwrap();
        let paths = |below: &str, recursive| -> Vec<String> {
            let entries = tree_entries(commit, below, recursive);
            entries.iter().map(|entry| entry["path"].as_str().unwrap().to_string()).collect()
        };
        assert_eq!(paths("", true), ["a", "a/b", "a/b/c.txt", "a/d.txt", "e.safetensors"]);
        assert_eq!(paths("", false), ["a", "e.safetensors"]);
        assert_eq!(paths("a", false), ["a/b", "a/d.txt"]);
        assert!(paths("x", true).is_empty());
    }
}
