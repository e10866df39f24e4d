//! From a request to its answer: who may see what, and which room answers.

use serde_json::json;

use crate::http::{HttpRequest, Response, decode};
use crate::hub::Shared;
use crate::record::Host;
use crate::repo::{Commit, Repo};
use crate::{api, files};

/// An answer, and the repository's file it is about.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) file: Option<String>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer { response, file: None }
    }
}

pub(crate) fn answer(shared: &Shared, host: Host, request: &HttpRequest) -> Answer {
    if host == Host::Cdn {
        return files::from_cdn(shared, request);
    }
    let segments: Vec<String> = request.path().trim_matches('/').split('/').map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
    match segments.as_slice() {
        ["api", "whoami-v2"] if is_read => whoami(shared, request).into(),
        ["api", "resolve-cache", "models", org, name, commit, path @ ..] if is_read => {
            files::from_cache(shared, request, &format!("{org}/{name}"), commit, &path.join("/"))
        }
        ["api", "models", org, name, rest @ ..] => {
            let found = visible(shared, request, &format!("{org}/{name}"));
            let response = found.and_then(|repo| match rest {
                [] if is_read => Ok(api::info(&repo, commit_of(&repo, "main")?, request)),
                ["revision", revision @ ..] if is_read && !revision.is_empty() => {
                    Ok(api::info(&repo, commit_of(&repo, &revision.join("/"))?, request))
                }
                ["tree", revision, path @ ..] if is_read => {
                    api::tree(shared, commit_of(&repo, revision)?, &path.join("/"), request)
                }
                ["paths-info", revision] if request.method == "POST" => {
                    Ok(api::paths_info(commit_of(&repo, revision)?, request))
                }
                ["refs"] if is_read => Ok(api::refs(&repo)),
                _ => Err(error(404, None, "Sorry, we can't find the page you are looking for.")),
            });
            response.unwrap_or_else(|refusal| refusal).into()
        }
        [org, name, "resolve", revision, path @ ..] if is_read && !path.is_empty() => {
            files::resolve(shared, request, &format!("{org}/{name}"), revision, &path.join("/"))
        }
        _ => error(404, None, "Sorry, we can't find the page you are looking for.").into(),
    }
}

/// The repository, if it exists and the request may know that.
pub(crate) fn visible(shared: &Shared, request: &HttpRequest, id: &str) -> Result<Repo, Response> {
    let token = bearer(request);
    if let Some(token) = token
        && !is_account(shared, token)
    {
        return Err(error(401, None, "Invalid credentials in Authorization header"));
    }
    let repos = shared.repos();
    let found = repos.iter().find(|repo| repo.id == id);
    match (found, token) {
        (Some(repo), token) if repo.token.is_none() || repo.token.as_deref() == token => Ok(repo.clone()),
        // Without a token the hub does not say whether there is such a repository.
        (_, None) => Err(error(401, Some("RepoNotFound"), "Invalid username or password.")
            .with("WWW-Authenticate", "Bearer realm=\"Authentication required\", charset=\"UTF-8\"")),
        (_, Some(_)) => Err(error(404, Some("RepoNotFound"), "Repository not found")),
    }
}

/// Whether a gate lets the request through to files.
pub(crate) fn pass_gate(repo: &Repo, request: &HttpRequest) -> Result<(), Response> {
    let Some(gate) = &repo.gate else { return Ok(()) };
    let id = &repo.id;
    match bearer(request) {
        Some(token) if gate.granted.iter().any(|granted| granted == token) => Ok(()),
        Some(_) => {
            let message = format!(
                "Access to model {id} is restricted and you are not in the authorized list. \
                 Visit https://huggingface.co/{id} to ask for access."
            );
            Err(error(403, Some("GatedRepo"), &message))
        }
        None => {
            let message = format!(
                "Access to model {id} is restricted. You must have access to it and be authenticated to \
                 access it. Please log in."
            );
            Err(error(401, Some("GatedRepo"), &message))
        }
    }
}

/// The commit a revision names.
pub(crate) fn commit_of<'a>(repo: &'a Repo, revision: &str) -> Result<&'a Commit, Response> {
    let missing = || error(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}"));
    repo.commit(revision).ok_or_else(missing)
}

/// An error as the hub words it: in headers for clients, in the body for people.
pub(crate) fn error(status: u16, code: Option<&'static str>, message: &str) -> Response {
    let response = Response::json(&json!({ "error": message })).with("X-Error-Message", message);
    let response = Response { status, ..response };
    match code {
        Some(code) => response.with("X-Error-Code", code),
        None => response,
    }
}

fn whoami(shared: &Shared, request: &HttpRequest) -> Response {
    match bearer(request) {
        Some(token) if is_account(shared, token) => Response::json(&json!({
            "type": "user", "id": "0123456789abcdef01234567", "name": "tester", "fullname": "A Tester",
            "isPro": false, "orgs": [],
            "auth": { "type": "access_token", "accessToken": { "displayName": "test", "role": "read" } },
        })),
        Some(_) => error(401, None, "Invalid credentials in Authorization header"),
        None => error(401, None, "Invalid username or password."),
    }
}

fn bearer(request: &HttpRequest) -> Option<&str> {
    // A user name and a password are for a proxy before the hub.
    let value = request.header("authorization").filter(|value| !value.starts_with("Basic "))?;
    Some(value.strip_prefix("Bearer ").unwrap_or(value))
}

/// Tokens that begin with `hf_`, and those that some repository knows, belong to somebody.
fn is_account(shared: &Shared, token: &str) -> bool {
    token.starts_with("hf_")
        || shared.repos().iter().any(|repo| {
            repo.token.as_deref() == Some(token)
                || repo.gate.as_ref().is_some_and(|gate| gate.granted.iter().any(|granted| granted == token))
        })
}
