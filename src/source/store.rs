//! Checkpoints in object stores (S3, Google Cloud Storage, Azure), read as the hub is: headers by range, weights through a
//! spool. Credentials, regions and endpoints come from the environment variables that the crate `object_store` reads.
//!
//! A store states how long an object is and which content it had when it was listed (its tag); it states no digest of a
//! whole object that can be relied on. So whoever opens one brings the digests: a list, or a manifest that lies there.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use tokio::runtime::Runtime;

use self::attempts::{Attempts, Failure, unless_stopped};
pub use self::url::StoreUrl;
use super::notice::{self, Notices};
use super::{ContentDigest, Remote, RemoteFile};
use crate::error::{Error, Result};
use crate::inside;
use crate::small::{Cap, shown};

mod attempts;
mod url;

/// Objects below one URL, at most.
const MAX_OBJECTS: usize = 100_000;
/// Names in a message, at most.
const SHOWN: usize = 5;

/// What lies below a URL of an object store.
pub struct Listing {
    connection: Connection,
    /// Sorted by name.
    objects: Vec<Object>,
}

/// A checkpoint in an object store, whose files are known to have certain digests.
pub struct Store {
    connection: Connection,
    objects: Vec<Object>,
    files: Vec<RemoteFile>,
}

/// An object as it was when it was listed.
struct Object {
    /// Relative to the URL.
    name: String,
    path: Path,
    len_bytes: u64,
    /// Changes when the content does, where the store has such a tag.
    tag: Option<String>,
}

struct Connection {
    store: Arc<dyn ObjectStore>,
    location: String,
    notices: Notices,
    /// Only taken while being dropped.
    runtime: Option<Runtime>,
}

impl Listing {
    /// Lists what lies below `url`.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses, nothing is there, or [`Error::Interrupted`] once `stop` is set.
    pub fn open(url: &StoreUrl, notices: Notices, stop: &AtomicBool) -> Result<Self> {
        Self::of(url.connect()?, url, notices, stop)
    }

    /// The same of a store that is there already.
    fn of(store: Arc<dyn ObjectStore>, url: &StoreUrl, notices: Notices, stop: &AtomicBool) -> Result<Self> {
        let location = url.to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| Error::hub(&location, format!("cannot set up a client: {error}")))?;
        let connection = Connection { store, location, notices, runtime: Some(runtime) };
        let found = connection.block_on(connection.list(url.prefix(), stop))?;
        let mut objects = Vec::new();
        for ObjectMeta { location: path, size, e_tag, .. } in found {
            let prefix = url.prefix().as_ref();
            let name = path.as_ref().strip_prefix(prefix).unwrap_or(path.as_ref()).trim_start_matches('/');
            if name.is_empty() {
                continue;
            }
            if !inside::is_below(name) {
                let message = format!("an object is called {}, which is no name of a file", shown(name));
                return Err(Error::hub(&connection.location, message));
            }
            // Listings of Azure have tags without the quotes that requests want.
            let tag = e_tag.map(|tag| if tag.ends_with('"') { tag } else { format!("\"{tag}\"") });
            objects.push(Object { name: name.to_owned(), len_bytes: size, tag, path });
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        // Some tools leave an empty object for each folder.
        let folders: Vec<bool> = objects
            .iter()
            .map(|object| {
                let inside = format!("{}/", object.name);
                object.len_bytes == 0 && objects.iter().any(|other| other.name.starts_with(&inside))
            })
            .collect();
        let mut is_folder = folders.into_iter();
        objects.retain(|_| is_folder.next() != Some(true));
        if objects.is_empty() {
            let message = "no objects are there: is the name right? It is that of a folder with a checkpoint";
            return Err(Error::hub(&connection.location, message));
        }
        Ok(Self { connection, objects })
    }

    /// Names of the objects, relative to the URL.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().map(|object| object.name.as_str())
    }

    /// The whole of a small object; `None` when there is none of this name.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than `cap`.
    pub fn read(&self, name: &str, cap: Cap, stop: &AtomicBool) -> Result<Option<Vec<u8>>> {
        let Some(object) = self.objects.iter().find(|object| object.name == name) else { return Ok(None) };
        cap.check(&self.connection.place(object), object.len_bytes)?;
        let mut bytes = Vec::new();
        self.connection.read(object, 0..object.len_bytes, stop, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(Some(bytes))
    }

    /// The objects as files with the digests of which `stated` says something; those that are `aside` are none.
    ///
    /// # Errors
    /// When nothing is stated about an object; `by` says who states something.
    pub fn stated(
        self,
        stated: impl Fn(&str) -> Option<ContentDigest>,
        aside: impl Fn(&str) -> bool,
        by: &str,
    ) -> Result<Store> {
        let Self { connection, objects } = self;
        let (mut kept, mut files, mut unstated) = (Vec::new(), Vec::new(), Vec::new());
        for object in objects.into_iter().filter(|object| !aside(&object.name)) {
            let Some(digest) = stated(&object.name) else {
                unstated.push(object.name);
                continue;
            };
            let (name, len_bytes) = (object.name.clone(), object.len_bytes);
            files.push(RemoteFile { name, len_bytes, digest, xet_hash: None });
            kept.push(object);
        }
        if unstated.is_empty() {
            return Ok(Store { connection, objects: kept, files });
        }
        let names: Vec<_> = unstated.iter().take(SHOWN).map(|name| shown(name)).collect();
        let more = match unstated.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "{by} says nothing about {}{more}, and a file without a digest could be damaged on its way unseen. List every \
             file in it, or move those away that do not belong to the model",
            names.join(", ")
        );
        Err(Error::hub(&connection.location, message))
    }
}

impl Remote for Store {
    fn location(&self) -> String {
        self.connection.location.clone()
    }

    fn files(&self) -> &[RemoteFile] {
        &self.files
    }

    fn read_range(
        &self,
        file: usize,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.connection.read(&self.objects[file], range, stop, sink)
    }

    fn mistrust(&self, file: usize) {
        self.connection.notices.say(&self.connection.place(&self.objects[file]), notice::ANEW);
    }
}

impl Connection {
    fn place(&self, object: &Object) -> String {
        format!("{}: {}", self.location, object.name)
    }

    fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => Err(Error::Interrupted),
        }
    }

    async fn list(&self, prefix: &Path, stop: &AtomicBool) -> Result<Vec<ObjectMeta>> {
        let mut attempts = Attempts::new(&self.location, &self.notices, stop);
        loop {
            let failure = match self.list_once(prefix, stop).await {
                Ok(found) => return Ok(found),
                Err(failure) => failure,
            };
            attempts.after(failure, 0).await?;
        }
    }

    async fn list_once(
        &self,
        prefix: &Path,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<ObjectMeta>, Failure> {
        let mut listing = self.store.list(Some(prefix));
        let mut found = Vec::new();
        while let Some(object) = unless_stopped(stop, listing.next()).await? {
            found.push(object.map_err(|error| Failure::of_listing(&self.location, &error))?);
            if found.len() > MAX_OBJECTS {
                let message =
                    format!("more than {MAX_OBJECTS} objects are there: name the folder of one checkpoint");
                return Err(Error::hub(&self.location, message).into());
            }
        }
        Ok(found)
    }

    /// Hands `range` of an object to `sink`, over as many attempts as it takes.
    fn read(
        &self,
        object: &Object,
        range: Range<u64>,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let place = self.place(object);
        let position = Cell::new(range.start);
        let mut pass = |bytes: &[u8]| {
            // Not more than was asked for.
            let missing = usize::try_from(range.end - position.get()).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(missing)];
            position.set(position.get() + bytes.len() as u64);
            sink(bytes)
        };
        self.block_on(async {
            let mut attempts = Attempts::new(&place, &self.notices, stop);
            while position.get() < range.end {
                let before = position.get();
                let attempt = self.read_once(object, &place, before..range.end, stop, &mut pass).await;
                let failure = match attempt {
                    Ok(()) if position.get() == range.end => break,
                    Ok(()) => Failure::again("the answer ended early"),
                    Err(failure) => failure,
                };
                attempts.after(failure, position.get() - before).await?;
            }
            Ok(())
        })
    }

    async fn read_once(
        &self,
        object: &Object,
        place: &str,
        range: Range<u64>,
        stop: &AtomicBool,
        pass: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> std::result::Result<(), Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: object.tag.clone(),
            ..GetOptions::default()
        };
        let answer = unless_stopped(stop, self.store.get_opts(&object.path, options)).await?;
        let answer = answer.map_err(|error| Failure::of_object(place, &error))?;
        if answer.meta.size != object.len_bytes {
            let message = format!(
                "changed since it was listed: it has {} bytes, expected {}; start over to read what is there now",
                answer.meta.size, object.len_bytes
            );
            return Err(Error::hub(place, message).into());
        }
        let mut stream = answer.into_stream();
        while let Some(chunk) = unless_stopped(stop, stream.next()).await? {
            pass(&chunk.map_err(|error| Failure::of_object(place, &error))?)?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    fn put(store: &InMemory, key: &str, bytes: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.put(&Path::parse(key).unwrap(), bytes.to_vec().into())).unwrap();
    }

    #[test]
    fn objects_are_read_as_they_were_listed_or_not_at_all() {
        let stop = AtomicBool::new(false);
        let memory = Arc::new(InMemory::new());
        for (key, bytes) in [("m/a", &b"0123456789"[..]), ("m/b/c", b"x"), ("m/b", b""), ("m2/d", b"y")] {
            put(&memory, key, bytes);
        }
        let open = |folder: &str| {
            let url = StoreUrl::parse(&format!("s3://bucket/{folder}")).unwrap().unwrap();
            Listing::of(Arc::clone(&memory) as Arc<dyn ObjectStore>, &url, Notices::default(), &stop)
        };
        let listing = open("m").unwrap();
        // Neither the folder b nor what is beside m.
        assert_eq!(listing.names().collect::<Vec<_>>(), ["a", "b/c"]);
        let cap = Cap { what: "a test", max_bytes: 10 };
        assert_eq!(listing.read("a", cap, &stop).unwrap().unwrap(), b"0123456789");
        assert_eq!(listing.read("b", cap, &stop).unwrap(), None);
        let small = Cap { what: "a test", max_bytes: 9 };
        assert!(listing.read("a", small, &stop).unwrap_err().to_string().contains("s3://bucket/m: a"));
        let error = open("nothing").err().unwrap().to_string();
        assert!(error.contains("s3://bucket/nothing: no objects are there"), "{error}");

        let digest = ContentDigest::Sha256("0".repeat(64));
        let error = listing.stated(|name| (name == "a").then(|| digest.clone()), |_| false, "LIST").err();
        assert!(error.unwrap().to_string().contains("LIST says nothing about \"b/c\""));
        let store =
            open("m").unwrap().stated(|_| Some(digest.clone()), |name| name == "b/c", "LIST").unwrap();
        assert_eq!(
            (store.files().len(), store.files()[0].len_bytes, store.location()),
            (1, 10, "s3://bucket/m".into())
        );
        let read = |range: Range<u64>| {
            let mut found = Vec::new();
            store.read_range(0, range, &stop, &mut |bytes| {
                found.extend_from_slice(bytes);
                Ok(())
            })?;
            Ok::<_, Error>(found)
        };
        assert_eq!(read(3..7).unwrap(), b"3456");
        // Another content of the same length.
        put(&memory, "m/a", b"9876543210");
        let error = read(3..7).unwrap_err().to_string();
        assert!(error.contains("s3://bucket/m: a: changed since it was listed"), "{error}");
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(read(3..7), Err(Error::Interrupted)));
    }
}
