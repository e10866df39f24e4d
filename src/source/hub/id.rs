//! Names of hub repositories as a user writes them: `org/name[@revision]`, or `hf://org/name[@revision]`.

use std::fmt;

/// May stand before a name.
const SCHEME: &str = "hf://";
/// Longest organisation or repository name.
const MAX_PART_CHARS: usize = 96;

/// A repository on a hub and, where asked for, a branch, tag or commit of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`, or a legacy `name`.
    pub repo: String,
    /// Branch, tag or commit; `None` for the main branch.
    pub revision: Option<String>,
}

impl HubId {
    /// Reads `[hf://]org/name[@revision]`; `None` for whatever cannot be a repository's name by the
    /// hub's own rules, such as most paths.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix(SCHEME).unwrap_or(text);
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let fits = repo.split('/').count() <= 2
            && repo.split('/').all(is_part)
            && !repo.contains("--")
            && !repo.contains("..")
            && !repo.ends_with(".git")
            && revision.is_none_or(is_revision);
        fits.then(|| Self { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

/// Whether `text` is a full commit id.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `text` may name a branch or tag: what git allows, as far as paths and URLs care.
pub(super) fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !text.contains("..")
        && !text.chars().any(|c| c.is_control() || c.is_whitespace() || "\\~^:?*[".contains(c))
}

fn is_part(part: &str) -> bool {
    let word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = part.as_bytes();
    bytes.len() <= MAX_PART_CHARS
        && word(bytes.first())
        && word(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_what_is_none() {
        for (text, repo, revision) in [
            ("deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3-0324", None),
            ("gpt2", "gpt2", None),
            ("org/name@refs/pr/1", "org/name", Some("refs/pr/1")),
            ("org/name@v1.0", "org/name", Some("v1.0")),
        ] {
            let id = HubId::parse(text).unwrap();
            assert_eq!((id.repo.as_str(), id.revision.as_deref()), (repo, revision));
            assert_eq!(id.to_string(), text);
        }
        let with_scheme = HubId::parse("hf://org/name@v1.0").unwrap();
        assert_eq!(with_scheme.to_string(), "org/name@v1.0");
        for text in [
            "hf://",
            "hf:///org/name",
            "hf://hf://org/name",
            "hf://datasets/org/name",
            "s3://org/name",
            "",
            "/",
            "./dir",
            "../dir",
            "/abs",
            "a/b/c",
            "a/",
            "/a",
            "a//b",
            ".hidden",
            "a/.b",
            "a..b",
            "a--b",
            "a/b.git",
            "a b",
            "café",
            "a/b@",
            "a/b@../x",
            "a/b@x y",
            "-a",
            "a-",
            "C:\\x",
            "~/x",
            "a/b@/x",
        ] {
            assert_eq!(HubId::parse(text), None, "{text:?}");
        }
        assert!(HubId::parse(&"a".repeat(96)).is_some());
        assert!(HubId::parse(&"a".repeat(97)).is_none());
    }
}
