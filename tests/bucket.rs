//! A small object store on loopback that speaks as much of S3, Google Cloud Storage and Azure as reading takes, with
//! faults. No tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::conversion::sha256;

/// The bucket's name.
pub(crate) const NAME: &str = "models";
/// Who may read.
const KEY: &str = "somebody";
/// Objects on a page of a listing.
const PAGE: usize = 3;
const MODIFIED: &str = "Mon, 02 Jan 2006 15:04:05 GMT";

/// What is done to an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It is this refusal.
    Refuse(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// A byte of the body is another one.
    Flip,
    /// No answer comes.
    Silence,
}

/// A request for an object, or for a listing, whose key is empty.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) key: String,
    pub(crate) range: Option<(usize, usize)>,
}

type Faults = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

struct Shared {
    objects: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    faults: Mutex<Faults>,
    /// Requests, and bytes of objects that were sent, by key.
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<BTreeMap<String, u64>>,
    is_over: AtomicBool,
}

/// The store. It ends when it is dropped.
pub(crate) struct Bucket {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            faults: Mutex::new(Box::new(|_| None)),
            asked: Mutex::default(),
            sent: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let ours = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ours.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let ours = Arc::clone(&ours);
                std::thread::spawn(move || serve(&stream.unwrap(), &ours));
            }
        });
        Self { address, shared }
    }

    /// Puts the files of a directory below `folder`.
    pub(crate) fn with(self, directory: &Path, folder: &str) -> Self {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            self.put(&format!("{folder}/{name}"), std::fs::read(&path).unwrap());
        }
        self
    }

    pub(crate) fn put(&self, key: &str, bytes: Vec<u8>) {
        self.shared.objects.lock().unwrap().insert(key.to_owned(), Arc::new(bytes));
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        self.shared.objects.lock().unwrap()[key].to_vec()
    }

    pub(crate) fn remove(&self, key: &str) {
        self.shared.objects.lock().unwrap().remove(key).unwrap();
    }

    /// Answers are damaged from now on as `faults` says.
    pub(crate) fn fail(&self, faults: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.shared.faults.lock().unwrap() = Box::new(faults);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Bytes that were sent of an object.
    pub(crate) fn sent(&self, key: &str) -> u64 {
        self.shared.sent.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    /// The program in a directory, with what it takes to read here and nothing of this process's.
    pub(crate) fn command(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = crate::share_processes::command(directory, arguments);
        let ours = ["AWS_", "GOOGLE_", "AZURE_"];
        for (name, _) in std::env::vars().filter(|(name, _)| ours.iter().any(|ours| name.starts_with(ours))) {
            command.env_remove(name);
        }
        let endpoint = format!("http://{}", self.address);
        command
            .envs([
                ("AWS_ENDPOINT", endpoint.as_str()),
                ("AWS_ALLOW_HTTP", "true"),
                ("AWS_ACCESS_KEY_ID", KEY),
            ])
            .envs([
                ("AWS_SECRET_ACCESS_KEY", "secret-of-s3"),
                ("AWS_REGION", "here"),
                ("AWS_TIMEOUT", "2 seconds"),
            ])
            .envs([("GOOGLE_BASE_URL", endpoint.as_str()), ("GOOGLE_ALLOW_HTTP", "true")])
            .envs([("GOOGLE_BEARER_TOKEN", KEY)])
            .envs([("AZURE_ENDPOINT", endpoint.as_str()), ("AZURE_ALLOW_HTTP", "true")])
            .envs([("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_STORAGE_TOKEN", KEY)]);
        command
    }

    pub(crate) fn run(&self, directory: &Path, arguments: &[&str]) -> Output {
        self.command(directory, arguments).output().unwrap()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

/// A list of the files in a directory, as sha256sum writes it.
pub(crate) fn sums(directory: &Path) -> String {
    let names = crate::conversion::names(directory);
    let lines = names
        .iter()
        .map(|name| format!("{}  {name}\n", sha256(&std::fs::read(directory.join(name)).unwrap())));
    lines.collect()
}

/// One connection, request after request.
fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        if answer(stream, shared, &target, &headers).is_err() {
            return;
        }
    }
}

fn answer(
    mut stream: &TcpStream,
    shared: &Shared,
    target: &str,
    headers: &BTreeMap<String, String>,
) -> std::io::Result<()> {
    let over = || Err(std::io::ErrorKind::ConnectionAborted.into());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(&value.replace('+', " "))))
        .collect();
    let path = decoded(path);
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((&path[1..], ""));
    let range = headers.get("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().ok()?, end.parse::<usize>().ok()? + 1))
    });
    let asked = Asked { key: key.to_owned(), range };
    shared.asked.lock().unwrap().push(asked.clone());
    let fault = (shared.faults.lock().unwrap())(&asked);
    if let Some(Fault::Silence) = fault {
        std::thread::sleep(std::time::Duration::from_secs(20));
        return over();
    }
    let is_known = headers
        .get("authorization")
        .is_some_and(|who| who.contains(&format!("Credential={KEY}/")) || *who == format!("Bearer {KEY}"));
    let refusal = match fault {
        Some(Fault::Refuse(status, code)) => Some((status, code)),
        _ if !is_known => Some((403, "InvalidAccessKeyId")),
        _ if bucket != NAME => Some((404, "NoSuchBucket")),
        _ => None,
    };
    let objects = shared.objects.lock().unwrap().clone();
    let object = objects.get(key).cloned();
    let tag = |bytes: &[u8]| sha256(bytes)[..16].to_owned();
    let refusal = refusal.or_else(|| match &object {
        _ if key.is_empty() => None,
        None => Some((404, "NoSuchKey")),
        Some(bytes) => {
            let is_other =
                headers.get("if-match").is_some_and(|wanted| *wanted != format!("\"{}\"", tag(bytes)));
            is_other.then_some((412, "PreconditionFailed"))
        }
    });
    if let Some((status, code)) = refusal {
        let body = format!("<Error><Code>{code}</Code></Error>");
        return write!(stream, "HTTP/1.1 {status} {code}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    let Some(bytes) = object else {
        let body = listing(&objects, &query, &tag);
        return write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    };
    let (start, end) = range.unwrap_or((0, bytes.len()));
    let end = end.min(bytes.len());
    if start >= end {
        return write!(stream, "HTTP/1.1 416 Range\r\ncontent-length: 0\r\n\r\n");
    }
    let mut body = bytes[start..end].to_vec();
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{}\r\netag: \"{}\"\r\n\
         last-modified: {MODIFIED}\r\n\r\n",
        body.len(),
        end - 1,
        bytes.len(),
        tag(&bytes)
    )?;
    match fault {
        Some(Fault::CutAfter(len)) => body.truncate(len),
        Some(Fault::Flip) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        _ => {}
    }
    *shared.sent.lock().unwrap().entry(key.to_owned()).or_default() += body.len() as u64;
    stream.write_all(&body)?;
    if matches!(fault, Some(Fault::CutAfter(_))) { over() } else { Ok(()) }
}

/// A page of a listing, as Azure writes it, or as the others do.
fn listing(
    objects: &BTreeMap<String, Arc<Vec<u8>>>,
    query: &BTreeMap<String, String>,
    tag: &dyn Fn(&[u8]) -> String,
) -> String {
    let empty = String::new();
    let is_azure = query.contains_key("comp");
    let prefix = query.get("prefix").unwrap_or(&empty);
    let after = query.get("continuation-token").or_else(|| query.get("marker")).unwrap_or(&empty);
    let mut left = objects.iter().filter(|(key, _)| key.starts_with(prefix) && *key > after);
    let page: Vec<_> = left.by_ref().take(PAGE).collect();
    let next = page.last().filter(|_| left.next().is_some()).map_or("", |(key, _)| key.as_str());
    let entries = page.iter().map(|(key, bytes)| {
        let (len, tag) = (bytes.len(), tag(bytes));
        if is_azure {
            return format!(
                "<Blob><Name>{key}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified><Content-Length>{len}\
                 </Content-Length><Content-Type>x</Content-Type><Etag>{tag}</Etag></Properties></Blob>"
            );
        }
        format!(
            "<Contents><Key>{key}</Key><Size>{len}</Size><LastModified>2006-01-02T15:04:05.000Z</LastModified>\
             <ETag>\"{tag}\"</ETag></Contents>"
        )
    });
    let entries: String = entries.collect();
    if is_azure {
        return format!(
            "<EnumerationResults><Blobs>{entries}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
        );
    }
    let next = if next.is_empty() {
        empty
    } else {
        format!("<NextContinuationToken>{next}</NextContinuationToken>")
    };
    format!("<ListBucketResult>{entries}{next}</ListBucketResult>")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut left = text.as_bytes();
    while let [first, rest @ ..] = left {
        left = rest;
        let hex = rest.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match hex.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                left = &rest[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap()
}
