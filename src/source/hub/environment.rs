//! The environment variables of `huggingface_hub`, with the meaning they have there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials;
use crate::error::{Error, Result};
use crate::small;
use crate::source::notice::Notices;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest delay before the first retry ...
const MAX_BACK_OFF: Duration = Duration::from_millis(500);
/// ... which is this part of the timeout: who wants to hear of trouble soon wants retries soon.
const BACK_OFF_OF_TIMEOUT: u32 = 20;

/// Where the hub and its cache are, and how to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    /// `HF_ENDPOINT`, without a trailing slash; it may have a user name and a password, which are not to be shown.
    pub endpoint: String,
    /// `HF_TOKEN`, or the content of the token file.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`.
    pub cache_dir: PathBuf,
    /// `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`: nothing may be asked of the hub.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: longest wait for a connection, an answer or the next byte.
    pub timeout: Duration,
    /// `HF_HUB_DISABLE_XET`: plain ranges even for files in Xet storage, whoever asks for what.
    pub disable_xet: bool,
    /// Ranges of large files in Xet storage are read from there; no variable says so.
    pub use_xet: bool,
    /// Delay before the first retry; later ones double.
    pub back_off: Duration,
    /// Who hears of waits, and of what goes wrong on the way.
    pub notices: Notices,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("endpoint", &credentials::without(&self.endpoint))
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .field("disable_xet", &self.disable_xet)
            .field("use_xet", &self.use_xet)
            .field("back_off", &self.back_off)
            .field("notices", &self.notices)
            .finish()
    }
}

impl Environment {
    /// Reads this process's environment, and the token file it names.
    ///
    /// # Errors
    /// When a token file is there but cannot be read, or a value makes no sense.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// As [`Environment::from_env`] with `lookup` in place of the process's environment.
    ///
    /// # Errors
    /// As there.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let is_true = |name: &str| get(name).is_some_and(|value| is_true(&value));
        let path = |name: &str| get(name).map(|value| expand(&value, lookup));

        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = get("XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".to_owned());
            expand(&cache, lookup).join("huggingface")
        });
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            match get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")) {
                Some(token) => clean_token(&token),
                None => token_of_file(&path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")))?,
            }
        };
        let timeout = timeout(get("HF_HUB_DOWNLOAD_TIMEOUT"))?;
        Ok(Self {
            endpoint: endpoint(get("HF_ENDPOINT"))?,
            token,
            cache_dir,
            offline: get("HF_HUB_OFFLINE")
                .or_else(|| get("TRANSFORMERS_OFFLINE"))
                .is_some_and(|value| self::is_true(&value)),
            timeout,
            disable_xet: is_true("HF_HUB_DISABLE_XET"),
            use_xet: false,
            back_off: MAX_BACK_OFF.min(timeout / BACK_OFF_OF_TIMEOUT),
            notices: Notices::default(),
        })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

fn endpoint(value: Option<String>) -> Result<String> {
    let Some(value) = value else { return Ok(DEFAULT_ENDPOINT.to_owned()) };
    let value = value.trim_end_matches('/');
    let fits = reqwest::Url::parse(value)
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if fits {
        return Ok(value.to_owned());
    }
    let value = credentials::without(value);
    Err(Error::Request(format!("HF_ENDPOINT is {value:?}; it must be a URL such as {DEFAULT_ENDPOINT}")))
}

fn timeout(value: Option<String>) -> Result<Duration> {
    match value.as_deref().map(|value| value.trim().parse::<u32>()) {
        None | Some(Ok(0)) => Ok(DEFAULT_TIMEOUT),
        Some(Ok(seconds)) => Ok(Duration::from_secs(seconds.into())),
        Some(Err(_)) => {
            let value = value.unwrap_or_default();
            Err(Error::Request(format!(
                "HF_HUB_DOWNLOAD_TIMEOUT is {value:?}; it must be a number of seconds"
            )))
        }
    }
}

fn token_of_file(path: &Path) -> Result<Option<String>> {
    // The way to have no token by HF_TOKEN_PATH.
    if path == Path::new("/dev/null") {
        return Ok(None);
    }
    match small::read_text(path, small::LINE) {
        Ok(text) => Ok(clean_token(&text)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn clean_token(text: &str) -> Option<String> {
    let token = text.replace(['\r', '\n'], "").trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Python's `expandvars(expanduser(..))`: `~`, `$NAME` and `${NAME}`; unknown names stay.
fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let home = lookup("HOME").filter(|home| !home.is_empty());
    let text = match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            format!("{}{rest}", home.trim_end_matches('/'))
        }
        _ => text.to_owned(),
    };
    let mut expanded = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, len) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let len = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                (&after[..len], len)
            }
        };
        match lookup(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[at..=at + len]),
        }
        rest = &after[len..];
    }
    expanded.push_str(rest);
    PathBuf::from(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment> {
        Environment::from_lookup(&|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn cache_directories() {
        for (pairs, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "$D/${E}$F"), ("D", "/d"), ("E", "e")], "/d/e$F/hub"),
            (&[("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b")], "/b"),
            (&[("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(read(pairs).unwrap().cache_dir, Path::new(expected));
        }
    }

    #[test]
    fn tokens() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(dir.path().join("token"), " hf_file\n").unwrap();
        let token = |pairs: &[(&str, &str)]| read(pairs).unwrap().token;
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", "\r\nhf_a ")]).as_deref(), Some("hf_a"));
        assert_eq!(token(&[("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "b")]).as_deref(), Some("b"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let elsewhere = format!("{home}/token");
        assert_eq!(token(&[("HF_TOKEN_PATH", &elsewhere)]).as_deref(), Some("hf_file"));
        // A folder cannot be read as a file, not even by root.
        let error = read(&[("HF_TOKEN_PATH", home)]).unwrap_err().to_string();
        assert!(error.contains(home), "{error}");
    }

    #[test]
    fn debug_hides_the_token() {
        let set = [("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", "https://me:pass%2Fword@h")];
        let text = format!("{:?}", read(&set).unwrap());
        assert!(!text.contains("hf_secret") && !text.contains("word"), "{text}");
        for endpoint in ["ftp://me:password@h", "me:password@h", "https://me:pass/word@h:x"] {
            let error = read(&[("HF_ENDPOINT", endpoint)]).unwrap_err().to_string();
            assert!(!error.contains("word"), "{error}");
        }
    }

    #[test]
    fn switches_and_values() {
        let plain = read(&[]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.timeout, Duration::from_secs(10));
        assert!(!plain.offline && !plain.disable_xet && !plain.use_xet);
        assert!(read(&[("HF_HUB_DISABLE_XET", "1")]).unwrap().disable_xet);
        assert!(!read(&[("HF_HUB_DISABLE_XET", "0")]).unwrap().disable_xet);
        for (name, value, offline) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "yes", true),
            ("TRANSFORMERS_OFFLINE", "on", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("HF_HUB_OFFLINE", "", false),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap().offline, offline, "{name}={value}");
        }
        let set =
            read(&[("HF_ENDPOINT", "http://localhost:8080/"), ("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).unwrap();
        assert_eq!((set.endpoint.as_str(), set.timeout.as_secs()), ("http://localhost:8080", 3));
        assert!(read(&[("HF_ENDPOINT", "localhost")]).is_err());
        assert!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).is_err());
    }
}
