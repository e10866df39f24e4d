//! What a hub's refusals mean, and what the user can do about them.

use std::borrow::Cow;
use std::error::Error as _;

use reqwest::header::HeaderMap;

use super::client::Client;
use super::credentials;
use crate::error::Error;

/// Longest text of a server that is shown.
const MAX_SHOWN_CHARS: usize = 300;

/// A refused request, as far as it explains itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// `X-Error-Code`: `GatedRepo`, `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`.
    pub(super) code: Option<String>,
    /// `X-Error-Message`, or the body's `error`.
    pub(super) message: Option<String>,
}

impl Refusal {
    /// Reads the headers of an answer.
    pub(super) fn new(status: u16, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { status, code: text("x-error-code"), message: text("x-error-message") }
    }

    /// The error for `place` in `repo`.
    pub(super) fn error(&self, client: &Client, place: &str, repo: &str) -> Error {
        let page = format!("{}/{repo}", client.endpoint());
        let said = match self.message.as_deref().filter(|message| !message.is_empty()) {
            Some(message) => format!(" (the hub says: {})", client.clean(message)),
            None => String::new(),
        };
        let with_token = client.has_token();
        let token_hint = if with_token {
            "check that the token in use (HF_TOKEN, or the token file) may read it"
        } else {
            "if it is private or gated, set HF_TOKEN to a token that may read it"
        };
        let bad_token = self.message.as_deref().is_some_and(|message| {
            message.contains("Invalid credentials") || message.contains("Invalid username or password")
        });
        let message = match (self.code.as_deref(), self.status) {
            (Some("GatedRepo"), _) if with_token => format!(
                "access is gated{said}; accept the conditions at {page} with the account of the token in use \
                 (HF_TOKEN, or the token file), and see that the token may read gated repositories"
            ),
            (Some("GatedRepo"), _) => {
                format!("access is gated{said}; accept the conditions at {page} and set HF_TOKEN")
            }
            (Some("RevisionNotFound"), _) => {
                format!("there is no such revision{said}; see {page}/branches for those there are")
            }
            (Some("EntryNotFound"), _) => format!("the file is not there any more{said}; see {page}"),
            (Some("RepoNotFound"), _) => {
                format!("no such repository can be seen{said}; check the name, and {token_hint}")
            }
            (_, 401) if with_token && bad_token => {
                format!(
                    "the token was refused{said}; check HF_TOKEN, or the token file, for an expired or mistyped one"
                )
            }
            // Without a token the hub answers so for repositories that do not exist, too.
            (_, 401) => format!(
                "access was refused, or there is no such repository{said}; check the name, and {token_hint}"
            ),
            (_, 403) => {
                format!("access was refused{said}; {token_hint}, and look for conditions to accept at {page}")
            }
            (_, 404) => format!("not found{said}; check the name and the revision, and {token_hint}"),
            (_, status) => format!("the server answered with status {status}{said}"),
        };
        Error::hub(place, message)
    }
}

/// Words for a failed transfer, without its URL: that may carry a signature.
pub(super) fn transport(client: &Client, error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("nothing came within {} s", client.timeout().as_secs_f64());
    }
    let mut cause: &dyn std::error::Error = &error;
    let mut source = error.source();
    while let Some(inner) = source {
        cause = inner;
        source = inner.source();
    }
    let cause = client.clean(&cause.to_string());
    if error.is_connect() {
        format!("cannot connect: {cause}")
    } else {
        format!("the connection failed: {cause}")
    }
}

/// `text` on one line, of bounded length, without `secrets`, and without the credentials and queries of URLs.
pub(super) fn clean(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "(token)");
    }
    let mut shown = String::new();
    for word in text.split_whitespace() {
        let word = shown_url(word);
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.extend(word.chars().filter(|c| !c.is_control()));
    }
    match shown.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((at, _)) => format!("{}...", &shown[..at]),
        None => shown,
    }
}

/// A word without the query of the URL in it, and without the credentials.
fn shown_url(word: &str) -> Cow<'_, str> {
    if word.contains("://") { credentials::without(word).into() } else { word.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let text = "no (https://cdn.example/x?sig=abc) for\nhf_secret \u{1b}[31m";
        assert_eq!(clean(text, &["hf_secret", ""]), "no (https://cdn.example/x for (token) [31m");
        assert_eq!(clean("to http://me:pw@h/x#pw?a=b", &[]), "to http://h/x");
        assert_eq!(clean("é://@é@ü?x", &[]), "é://ü");
        assert_eq!(clean(&"a".repeat(400), &[]).len(), 303);
    }
}
