//! A cache on disk as the crate `hf-hub` reads it: a second opinion on what was put there.

use std::path::Path;

use hf_hub::HFClient;
use hf_hub::cache::CachedRepoInfo;

/// What the crate finds in the cache at `directory`, each file with the name and size that it sees.
///
/// # Errors
/// What it could not read, or found fault with.
pub fn cached(directory: &Path) -> Result<Vec<CachedRepoInfo>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let client = HFClient::builder().cache_dir(directory).build().map_err(|error| text(&error))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| text(&error))?;
    let found = runtime.block_on(async { client.scan_cache().send().await }).map_err(|error| text(&error))?;
    if found.warnings.is_empty() { Ok(found.repos) } else { Err(found.warnings.join("; ")) }
}
