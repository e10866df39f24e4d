//! Runs Hugging Face's crate where it can do no harm: on a thread of its own, which may panic, and which nobody has to
//! wait for.
//!
//! A definition is data that somebody else wrote, and the crate trusts it: merges that lead nowhere and pieces of length
//! zero panic, and a regular expression can search for years. What [`super::limits`] does not know ends here, as an error.

use std::cell::Cell;
use std::sync::Once;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::error::{Error, Result};

/// As much as the main thread has.
const STACK_BYTES: usize = 8 << 20;

thread_local! {
    /// Set on threads whose panics become errors.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic becomes an error about `file`.
///
/// # Errors
/// Those of `work`.
pub(super) fn caught<T: Send>(file: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ended = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        thread.spawn_scoped(scope, || guarded(work)).map(|thread| thread.join())
    });
    match ended {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(broken(file)),
        Err(error) => Err(no_thread(&error)),
    }
}

/// As [`caught`], and gives up after `patience`. The thread goes on then; it ends with the program.
///
/// # Errors
/// Those of `work`, and that it took too long.
pub(super) fn within<T: Send + 'static>(
    file: &str,
    patience: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    // Nobody may be there any more to receive.
    let thread = thread.spawn(move || drop(sender.send(guarded(work))));
    thread.map_err(|error| no_thread(&error))?;
    match receiver.recv_timeout(patience) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(broken(file)),
        Err(RecvTimeoutError::Timeout) => {
            let message = format!(
                "cannot be used: a short text takes more than {} seconds (a regular expression that searches for \
                 ever?)",
                patience.as_secs()
            );
            Err(Error::checkpoint(file, message))
        }
    }
}

fn guarded<T>(work: impl FnOnce() -> T) -> T {
    silence();
    IS_GUARDED.set(true);
    work()
}

/// From now on nothing is printed about panics of guarded threads; others are reported as before.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                report(panic);
            }
        }));
    });
}

fn broken(file: &str) -> Error {
    Error::checkpoint(
        file,
        "cannot be used: Hugging Face's tokenizers crate fails on it: a part of it is broken",
    )
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::Request(format!("cannot start a thread: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_endless_work_become_errors() {
        let error = caught("f", || -> Result<()> { panic!("on purpose") }).unwrap_err().to_string();
        assert!(error.starts_with("f: cannot be used"), "{error}");
        let short = Duration::from_millis(50);
        let error = within("f", short, || -> Result<()> { panic!("on purpose") }).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
        let endless = || loop {
            std::thread::park();
        };
        let error = within::<()>("f", short, endless).unwrap_err().to_string();
        assert!(error.starts_with("f: cannot be used: a short text takes more than"), "{error}");
        assert_eq!(caught("f", || Ok(1)).unwrap(), 1);
        assert_eq!(within("f", Duration::from_secs(60), || Ok(1)).unwrap(), 1);
    }
}
