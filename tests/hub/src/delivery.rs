//! An answer on its way out: faults are applied to it, then it is sent at the allowed speed.

use std::io::{self, Write};
use std::time::Duration;

use crate::fault::Action;
use crate::http::{Body, Response};
use crate::hub::Shared;
use crate::throttle::pause;

const PIECE_BYTES: usize = 256 << 10;
const WRONG_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Sign in to the network</title></head>\
    <body><h1>Please accept the terms of use to go on.</h1></body></html>\n";

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
}

impl Delivery {
    pub(crate) fn new(response: Response, head_only: bool) -> Delivery {
        Delivery {
            response,
            head_only,
            refused: false,
            cut_after: None,
            stall: None,
            late: Duration::ZERO,
            flips: Vec::new(),
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
            Action::Status { .. } | Action::Refuse | Action::Late { .. } => !self.refused,
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
        stream.write_all(head.as_bytes())?;
        if self.head_only {
            return Ok(!close);
        }
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
            stream.write_all(piece)?;
            shared.record.sent(&file.name, piece_len as u64);
            offset += piece_len as u64;
        }
        Ok(offset == file.end)
    }
}
