//! What a user should hear about the network while a run waits for it, and what somebody wants to know who looks for the
//! reason of a delay. Everything that is tried again, anywhere on the network, is told here.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Slower than this, a transfer has stalled. A line of 50 kB/s shared by 64 connections still gives each of them more.
pub(super) const FLOOR_BYTES_PER_SECOND: u64 = 500;
/// Of a file whose digest is another than the one that is stated.
pub(super) const ANEW: &str = "what came has another digest than is stated; it comes anew";
/// Between two lines about the same wait.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same words of several connections are shown once in this time.
const SAME_WORDS: Duration = Duration::from_secs(2);

/// Something that happened on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice<'a> {
    /// What was asked for.
    pub place: &'a str,
    /// What happened, and what is done about it.
    pub what: &'a str,
    /// Whether it is no longer than a moment, or said already about another connection.
    pub is_detail: bool,
}

type Listener = dyn Fn(Notice<'_>) + Send + Sync;

/// Receives everything that is tried again, and every wait; by default nobody does.
#[derive(Clone, Default)]
pub struct Notices {
    listener: Option<Arc<Listener>>,
    last: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Notices {
    /// Hands everything to `listener`, from any thread.
    pub fn new(listener: impl Fn(Notice<'_>) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Arc::new(listener)), last: Arc::default() }
    }

    /// Says that a request for `place` waits, and why. Of connections that wait for the same reason one is heard; that the others
    /// do is a detail.
    pub(super) fn say(&self, place: &str, what: &str) {
        let Some(listener) = &self.listener else { return };
        let is_detail = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = |(when, words): &(Instant, String)| words == what && when.elapsed() < SAME_WORDS;
            let is_known = last.as_ref().is_some_and(is_known);
            if !is_known {
                *last = Some((Instant::now(), what.to_owned()));
            }
            is_known
        };
        listener(Notice { place, what, is_detail });
    }

    /// Says what only somebody wants to know who asks for details.
    pub(super) fn detail(&self, place: &str, what: &str) {
        if let Some(listener) = &self.listener {
            listener(Notice { place, what, is_detail: true });
        }
    }

    /// Waits for `future`, which counts in `bytes` what it has received; says every few seconds how far it is. Where
    /// something else shows progress (`is_shown`), only a transfer that hardly moves is worth a sentence.
    pub(super) async fn watch<F: Future>(
        &self,
        place: &str,
        bytes: &Cell<u64>,
        is_shown: bool,
        future: F,
    ) -> F::Output {
        let mut future = pin!(future);
        let started = Instant::now();
        let mut before = bytes.get();
        let hardly = FLOOR_BYTES_PER_SECOND * INTERVAL.as_secs();
        loop {
            if let Ok(output) = tokio::time::timeout(INTERVAL, future.as_mut()).await {
                return output;
            }
            let came = bytes.get() - before;
            before += came;
            if !is_shown || came < hardly {
                let seconds = started.elapsed().as_secs();
                self.say(place, &format!("still waiting: {before} bytes have come in {seconds} s"));
            }
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.listener.is_some() { "(heard)" } else { "(none)" })
    }
}

/// Two are equal when the same listener hears them.
impl PartialEq for Notices {
    fn eq(&self, other: &Self) -> bool {
        match (&self.listener, &other.listener) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for Notices {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_heard_once() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        let notices = Notices::new(move |notice: Notice<'_>| {
            into.lock().unwrap().push((format!("{}: {}", notice.place, notice.what), notice.is_detail));
        });
        for (place, why) in [("a", "busy"), ("b", "busy"), ("b", "gone"), ("a", "busy")] {
            notices.say(place, why);
        }
        notices.detail("c", "again");
        let expected = [
            ("a: busy", false),
            ("b: busy", true),
            ("b: gone", false),
            ("a: busy", false),
            ("c: again", true),
        ];
        let expected = expected.map(|(text, is_detail)| (text.to_owned(), is_detail));
        assert_eq!(*heard.lock().unwrap(), expected);
        Notices::default().say("a", "nobody hears this");
    }
}
