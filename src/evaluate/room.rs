//! Where the states of a measurement are kept: in memory if they fit, else in scratch files.

use std::path::{Path, PathBuf};

use super::Request;
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::model::{self, Storage, Workload, peak_ram_bytes, scratch_bytes};
use crate::pipeline::Need;

/// Part of the memory that is available now that states may take when nobody said how much.
const AVAILABLE_SHARE: f64 = 0.8;

/// Storage for the states.
///
/// # Errors
/// When not even what goes by fits into the memory that is allowed.
pub(super) fn find(request: &Request) -> Result<Storage> {
    let (spec, load) = (request.model.spec(), workload(request));
    let limit = request.memory_bytes.or_else(available_bytes);
    if limit.is_none_or(|limit| peak_ram_bytes(spec, &load, &Storage::Memory) <= limit) {
        return Ok(Storage::Memory);
    }
    let storage = Storage::Scratch(request.scratch.map_or_else(default_scratch_directory, Path::to_owned));
    let least = peak_ram_bytes(spec, &load, &storage);
    match request.memory_bytes.filter(|&memory| memory < least) {
        None => Ok(storage),
        Some(memory) => Err(Error::Request(format!(
            "--memory: {memory} bytes are not enough for {} windows of {} tokens, which need about {least} even with \
             their states on the disk",
            request.windows.len(),
            request.windows.context,
        ))),
    }
}

/// Storage for states with which a run takes so much memory; `limit_bytes` of it may be used, else what is available.
pub fn storage_for(peak_ram_bytes: u64, limit_bytes: Option<u64>) -> Storage {
    match limit_bytes.or_else(available_bytes) {
        Some(limit) if limit < peak_ram_bytes => Storage::Scratch(default_scratch_directory()),
        _ => Storage::Memory,
    }
}

/// What scratch files will take of a disk, if there will be any.
///
/// # Errors
/// As [`super::measure`] when memory will not do.
pub fn scratch_need(request: &Request) -> Result<Option<Need>> {
    let Storage::Scratch(directory) = find(request)? else { return Ok(None) };
    let bytes = scratch_bytes(request.model.spec(), &workload(request));
    Ok(Some(Need { what: "scratch files", directory, bytes }))
}

/// The directory for temporary files that are too large for memory: TMPDIR, else `/var/tmp`, which unlike `/tmp` is
/// on a disk, else the system's.
pub fn default_scratch_directory() -> PathBuf {
    let large = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() {
        large.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn workload(request: &Request) -> Workload {
    let windows = request.windows;
    let predict = |store: Option<&dyn WeightStore>| store.is_some_and(model::has_second_next);
    let own = predict(Some(request.model));
    Workload {
        tokens: windows.tokens.len(),
        context: windows.context,
        scored: windows.scored().len(),
        // Tensors of the two may be stored in different ways, but have the same shapes.
        models: 1 + usize::from(request.original.is_some()),
        predictions: usize::from(own) + usize::from(own && predict(request.original)),
    }
}

/// What a new program may take without swapping, and a container allows, less some for others.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let allowed = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    share(&text, allowed.as_deref())
}

/// The same from the two files; without a limit the second says `max`.
fn share(meminfo: &str, allowed: Option<&str>) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    let allowed = allowed.and_then(|allowed| allowed.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(((kib * 1024).min(allowed) as f64 * AVAILABLE_SHARE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_allow_less_than_there_is() {
        let meminfo = "MemTotal:       24000000 kB\nMemAvailable:   10000000 kB\n";
        let share_of = |bytes: u64| Some((bytes as f64 * AVAILABLE_SHARE) as u64);
        assert_eq!(share(meminfo, None), share_of(10_240_000_000));
        assert_eq!(share(meminfo, Some("max\n")), share_of(10_240_000_000));
        assert_eq!(share(meminfo, Some("4000000000\n")), share_of(4_000_000_000));
        assert_eq!(share("MemTotal: 1 kB", None), None);
    }
}
