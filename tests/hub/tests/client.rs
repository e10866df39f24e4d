//! A client that shows what is on the wire: no redirects followed, no errors hidden.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The body is shorter than `Content-Length`.
    pub(crate) cut_short: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// `GET url`.
pub(crate) fn get(url: &str, headers: &[&str]) -> io::Result<Reply> {
    ask("GET", url, headers, "")
}

/// Any request on a connection of its own.
pub(crate) fn ask(method: &str, url: &str, headers: &[&str], body: &str) -> io::Result<Reply> {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let port: u16 = host.split_once(':').unwrap().1.parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )?;
    read_reply(&mut BufReader::new(stream), method)
}

/// One answer; an error if there is none.
pub(crate) fn read_reply(reader: &mut impl BufRead, method: &str) -> io::Result<Reply> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_string());
    }
    let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    let pair = |line: &String| line.split_once(": ").map(|(key, value)| (key.to_string(), value.to_string()));
    let headers: Vec<_> = lines[1..].iter().map(|line| pair(line).unwrap()).collect();
    let mut reply = Reply { status, headers, body: Vec::new(), cut_short: false };
    let length: u64 = reply.header("Content-Length").unwrap().parse().unwrap();
    if method != "HEAD" {
        reader.take(length).read_to_end(&mut reply.body)?;
        reply.cut_short = (reply.body.len() as u64) < length;
    }
    Ok(reply)
}

/// Where an LFS file can be had from.
pub(crate) fn link(hub: &test_hub::Hub, repo: &str, file: &str) -> String {
    let reply = ask("HEAD", &format!("{}/{repo}/resolve/main/{file}", hub.url()), &[], "").unwrap();
    reply.header("Location").unwrap().to_string()
}
