//! HTTP/1.1 as far as a hub needs it: requests in, heads of answers out, ranges, percent signs.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use crate::content::Content;

const MAX_HEAD_BYTES: u64 = 64 << 10;
const MAX_BODY_BYTES: u64 = 16 << 20;

/// A request, its head taken apart.
pub(crate) struct HttpRequest {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An answer before any fault has touched it.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body,
}

/// The body of an answer.
pub(crate) enum Body {
    Bytes(Vec<u8>),
    File(FileBody),
}

/// The part `start..end` of a file.
#[derive(Clone)]
pub(crate) struct FileBody {
    pub(crate) name: String,
    pub(crate) content: Arc<dyn Content>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl HttpRequest {
    /// The next request of a connection; none if the client has closed it.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Option<HttpRequest>> {
        let mut head = reader.by_ref().take(MAX_HEAD_BYTES);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(malformed(&line)) };
        let (method, target) = (method.to_string(), target.to_string());
        let mut headers = Vec::new();
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(malformed("the head ends early or is too long"));
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            let (name, value) = text.split_once(':').ok_or_else(|| malformed(text))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let mut request = HttpRequest { method, target, headers, body: Vec::new() };
        let body_bytes =
            request.header("content-length").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if body_bytes > MAX_BODY_BYTES {
            return Err(malformed("the body is too long"));
        }
        reader.by_ref().take(body_bytes).read_to_end(&mut request.body)?;
        Ok(Some(request))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path without its query, not decoded.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, decoded.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decode(&value.replace('+', " ")))
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1"))
    }

    pub(crate) fn wants_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Response {
    pub(crate) fn json(value: &serde_json::Value) -> Response {
        let headers = vec![("Content-Type", "application/json; charset=utf-8".to_string())];
        Response { status: 200, headers, body: Body::Bytes(value.to_string().into_bytes()) }
    }

    pub(crate) fn text(status: u16, text: &str) -> Response {
        let headers = vec![("Content-Type", "text/plain; charset=utf-8".to_string())];
        Response { status, headers, body: Body::Bytes(text.as_bytes().to_vec()) }
    }

    /// All of a file, or the range that was asked for.
    pub(crate) fn file(
        request: &HttpRequest,
        name: &str,
        content: &Arc<dyn Content>,
        etag: &str,
    ) -> Response {
        let len = content.len();
        let mut headers = vec![
            ("Content-Type", "application/octet-stream".to_string()),
            ("Accept-Ranges", "bytes".to_string()),
            ("ETag", etag.to_string()),
        ];
        let same_version = request.header("if-range").is_none_or(|asked| asked == etag);
        let range = request.header("range").filter(|_| same_version);
        let (status, start, end) = match range.map(|text| parse_range(text, len)) {
            None | Some(Range::Whole) => (200, 0, len),
            Some(Range::Part(start, end)) => {
                headers.push(("Content-Range", format!("bytes {start}-{}/{len}", end - 1)));
                (206, start, end)
            }
            Some(Range::Impossible) => {
                headers.push(("Content-Range", format!("bytes */{len}")));
                return Response { status: 416, headers, body: Body::Bytes(Vec::new()) };
            }
        };
        let body = FileBody { name: name.to_string(), content: Arc::clone(content), start, end };
        Response { status, headers, body: Body::File(body) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body_bytes(&self) -> u64 {
        match &self.body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(file) => file.end - file.start,
        }
    }

    /// Status line and headers, with `Content-Length` as given.
    pub(crate) fn head(&self, content_length: u64, close: bool) -> String {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let _ = write!(text, "{name}: {}\r\n", value.replace(['\r', '\n'], " "));
        }
        let connection = if close { "close" } else { "keep-alive" };
        let _ = write!(text, "Content-Length: {content_length}\r\nConnection: {connection}\r\n\r\n");
        text
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// From, up to but not including.
    Part(u64, u64),
    Impossible,
}

/// One range of a file of `len` bytes; what is not understood, several ranges too, asks for the whole.
fn parse_range(text: &str, len: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let part = match (first.trim().parse::<u64>(), last.trim()) {
        (Ok(start), "") => (start, len),
        (Ok(start), last) => match last.parse::<u64>() {
            Ok(last) if last >= start => (start, last.saturating_add(1).min(len)),
            _ => return Range::Whole,
        },
        (Err(_), last) => match (first.trim(), last.parse::<u64>()) {
            ("", Ok(count)) => (len.saturating_sub(count), len),
            _ => return Range::Whole,
        },
    };
    if part.0 < part.1 { Range::Part(part.0, part.1) } else { Range::Impossible }
}

/// Resolves percent signs; what is not a valid one stays.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code =
            tail.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes percent signs for everything but letters, digits and `-._~/`.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP request: {}", what.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-9", Range::Part(0, 10)),
            ("bytes=90-", Range::Part(90, 100)),
            ("bytes=-10", Range::Part(90, 100)),
            ("bytes=-1000", Range::Part(0, 100)),
            ("bytes=50-1000", Range::Part(50, 100)),
            ("bytes=99-99", Range::Part(99, 100)),
            ("bytes=100-", Range::Impossible),
            ("bytes=100-200", Range::Impossible),
            ("bytes=-0", Range::Impossible),
            ("bytes=9-3", Range::Whole),
            ("bytes=0-1,5-6", Range::Whole),
            ("bytes=x-", Range::Whole),
            ("lines=0-1", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 100), expected, "{text}");
        }
    }

    #[test]
    fn percent_signs() {
        assert_eq!(decode("refs%2Fpr%2F1"), "refs/pr/1");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode(&encode("a b/ü+%.x")), "a b/ü+%.x");
    }

    #[test]
    fn a_request_in_pieces() {
        let text = "POST /a/b?x=1&flag=True HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nRange: bytes=1-2\r\n\r\nabcGET";
        let request = HttpRequest::read(&mut text.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (request.method.as_str(), request.path(), request.body.as_slice()),
            ("POST", "/a/b", &b"abc"[..])
        );
        assert_eq!(request.header("range"), Some("bytes=1-2"));
        assert!(request.flag("flag") && request.flag("x") && !request.flag("y"));
        assert!(HttpRequest::read(&mut &b""[..]).unwrap().is_none());
        assert!(HttpRequest::read(&mut &b"GET / HTTP/1.1\r\nHost"[..]).is_err());
    }
}
