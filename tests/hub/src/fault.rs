//! Faults: what goes wrong, with which file, how often.

use std::time::Duration;

use crate::record::Host;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The connection is cut after this much of a longer body.
    Drop {
        /// Bytes of this answer's body that still arrive.
        after_bytes: u64,
    },
    /// Nothing comes for a while in the middle of a longer body; then it goes on.
    Stall {
        /// Bytes of this answer's body that come first.
        after_bytes: u64,
        /// How long nothing comes.
        pause: Duration,
    },
    /// Another answer instead of the right one.
    Status {
        /// The status.
        code: u16,
        /// `Retry-After`, whole seconds are sent.
        retry_after: Option<Duration>,
        /// The body.
        text: String,
    },
    /// One byte of the file is inverted in every answer whose range covers it.
    Corrupt {
        /// Offset in the file.
        offset: u64,
    },
    /// The body ends early, then the connection does.
    Truncate {
        /// Bytes that are not sent.
        missing_bytes: u64,
        /// `Content-Length` is the short length, so that HTTP sees nothing wrong.
        claims_less: bool,
    },
    /// The whole file with status 200, where a range was asked for.
    IgnoreRange,
    /// An HTML page with status 200 instead of the file.
    WrongPage,
    /// The connection is closed before an answer.
    Refuse,
    /// The body comes at this speed, whatever it is.
    Trickle {
        /// Bytes of each second.
        bytes_per_second: u64,
    },
    /// Another answer instead of the right one, headers and all.
    Answer {
        /// The status.
        code: u16,
        /// Headers beside the length.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: String,
    },
    /// A body that begins like this and does not end.
    Endless {
        /// How it begins; spaces follow.
        start: String,
    },
    /// An empty page of the file tree that names another one, each time.
    EndlessPages,
}

/// An action and where it strikes: by default at every request whose file or path contains the pattern.
///
/// Actions on bodies count and strike only where there is a body of a file for them to harm.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(crate) pattern: String,
    pub(crate) action: Action,
    skip: usize,
    times: Option<usize>,
    host: Option<Host>,
    method: Option<String>,
}

impl Fault {
    /// Strikes at requests whose file name or path contains `pattern`.
    pub fn new(pattern: &str, action: Action) -> Fault {
        Fault { pattern: pattern.to_string(), action, skip: 0, times: None, host: None, method: None }
    }

    /// Lets the first `count` requests pass.
    pub fn skip(self, count: usize) -> Fault {
        Fault { skip: count, ..self }
    }

    /// Strikes `count` times only.
    pub fn times(self, count: usize) -> Fault {
        Fault { times: Some(count), ..self }
    }

    /// Strikes at one of the two servers only.
    pub fn on(self, host: Host) -> Fault {
        Fault { host: Some(host), ..self }
    }

    /// Strikes at requests with this method only.
    pub fn method(self, method: &str) -> Fault {
        Fault { method: Some(method.to_string()), ..self }
    }

    pub(crate) fn matches(&self, host: Host, method: &str, path: &str, file: Option<&str>) -> bool {
        self.host.is_none_or(|wanted| wanted == host)
            && self.method.as_deref().is_none_or(|wanted| wanted == method)
            && (path.contains(&self.pattern) || file.is_some_and(|name| name.contains(&self.pattern)))
    }

    /// Counts one request that the fault could harm: does it?
    pub(crate) fn strikes(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}
