//! What a user should hear about the network while a run waits for it.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pace::FLOOR_BYTES_PER_SECOND;

/// Between two lines about the same wait.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same words of several connections are shown once in this time.
const SAME_WORDS: Duration = Duration::from_secs(2);

type Listener = dyn Fn(&str) + Send + Sync;

/// Receives a sentence for each wait that is worth one; by default nobody does.
#[derive(Clone, Default)]
pub struct Notices {
    listener: Option<Arc<Listener>>,
    last: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Notices {
    /// Hands every sentence to `listener`, from any thread.
    pub fn new(listener: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Arc::new(listener)), last: Arc::default() }
    }

    /// Says that a request for `place` waits, and why. Of connections that wait for the same reason one is heard.
    pub(super) fn say(&self, place: &str, why: &str) {
        let Some(listener) = &self.listener else { return };
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = |(when, words): &(Instant, String)| words == why && when.elapsed() < SAME_WORDS;
            if last.as_ref().is_some_and(is_known) {
                return;
            }
            *last = Some((Instant::now(), why.to_owned()));
        }
        listener(&format!("{place}: {why}"));
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
        let notices = Notices::new(move |text| into.lock().unwrap().push(text.to_owned()));
        for (place, why) in [("a", "busy"), ("b", "busy"), ("b", "gone"), ("a", "busy")] {
            notices.say(place, why);
        }
        assert_eq!(*heard.lock().unwrap(), ["a: busy", "b: gone", "a: busy"]);
        Notices::default().say("a", "nobody hears this");
    }
}
