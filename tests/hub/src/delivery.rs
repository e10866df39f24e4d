//! An answer on its way out: faults are applied to it, then it is sent at the allowed speed.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fault::Action;
use crate::http::{Body, Response};
use crate::hub::Shared;
use crate::throttle::pause;

const PIECE_BYTES: usize = 256 << 10;
const WRONG_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Sign in to the network</title></head>\
    <body><h1>Please accept the terms of use to go on.</h1></body></html>\n";

/// Endless pages so far.
static PAGES: AtomicU64 = AtomicU64::new(0);

/// An answer and what is to go wrong with it.
pub(crate) struct Delivery {
    pub(crate) response: Response,
    head_only: bool,
    /// The connection is closed without an answer.
    pub(crate) refused: bool,
    /// Bytes of the body after which the connection is cut.
    cut_after: Option<u64>,
    stall: Option<(u64, Duration)>,
    /// Pause before the answer.
    late: Duration,
    /// Offsets in the file of bytes to invert.
    flips: Vec<u64>,
    /// Most bytes a second.
    trickle: Option<u64>,
    is_endless: bool,
}

/// Writes slowly.
struct Trickle<'a, W> {
    stream: &'a mut W,
    bytes_per_second: u64,
    shared: &'a Shared,
}

impl<W: Write> Write for Trickle<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min((self.bytes_per_second / 20).max(1) as usize);
        pause(Duration::from_secs_f64(len as f64 / self.bytes_per_second as f64), &self.shared.stop);
        if self.shared.stopping() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.stream.write(&bytes[..len])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Delivery {
    pub(crate) fn new(response: Response, head_only: bool) -> Delivery {
        Delivery {
            response,
            head_only,
            refused: false,
            cut_after: None,
            stall: None,
            flips: Vec::new(),
            late: Duration::ZERO,
            trickle: None,
            is_endless: false,
        }
    }

    /// True if the action would change this answer.
    pub(crate) fn is_harmed_by(&self, action: &Action) -> bool {
        let body_bytes = self.response.body_bytes();
        let file = match &self.response.body {
            Body::File(file) if !self.head_only && !self.refused => Some(file),
            _ => None,
        };
        match *action {
            Action::Status { .. }
            | Action::Refuse
            | Action::Late { .. }
            | Action::Answer { .. }
            | Action::Endless { .. }
            | Action::EndlessPages => !self.refused,
            Action::Trickle { .. } => body_bytes > 0,
            Action::Drop { after_bytes } | Action::Stall { after_bytes, .. } => {
                file.is_some() && body_bytes > after_bytes
            }
            Action::Corrupt { offset } => file.is_some_and(|file| (file.start..file.end).contains(&offset)),
            Action::Truncate { missing_bytes, .. } => file.is_some() && missing_bytes > 0 && body_bytes > 0,
            Action::IgnoreRange => file.is_some() && self.response.status == 206,
            Action::WrongPage => file.is_some(),
        }
    }

    pub(crate) fn apply(&mut self, action: &Action) {
        let body_bytes = self.response.body_bytes();
        match action {
            Action::Drop { after_bytes } => self.cut_after = Some(*after_bytes),
            Action::Stall { after_bytes, pause } => self.stall = Some((*after_bytes, *pause)),
            Action::Status { code, retry_after, text } => {
                self.response = Response::text(*code, text);
                if let Some(delay) = retry_after {
                    self.response.headers.push(("Retry-After", delay.as_secs().to_string()));
                }
            }
            Action::Corrupt { offset } => self.flips.push(*offset),
            Action::Truncate { missing_bytes, claims_less: true } => {
                if let Body::File(file) = &mut self.response.body {
                    file.end = file.end.saturating_sub(*missing_bytes).max(file.start);
                }
            }
            Action::Truncate { missing_bytes, claims_less: false } => {
                self.cut_after = Some(body_bytes.saturating_sub(*missing_bytes));
            }
            Action::IgnoreRange => {
                if let Body::File(file) = &mut self.response.body {
                    (file.start, file.end) = (0, file.content.len());
                    self.response.status = 200;
                    self.response.headers.retain(|(name, _)| *name != "Content-Range");
                }
            }
            Action::WrongPage => {
                self.response = Response { status: 200, ..Response::text(200, WRONG_PAGE) };
                self.response.headers = vec![("Content-Type", "text/html; charset=utf-8".to_string())];
            }
            Action::Refuse => self.refused = true,
            Action::Trickle { bytes_per_second } => self.trickle = Some((*bytes_per_second).max(1)),
            Action::Answer { code, headers, body } => {
                self.response = Response::text(*code, body);
                self.response.headers.clone_from(headers);
            }
            Action::Endless { start } => {
                self.response = Response::text(200, start);
                self.is_endless = true;
            }
            Action::EndlessPages => {
                self.response = Response::json(&serde_json::json!([]));
                let pages = PAGES.fetch_add(1, Ordering::Relaxed);
                let next = format!("<?recursive=true&cursor=endless{pages}>; rel=\"next\"");
                self.response.headers.push(("Link", next));
            }
            Action::Late { pause } => self.late = *pause,
        }
    }

    /// Sends the answer; true if the connection can carry another one.
    pub(crate) fn send(&self, stream: &mut impl Write, shared: &Shared, close: bool) -> io::Result<bool> {
        if self.refused {
            return Ok(false);
        }
        pause(self.late, &shared.stop);
        let body_bytes = self.response.body_bytes();
        let head = self.response.head(body_bytes, close);
        if self.is_endless {
            return self.send_endless(stream, &head, shared);
        }
        stream.write_all(head.as_bytes())?;
        if self.head_only {
            return Ok(!close);
        }
        match self.trickle {
            Some(bytes_per_second) => {
                self.send_body(&mut Trickle { stream, bytes_per_second, shared }, shared, close)
            }
            None => self.send_body(stream, shared, close),
        }
    }

    /// A chunked body without a last chunk, until the client has had enough.
    fn send_endless(&self, stream: &mut impl Write, head: &str, shared: &Shared) -> io::Result<bool> {
        let length = format!("Content-Length: {}\r\n", self.response.body_bytes());
        stream.write_all(head.replace(&length, "Transfer-Encoding: chunked\r\n").as_bytes())?;
        if let Body::Bytes(start) = &self.response.body {
            write!(stream, "{:x}\r\n", start.len())?;
            stream.write_all(start)?;
            stream.write_all(b"\r\n")?;
        }
        let spaces = vec![b' '; PIECE_BYTES];
        while !shared.stopping() {
            write!(stream, "{:x}\r\n", spaces.len())?;
            stream.write_all(&spaces)?;
            stream.write_all(b"\r\n")?;
        }
        Ok(false)
    }

    fn send_body(&self, stream: &mut impl Write, shared: &Shared, close: bool) -> io::Result<bool> {
        match &self.response.body {
            Body::Bytes(bytes) => stream.write_all(bytes)?,
            Body::File(_) => return Ok(self.send_file(stream, shared)? && !close),
        }
        Ok(!close)
    }

    fn send_file(&self, stream: &mut impl Write, shared: &Shared) -> io::Result<bool> {
        let Body::File(file) = &self.response.body else { return Ok(true) };
        let cut = self.cut_after.map_or(file.end, |after| file.end.min(file.start.saturating_add(after)));
        let stall_at = self.stall.map(|(after, _)| file.start.saturating_add(after));
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(cut - file.start).unwrap_or(PIECE_BYTES))];
        let mut offset = file.start;
        while offset < cut && !shared.stopping() {
            if let (Some(at), Some((_, duration))) = (stall_at, self.stall)
                && at == offset
            {
                pause(duration, &shared.stop);
            }
            let border = stall_at.filter(|&at| at > offset).map_or(cut, |at| at.min(cut));
            let most = shared.throttle.piece_bytes(buffer.len()) as u64;
            let piece_len = most.min(border - offset) as usize;
            let piece = &mut buffer[..piece_len];
            file.content.read_at(offset, piece)?;
            for flip in self.flips.iter().filter_map(|flip| flip.checked_sub(offset)) {
                if let Some(byte) = usize::try_from(flip).ok().and_then(|index| piece.get_mut(index)) {
                    *byte = !*byte;
                }
            }
            shared.throttle.wait(piece_len, &shared.stop);
            // Counted first: whoever has a whole body is to find it counted.
            shared.record.sent(&file.name, piece_len as u64);
            if let Err(error) = stream.write_all(piece) {
                shared.record.not_sent(&file.name, piece_len as u64);
                return Err(error);
            }
            offset += piece_len as u64;
        }
        Ok(offset == file.end)
    }
}
