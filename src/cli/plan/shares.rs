//! `requant plan --jobs N`: what each of N shares would do.

use serde_json::{Value, json};

use super::Request;
use crate::cli::console::Page;
use crate::cli::size::human;
use crate::plan::{self, ShareTotals};

/// What a share would do.
pub(super) struct OfShare {
    totals: ShareTotals,
    /// Names of the source files that it reads.
    files: Vec<String>,
    /// Bytes of those that would be downloaded.
    download_bytes: u64,
    /// What it adds to the disk: its part of the result, and its spool.
    peak_disk_bytes: u64,
    peak_ram_bytes: u64,
}

/// What each of `count` shares of `request` would do, with spools of at most `limit_bytes`.
pub(super) fn of(request: &Request, count: u32, limit_bytes: u64, peak_ram_bytes: u64) -> Vec<OfShare> {
    let (source, blueprint) = (request.source.catalogue(), &request.blueprint);
    let jobs = plan::jobs(blueprint, source.tensors());
    let share_of = plan::shares(blueprint, source.tensors(), &jobs, count);
    let totals = plan::share_totals(blueprint, source.tensors(), &jobs, &share_of, count);
    let of_share = |totals: ShareTotals| {
        let files = totals.files.iter().map(|&file| source.source().files()[file].name.clone()).collect();
        let (_, download_bytes) = request.download_of(&totals.files);
        let peak_disk_bytes = totals.bytes_out + download_bytes.min(limit_bytes);
        OfShare { totals, files, download_bytes, peak_disk_bytes, peak_ram_bytes }
    };
    totals.into_iter().map(of_share).collect()
}

impl OfShare {
    /// For `--json`.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "job": self.totals.job,
            "files": self.files,
            "bytes_in": self.totals.bytes_in,
            "bytes_out": self.totals.bytes_out,
            "download_bytes": self.download_bytes,
            "peak_disk_bytes": self.peak_disk_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
        })
    }
}

/// Adds a line for each share to `page`.
pub(super) fn print(shares: &[OfShare], page: &mut Page) {
    page.line(format_args!("{} shares:", shares.len()));
    for share in shares {
        let OfShare { totals, files, .. } = share;
        let names = match files.as_slice() {
            [] => {
                page.line(format_args!("  {}: nothing to do", totals.job));
                continue;
            }
            [only] => only.clone(),
            [first, .., last] => format!("{} files, {first} to {last}", files.len()),
        };
        let download = match share.download_bytes {
            0 => String::new(),
            bytes => format!("download {}, ", human(bytes)),
        };
        page.line(format_args!(
            "  {}: {names}; {} -> {}, {download}peak disk {}, peak memory {}",
            totals.job,
            human(totals.bytes_in),
            human(totals.bytes_out),
            human(share.peak_disk_bytes),
            human(share.peak_ram_bytes)
        ));
    }
    let read: usize = shares.iter().map(|share| share.files.len()).sum();
    let mut names: Vec<&String> = shares.iter().flat_map(|share| &share.files).collect();
    names.sort_unstable();
    names.dedup();
    if read > names.len() {
        page.line(format_args!(
            "files that more than one share reads: {} reads of {} files",
            read,
            names.len()
        ));
    }
}
