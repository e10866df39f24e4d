//! Trying again, for as long as that makes sense.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::back_off::{self, MAX_RETRY_AFTER};
use super::client::{Client, unless_stopped};
use super::pace::is_progress;
use super::refusal::{self, Refusal};
use crate::error::{Error, Result};

/// Longest time in a row that a server may ask for in all.
const MAX_ASKED: Duration = Duration::from_secs(600);
/// A wait of this length, or after an attempt of it, is worth a sentence.
const WORTH_A_NOTICE: Duration = Duration::from_secs(1);

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
        Self::of(Refusal::new(status, headers), client, place, repo, headers)
    }

    /// The same, of which it is known what the hub says.
    pub(super) fn of(
        refusal: Refusal,
        client: &Client,
        place: &str,
        repo: &str,
        headers: &HeaderMap,
    ) -> Self {
        let status = refusal.status;
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

/// Counts attempts in a row that brought nothing, or hardly anything for the time they took.
pub(super) struct Patience<'a> {
    client: &'a Client,
    /// For notices and for the error once patience has run out.
    place: &'a str,
    stop: &'a AtomicBool,
    /// Attempts in a row that may bring nothing.
    allowed: u32,
    /// How many of them there were.
    idle: u32,
    /// Since the last attempt that brought something: waits that the server asked for.
    asked: Duration,
    /// When the attempt began, and the delay before it.
    since: Instant,
    /// Time that attempts and delays have taken, waits that the server asked for left out.
    spent: Duration,
    /// Most of that time.
    deadline: Option<Duration>,
}

impl<'a> Patience<'a> {
    /// The first attempt begins now.
    pub(super) fn new(client: &'a Client, place: &'a str, stop: &'a AtomicBool, allowed: u32) -> Self {
        let (since, asked, spent) = (Instant::now(), Duration::ZERO, Duration::ZERO);
        Self { client, place, stop, allowed, idle: 0, asked, since, spent, deadline: None }
    }

    /// Someone waits for the whole: it may take `deadline`, however it advances.
    pub(super) fn within(self, deadline: Option<Duration>) -> Self {
        Self { deadline, ..self }
    }

    /// After something whole has come; the next attempt begins now.
    pub(super) fn renew(&mut self) {
        (self.idle, self.asked) = (0, Duration::ZERO);
        self.spent += self.since.elapsed();
        self.since = Instant::now();
    }

    /// Runs one attempt for as long as the deadline allows.
    pub(super) async fn attempt<T>(
        &self,
        attempt: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        let Some(deadline) = self.deadline else { return attempt.await };
        let left = deadline.saturating_sub(self.spent + self.since.elapsed());
        tokio::time::timeout(left, attempt).await.unwrap_or_else(|_| Err(self.too_late(deadline)))
    }

    fn too_late(&self, deadline: Duration) -> Failure {
        let seconds = deadline.as_secs_f64();
        let message = format!(
            "not complete after {seconds:.0} s: the line or the server is too slow. The same command tries again"
        );
        Failure::Fatal(Error::hub(self.place, message))
    }

    /// Waits before the next attempt, after one that has brought so many bytes; an error when there should be none.
    pub(super) async fn after(&mut self, failure: Failure, brought: u64) -> Result<()> {
        let (why, retry_after) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Again { why, retry_after } => (why, retry_after),
        };
        let took = self.since.elapsed();
        self.spent += took;
        if is_progress(brought, took) {
            (self.idle, self.asked) = (0, Duration::ZERO);
        }
        self.idle += 1;
        let asked = retry_after.unwrap_or_default();
        self.asked += asked.min(MAX_RETRY_AFTER);
        if asked > MAX_RETRY_AFTER || self.asked > MAX_ASKED {
            let (asked, most) = (asked.as_secs(), MAX_RETRY_AFTER.as_secs());
            let message = format!(
                "{why}, and asks to be left alone for {asked} s; waits end at {most} s each, and at {} s in a row. \
                 The same command tries again later",
                MAX_ASKED.as_secs()
            );
            return Err(Error::hub(self.place, message));
        }
        if self.idle >= self.allowed {
            let message = format!(
                "{why}; {} attempts in a row brought nothing. The same command tries again later",
                self.idle
            );
            return Err(Error::hub(self.place, message));
        }
        let delay = back_off::delay(self.client.back_off(), self.idle - 1);
        let wait = delay.max(asked);
        let by = if asked > delay { "as the server asks" } else { "then trying again" };
        let (next, of) = (self.idle + 1, self.allowed);
        let seconds = wait.as_secs_f64();
        let what = format!("{why}; waiting {seconds:.1} s, {by} (attempt {next} of {of})");
        if wait.max(took) >= WORTH_A_NOTICE {
            self.client.notices().say(self.place, &what);
        } else {
            let brought = if brought > 0 { format!(" after {brought} bytes") } else { String::new() };
            self.client.notices().detail(self.place, &format!("{what}{brought}"));
        }
        // Delays of our own count as time of the attempt: many short attempts are as slow as a long one.
        self.since = Instant::now();
        unless_stopped(self.stop, tokio::time::sleep(wait)).await?;
        if asked > delay {
            self.since = Instant::now();
        }
        Ok(())
    }
}
