//! What a user should hear about the network while a run goes on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same words of several connections are shown once in this time.
const SAME_WORDS: Duration = Duration::from_secs(2);

type Listener = dyn Fn(&str) + Send + Sync;

/// Receives a sentence for each thing that is worth one; by default nobody does.
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

    /// Says what happens to a request for `place`. Of connections that say the same one is heard.
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
