//! `s3://`, `gs://` and `az://`: names of folders in object stores.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};

use crate::error::{Error, Result};

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    Google,
    Azure,
}

/// What stands before the bucket.
const SCHEMES: [(&str, Kind); 3] = [("s3://", Kind::S3), ("gs://", Kind::Google), ("az://", Kind::Azure)];

/// A folder in an object store: `s3://bucket/folder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl {
    scheme: &'static str,
    kind: Kind,
    bucket: String,
    prefix: Path,
}

impl StoreUrl {
    /// Whether `text` is such a name, well formed or not.
    pub fn is_meant(text: &str) -> bool {
        SCHEMES.iter().any(|(scheme, _)| text.starts_with(scheme))
    }

    /// Reads a name; `None` when it is none.
    ///
    /// # Errors
    /// When it is not well formed.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let Some((scheme, kind, rest)) =
            SCHEMES.into_iter().find_map(|(scheme, kind)| Some((scheme, kind, text.strip_prefix(scheme)?)))
        else {
            return Ok(None);
        };
        let refuse =
            |why: &str| Err(Error::Request(format!("{text}: {why}; expected {scheme}BUCKET/FOLDER")));
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return refuse("no bucket is named");
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !bucket.bytes().all(is_plain) || bucket.starts_with(['.', '-']) {
            return refuse("this is no name of a bucket");
        }
        if folder.starts_with('/') {
            return refuse("this is no name of a folder");
        }
        match Path::parse(folder) {
            Ok(prefix) => Ok(Some(Self { scheme, kind, bucket: bucket.to_owned(), prefix })),
            Err(_) => refuse("this is no name of a folder"),
        }
    }

    pub(super) fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// As a name for a directory.
    pub fn folder_name(&self) -> String {
        let scheme = self.scheme.trim_end_matches("://");
        let parts = [scheme, self.bucket.as_str()].into_iter().chain(self.prefix.as_ref().split('/'));
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("--")
    }

    /// A client for the store. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When what the environment says about it makes no sense.
    pub(super) fn connect(&self) -> Result<Arc<dyn ObjectStore>> {
        // Attempts are counted where it is known what they brought.
        let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        let store: object_store::Result<Arc<dyn ObjectStore>> = match self.kind {
            Kind::S3 => {
                let builder = AmazonS3Builder::from_env().with_bucket_name(&self.bucket).with_retry(retry);
                builder.build().map(|store| Arc::new(store) as _)
            }
            Kind::Google => {
                let builder =
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(&self.bucket).with_retry(retry);
                builder.build().map(|store| Arc::new(store) as _)
            }
            Kind::Azure => {
                let builder =
                    MicrosoftAzureBuilder::from_env().with_container_name(&self.bucket).with_retry(retry);
                builder.build().map(|store| Arc::new(store) as _)
            }
        };
        store.map_err(|error| {
            let error = super::attempts::brief(&error);
            Error::hub(
                self.to_string(),
                format!("cannot set up a client: {error}. Look at {}", self.variables()),
            )
        })
    }

    /// Where the environment says how to get in.
    fn variables(&self) -> &'static str {
        match self.kind {
            Kind::S3 => "the variables AWS_*",
            Kind::Google => "the variables GOOGLE_*",
            Kind::Azure => "the variables AZURE_*",
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme, self.bucket)?;
        if self.prefix.as_ref().is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_is_none() {
        for (text, shown, folder) in [
            ("s3://b/models/DeepSeek-V3", "s3://b/models/DeepSeek-V3", "s3--b--models--DeepSeek-V3"),
            ("gs://a.b-c/m/", "gs://a.b-c/m", "gs--a.b-c--m"),
            ("az://container", "az://container", "az--container"),
            ("s3://b/a folder/\u{e9}", "s3://b/a folder/\u{e9}", "s3--b--a folder--\u{e9}"),
        ] {
            let url = StoreUrl::parse(text).unwrap().unwrap();
            assert_eq!((url.to_string().as_str(), url.folder_name().as_str()), (shown, folder));
            assert!(StoreUrl::is_meant(text));
        }
        for text in ["s3:/b/m", "S3://b", "org/name", "/s3://b", "https://b/m", "hf://org/name", ""] {
            assert_eq!(StoreUrl::parse(text).unwrap(), None, "{text}");
            assert!(!StoreUrl::is_meant(text));
        }
        for text in [
            "s3://",
            "s3:///m",
            "s3://b//m",
            "s3://b/../m",
            "s3://b/./m",
            "gs://user@b/m",
            "s3://-b",
            "az://b c",
        ] {
            let error = StoreUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("BUCKET/FOLDER"), "{error}");
        }
    }
}
