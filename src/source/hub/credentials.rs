//! User name and password in the address of a hub: sent to it, never shown.

use std::fmt;

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::error::{Error, Result};

/// What stood before the `@` of an address.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// `user:password` in base64, as it is sent.
    encoded: String,
    /// The password as it stood in the address and as it is meant, if there is one; else both of the user name,
    /// which then is the secret.
    secret: [String; 2],
}

impl Credentials {
    /// Takes the credentials out of an address.
    pub(super) fn take(mut url: Url) -> (Url, Option<Self>) {
        let (user, password) = (url.username().to_owned(), url.password().map(str::to_owned));
        if user.is_empty() && password.is_none() {
            return (url, None);
        }
        // Refused only for addresses that cannot have any.
        let _ = (url.set_username(""), url.set_password(None));
        let plain = [&user, password.as_ref().unwrap_or(&String::new())].map(|text| decode(text));
        let encoded = base64(&[&plain[0][..], b":", &plain[1][..]].concat());
        let (as_written, as_meant) = match password {
            Some(password) => (password, &plain[1]),
            None => (user, &plain[0]),
        };
        let secret = [as_written, String::from_utf8_lossy(as_meant).into_owned()];
        (url, Some(Self { encoded, secret }))
    }

    /// The header that a hub wants.
    ///
    /// # Errors
    /// Never for what [`Credentials::take`] gives; the message names `place`.
    pub(super) fn header(&self, place: &str) -> Result<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Basic {}", self.encoded))
            .map_err(|_| Error::hub(place, "HF_ENDPOINT: its user name and password cannot be sent"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Texts that must not be shown.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.secret.iter().chain([&self.encoded]).map(String::as_str)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(credentials)")
    }
}

/// `address` without what stands before an `@` of its host and without its query, also where it is no valid URL.
pub(super) fn without(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), address),
    };
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    // An unencoded slash in a password would end the host too early: the last `@` counts.
    let host = match (rest[..end].rfind('@'), rest.rfind('@')) {
        (Some(at), _) => at + 1,
        (None, Some(at)) if rest[..end].contains(':') && !is_port(&rest[..end]) => at + 1,
        _ => 0,
    };
    let rest = &rest[host..];
    format!("{scheme}{}", &rest[..rest.find(['?', '#']).unwrap_or(rest.len())])
}

/// Whether what follows the last colon is a port.
fn is_port(authority: &str) -> bool {
    let port = authority.rsplit(':').next().unwrap_or_default();
    port.bytes().all(|byte| byte.is_ascii_digit()) || authority.ends_with(']')
}

/// Resolves percent signs; what is not a valid one stays.
fn decode(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|_| first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Base64 with padding (RFC 4648, 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_and_sent_as_rfc_7617_wants() {
        let (url, taken) = Credentials::take(Url::parse("https://Aladdin:open%20sesame@h:8080/hub").unwrap());
        assert_eq!(url.as_str(), "https://h:8080/hub");
        let taken = taken.unwrap();
        assert_eq!(taken.header("h").unwrap().to_str().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        let secrets: Vec<&str> = taken.secrets().collect();
        assert_eq!(secrets, ["open%20sesame", "open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]);
        assert_eq!(format!("{taken:?}"), "(credentials)");
        assert!(Credentials::take(Url::parse("https://h/@x").unwrap()).1.is_none());
        let (_, only_user) = Credentials::take(Url::parse("https://hf_abc@h").unwrap());
        assert_eq!(only_user.unwrap().secrets().next(), Some("hf_abc"));
    }

    /// Values of RFC 4648, 10.
    #[test]
    fn base64_of_the_standard() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn addresses_show_without_credentials() {
        for (address, expected) in [
            ("https://h/x", "https://h/x"),
            ("https://h:80/a@b", "https://h:80/a@b"),
            ("https://user:pw@h:80/a@b", "https://h:80/a@b"),
            ("https://user:p@w@h", "https://h"),
            ("https://user:p/w@h/x", "https://h/x"),
            ("https://user:p?w@h/x", "https://h/x"),
            ("https://h:80/x?key=a@b#c", "https://h:80/x"),
            ("ftp://user:pw@h", "ftp://h"),
            ("user:pw@h", "h"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(without(address), expected, "{address}");
        }
    }
}
