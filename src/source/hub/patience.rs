//! Trying again, for as long as that makes sense.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::back_off;
use super::client::{Client, unless_stopped};
use super::refusal::{self, Refusal};
use crate::error::{Error, Result};

/// Why one attempt did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt would fail as well.
    Fatal(Error),
    /// Another attempt may succeed.
    Again {
        /// What happened.
        why: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn again(why: impl Into<String>) -> Self {
        Self::Again { why: why.into(), retry_after: None }
    }

    /// A connection that did not come about or broke.
    pub(super) fn transport(client: &Client, error: reqwest::Error) -> Self {
        Self::again(refusal::transport(client, error))
    }

    /// An answer that is neither success nor redirection.
    pub(super) fn refused(
        client: &Client,
        place: &str,
        repo: &str,
        status: u16,
        headers: &HeaderMap,
    ) -> Self {
        let refusal = Refusal::new(status, headers);
        if !is_transient(status) {
            return Self::Fatal(refusal.error(client, place, repo));
        }
        let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = asked.and_then(|value| back_off::retry_after(value, SystemTime::now()));
        Self::Again { why: format!("the server answered with status {status}"), retry_after }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Whether a status may be gone a moment later.
pub(super) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

/// Counts attempts in a row that brought nothing.
pub(super) struct Patience<'a> {
    pub(super) client: &'a Client,
    /// For the error once patience has run out.
    pub(super) place: &'a str,
    pub(super) stop: &'a AtomicBool,
    /// Attempts in a row that may bring nothing.
    pub(super) allowed: u32,
    /// How many of them there were.
    pub(super) idle: u32,
}

impl Patience<'_> {
    /// After an attempt that brought something.
    pub(super) fn renew(&mut self) {
        self.idle = 0;
    }

    /// Waits before the next attempt; an error when there should be none.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<()> {
        let (why, retry_after) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Again { why, retry_after } => (why, retry_after),
        };
        self.idle += 1;
        if self.idle >= self.allowed {
            let message = format!(
                "{why}; {} attempts in a row brought nothing. The same command tries again later",
                self.idle
            );
            return Err(Error::hub(self.place, message));
        }
        let delay = back_off::delay(self.client.back_off(), self.idle - 1, retry_after);
        unless_stopped(self.stop, tokio::time::sleep(delay)).await
    }
}
