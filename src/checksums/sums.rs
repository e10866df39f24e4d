//! Lists of digests as `sha256sum` and its BSD relatives write them.
//!
//! ```text
//! HASH  name            text mode
//! HASH *name            binary mode, which is the same on Unix
//! SHA256 (name) = HASH  with --tag, and on BSD
//! \HASH  na\nme         a name with \\, \n or \r in it
//! ```

use std::io::Read;
use std::path::Path;

use super::Expected;
use crate::error::{Error, Result};
use crate::small;
use crate::source::ContentDigest;

/// Bytes that are looked at to tell a list from something else.
const HEAD_BYTES: u64 = 8 << 10;

/// Reads the list at `path`; blank lines and those that begin with `#` are left out.
///
/// # Errors
/// When it cannot be read, is too long or empty, or a line is none of the forms; names the line.
pub fn read_sums(path: &Path) -> Result<Vec<Expected>> {
    parse_sums(&path.display().to_string(), &small::read_given(path, small::SUMS)?)
}

/// As [`read_sums`], of a list that was read from `place`.
pub(crate) fn parse_sums(place: &str, bytes: &[u8]) -> Result<Vec<Expected>> {
    let fail = |message: String| Error::Request(format!("{place}: {message}"));
    let mut expected = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if is_empty(line) {
            continue;
        }
        let Some(file) = parse(line) else {
            return Err(fail(format!(
                "line {}: {:?}: expected \"HASH  name\" or \"SHA256 (name) = HASH\" with 64 hex digits",
                index + 1,
                String::from_utf8_lossy(&line[..line.len().min(120)])
            )));
        };
        expected.push(file);
    }
    if expected.is_empty() {
        return Err(fail("no checksums in it".to_owned()));
    }
    Ok(expected)
}

/// Whether the file at `path` is meant as a list: by its name, or by its first line.
pub fn looks_like_sums(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if name.contains("sha256") || name.ends_with("sums") {
        return true;
    }
    let mut head = Vec::new();
    let read = small::open(path).map(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    let mut lines = head.split(|&byte| byte == b'\n');
    matches!(read, Ok(Ok(_))) && lines.find(|line| !is_empty(line)).is_some_and(|line| parse(line).is_some())
}

fn is_empty(line: &[u8]) -> bool {
    line.first() == Some(&b'#') || line.iter().all(u8::is_ascii_whitespace)
}

fn parse(line: &[u8]) -> Option<Expected> {
    let line = std::str::from_utf8(line).ok()?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    let (line, escaped) = match line.strip_prefix('\\') {
        Some(rest) => (rest, true),
        None => (line, false),
    };
    let (hash, name) = match line.strip_prefix("SHA256 (").and_then(|rest| rest.rsplit_once(") = ")) {
        Some((name, hash)) => (hash, name),
        None => {
            let (hash, rest) = line.split_once(' ')?;
            (hash, rest.strip_prefix([' ', '*'])?)
        }
    };
    let digest = ContentDigest::from_hex(hash).filter(|digest| matches!(digest, ContentDigest::Sha256(_)))?;
    let name = if escaped { unescape(name)? } else { name.to_owned() };
    (!name.is_empty()).then_some(Expected { name, len_bytes: None, digest: Ok(digest) })
}

fn unescape(name: &str) -> Option<String> {
    let mut plain = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn every_form_of_a_line() {
        for (line, name) in [
            (format!("{HASH}  a b"), "a b"),
            (format!("{HASH} *a"), "a"),
            (format!("{}  a\r", HASH.to_uppercase()), "a"),
            (format!("{HASH}   a"), " a"),
            (format!("SHA256 (a (1) = b) = {HASH}"), "a (1) = b"),
            (format!("\\{HASH}  a\\nb\\\\c\\r"), "a\nb\\c\r"),
            (format!("\\SHA256 (a\\nb) = {HASH}"), "a\nb"),
            (format!("{HASH}  a\\nb"), "a\\nb"),
        ] {
            let parsed = parse(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((parsed.name.as_str(), parsed.digest.unwrap().hex()), (name, HASH), "{line}");
        }
        for line in [
            HASH.to_owned(),
            format!("{HASH} a"),
            format!("{HASH}  "),
            format!("{}  a", &HASH[1..]),
            format!("{}  a", &HASH[..40]),
            format!("{}g  a", &HASH[1..]),
            format!("SHA1 (a) = {}", &HASH[..40]),
            format!("\\{HASH}  a\\b"),
            format!("\\{HASH}  a\\"),
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, format!("# made by hand\n\n{HASH}  a\nnonsense\n")).unwrap();
        let error = read_sums(&path).unwrap_err().to_string();
        assert!(error.contains("line 4") && error.contains("nonsense"), "{error}");
        assert!(looks_like_sums(&path));
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(read_sums(&path).unwrap_err().to_string().contains("no checksums"));
        assert!(!looks_like_sums(&path));
        std::fs::write(&path, b"GGUF\xff").unwrap();
        assert!(!looks_like_sums(&path));
        assert!(looks_like_sums(Path::new("SHA256SUMS")));
    }
}
