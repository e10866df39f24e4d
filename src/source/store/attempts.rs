//! What an object store answers that is no success, and how often it is asked again.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::Error as StoreError;

use crate::error::{Error, Result};
use crate::source::notice::Notices;

/// Attempts in a row that may bring nothing.
const ALLOWED: u32 = 8;
/// The wait after the first of them; each is twice as long as the one before ...
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// ... up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A wait of this length is worth a sentence.
const WORTH_A_NOTICE: Duration = Duration::from_secs(1);
/// An attempt that brings less than this has brought nothing: delays count as time.
const FLOOR_BYTES_PER_SECOND: f64 = 500.0;
/// How often a waiting request looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Characters of what a store says that are shown.
const SHOWN_CHARS: usize = 400;

/// Where credentials come from.
const CREDENTIALS: &str = "Credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
    (AWS_SKIP_SIGNATURE=true for a public bucket), GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_NAME and \
    AZURE_STORAGE_ACCOUNT_KEY";

/// Parts of the addresses at which machines of a cloud get credentials.
const METADATA_PATHS: [&str; 3] = ["/latest/api/token", "/latest/meta-data", "/computeMetadata/"];

/// Why one attempt did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt would fail as well.
    Fatal(Error),
    /// Another attempt may succeed.
    Again(String),
}

impl Failure {
    pub(super) fn again(why: impl Into<String>) -> Self {
        Self::Again(why.into())
    }

    /// A listing that did not succeed.
    pub(super) fn of_listing(place: &str, error: &StoreError) -> Self {
        Self::of(place, error, "there is no such bucket")
    }

    /// An object that could not be read, or not to its end.
    pub(super) fn of_object(place: &str, error: &StoreError) -> Self {
        Self::of(place, error, "it was listed, and is not there any more")
    }

    /// `absent`: what it means that something is not found.
    fn of(place: &str, error: &StoreError, absent: &str) -> Self {
        let whole = chain(error);
        let said = cut(&whole);
        let message = match (error, status(&whole)) {
            (StoreError::NotFound { .. }, _) | (_, Some(404)) => format!("{absent} ({said})"),
            (StoreError::Precondition { .. } | StoreError::NotModified { .. }, _) => {
                "changed since it was listed; start over to read what is there now".to_owned()
            }
            (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }, _)
            | (_, Some(401 | 403)) => format!("access was refused: {said}. {CREDENTIALS}"),
            (StoreError::Generic { .. }, None | Some(408 | 429 | 500..)) => {
                // Without credentials the machine's own cloud is asked for some.
                let is_of_cloud = METADATA_PATHS.into_iter().any(|path| whole.contains(path));
                return Self::Again(if is_of_cloud { format!("{said}. {CREDENTIALS}") } else { said });
            }
            _ => said,
        };
        Self::Fatal(Error::hub(place, message))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// The status that a server answered with; the crate gives it in its message only.
fn status(whole: &str) -> Option<u16> {
    if whole.contains("redirect without LOCATION") {
        return Some(301);
    }
    whole.split_once("status code: ")?.1.get(..3)?.parse().ok()
}

/// What an error says with the errors behind it, fit to be shown.
pub(super) fn brief(error: &dyn std::error::Error) -> String {
    cut(&chain(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        behind = error.source();
    }
    said
}

/// On one line, and not endless.
fn cut(said: &str) -> String {
    let words: Vec<&str> = said.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN_CHARS).collect()
}

/// Counts attempts in a row that brought nothing.
pub(super) struct Attempts<'a> {
    place: &'a str,
    notices: &'a Notices,
    stop: &'a AtomicBool,
    idle: u32,
    /// When the attempt began, and the delay before it.
    since: Instant,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(place: &'a str, notices: &'a Notices, stop: &'a AtomicBool) -> Self {
        Self { place, notices, stop, idle: 0, since: Instant::now() }
    }

    /// Waits before the next attempt, after one that has brought so many bytes; an error when there should be none.
    pub(super) async fn after(&mut self, failure: Failure, brought: u64) -> Result<()> {
        let why = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Again(why) => why,
        };
        self.count(brought);
        if self.idle >= ALLOWED {
            let message = format!(
                "{why}; {} attempts in a row brought nothing. The same command tries again",
                self.idle
            );
            return Err(Error::hub(self.place, message));
        }
        let wait = FIRST_WAIT.saturating_mul(1 << (self.idle - 1)).min(LONGEST_WAIT);
        let (next, seconds) = (self.idle + 1, wait.as_secs_f64());
        let what = format!("{why}; waiting {seconds:.1} s, then trying again (attempt {next} of {ALLOWED})");
        if wait >= WORTH_A_NOTICE {
            self.notices.say(self.place, &what);
        } else {
            self.notices.detail(self.place, &what);
        }
        unless_stopped(self.stop, tokio::time::sleep(wait)).await
    }

    fn count(&mut self, brought: u64) {
        let took = self.since.elapsed().as_secs_f64();
        let is_progress = brought > 0 && brought as f64 >= FLOOR_BYTES_PER_SECOND * took;
        self.idle = if is_progress { 1 } else { self.idle + 1 };
        self.since = Instant::now();
    }
}

/// Waits for `future`, or until `stop` is set.
pub(super) async fn unless_stopped<F: Future>(stop: &AtomicBool, future: F) -> Result<F::Output> {
    let mut future = pin!(future);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if let Ok(output) = tokio::time::timeout(STOP_POLL, future.as_mut()).await {
            return Ok(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_no_progress() {
        let stop = AtomicBool::new(false);
        let notices = Notices::default();
        let mut attempts = Attempts::new("s3://b", &notices, &stop);
        let mut idle_after = |seconds: u64, brought: u64| {
            attempts.since = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
            attempts.count(brought);
            attempts.idle
        };
        assert_eq!([(10, 100), (10, 4_000), (10, 0)].map(|(time, bytes)| idle_after(time, bytes)), [1, 2, 3]);
        assert_eq!([(10, 10_000), (0, 1), (1, 0)].map(|(time, bytes)| idle_after(time, bytes)), [1, 1, 2]);
    }

    #[test]
    fn a_status_is_read_from_what_the_crate_says() {
        for (said, expected) in [
            (
                "Error performing GET http://h/b in 1ms - Server returned non-2xx status code: 403 Forbidden: <Error/>",
                Some(403),
            ),
            ("Server returned non-2xx status code: 503 Service Unavailable: ", Some(503)),
            ("Received redirect without LOCATION, this normally indicates", Some(301)),
            ("HTTP error: error sending request", None),
            ("status code: no", None),
        ] {
            assert_eq!(status(said), expected, "{said}");
        }
    }
}
