//! The one door through which files are written, named, synced and removed.
//!
//! What a run promises about kills and power cuts depends on the order of these steps, so all of them are taken
//! by a [`Disk`]. Usually it is the operating system's. A test gives it a [`Watch`], which sees every step
//! before and after it is taken and may make it fail or fall short.
//!
//! A name is on the disk once the directory that holds it was synced, and content once the file was:
//! functions here sync only what their documentation says.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A step that changes the disk, or reads back what was written.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A new, empty file, or an old one cut to nothing.
    Create(&'a Path),
    /// Bytes go to a file from an offset on.
    Write(&'a DiskFile, u64, &'a [u8]),
    /// A file gets this length.
    Resize(&'a DiskFile, u64),
    /// The content of a file is to be on the disk.
    Sync(&'a DiskFile),
    /// So many bytes of a file are read from an offset on.
    Read(&'a DiskFile, u64, usize),
    /// The first name becomes the second; what had the second is gone.
    Rename(&'a Path, &'a Path),
    /// Two names change places.
    Exchange(&'a Path, &'a Path),
    /// A file or link goes.
    Remove(&'a Path),
    /// A new directory.
    MakeDirectory(&'a Path),
    /// An empty directory goes.
    RemoveDirectory(&'a Path),
    /// The names in a directory are to be on the disk.
    SyncDirectory(&'a Path),
    /// The second path becomes a symbolic link to the first.
    Link(&'a Path, &'a Path),
}

/// Sees every [`Step`].
pub trait Watch: Send + Sync {
    /// Called before a step; gives how many bytes a write or read may take at once.
    ///
    /// # Errors
    /// What the step fails with, instead of being taken.
    fn before(&self, step: Step<'_>) -> io::Result<usize>;

    /// Called once a step was taken. For a write, with the bytes that were written.
    fn after(&self, step: Step<'_>);
}

/// Where files are written.
#[derive(Clone, Default)]
pub struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.watch.is_some() { "Disk(watched)" } else { "Disk" })
    }
}

/// An open file of a [`Disk`], for positioned reads and writes from several threads.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl Disk {
    /// The operating system's, seen by `watch`.
    pub fn watched(watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch) }
    }

    /// Takes `step`, which `take` does.
    fn step<T>(&self, step: Step<'_>, take: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(watch) = &self.watch else { return take() };
        loop {
            match watch.before(step) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        let taken = take()?;
        watch.after(step);
        Ok(taken)
    }

    fn wrap(&self, file: File, path: &Path) -> DiskFile {
        DiskFile { file, path: path.to_owned(), disk: self.clone() }
    }

    fn open_with(&self, path: &Path, options: &OpenOptions) -> Result<DiskFile> {
        let take = || options.open(path);
        let file = self.step(Step::Create(path), take).map_err(Error::io(path, "create"))?;
        Ok(self.wrap(file, path))
    }

    /// A new file at `path`, for reading and writing.
    ///
    /// # Errors
    /// When there is one, or it cannot be made.
    pub fn create_new(&self, path: &Path) -> Result<DiskFile> {
        self.open_with(path, OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// An empty file at `path`, for reading and writing; one that is there is emptied.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self, path: &Path) -> Result<DiskFile> {
        self.open_with(path, OpenOptions::new().read(true).write(true).create(true).truncate(true))
    }

    /// The file at `path`, for reading and writing.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open(&self, path: &Path) -> Result<DiskFile> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.map(|file| self.wrap(file, path)).map_err(Error::io(path, "open"))
    }

    /// The file at `path`, for reading only.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open_to_read(&self, path: &Path) -> Result<DiskFile> {
        File::open(path).map(|file| self.wrap(file, path)).map_err(Error::io(path, "open"))
    }

    /// The file at `path`, for reading and writing; a new one when there is none.
    ///
    /// # Errors
    /// When it can be neither opened nor made.
    pub fn open_or_create(&self, path: &Path) -> Result<DiskFile> {
        if path.symlink_metadata().is_ok() {
            return self.open(path);
        }
        match self.create_new(path) {
            // Somebody else was faster.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => self.open(path),
            made => made,
        }
    }

    /// Writes `bytes` to the file at `path`: under a temporary name beside it, synced, then renamed. After a
    /// power cut the old content is there or the new one; [`Disk::sync_parent`] makes it the new one.
    ///
    /// # Errors
    /// When it cannot be written; the old content is still there then.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = with_suffix(path, ".new");
        self.remove(&temporary)?;
        let file = self.create_new(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        self.rename(&temporary, path)
    }

    /// Renames `from` to `to`; a file or empty directory at `to` is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let take = || std::fs::rename(from, to);
        self.step(Step::Rename(from, to), take).map_err(Error::io(to, "rename to"))
    }

    /// Renames `from` to `to` if nothing is there; `false` if something is. Of several processes that give one name
    /// at the same time one wins; of files that holds where the file system knows of it, of directories that are not
    /// empty everywhere.
    ///
    /// # Errors
    /// When the system refuses for another reason.
    pub fn rename_new(&self, from: &Path, to: &Path) -> Result<bool> {
        let taken = self.step(Step::Rename(from, to), || {
            match rename_with(from, to, rustix::fs::RenameFlags::NOREPLACE) {
                // A file system without this flag: what is left is to look first.
                Err(error) if is_not_offered(&error) => {
                    if to.symlink_metadata().is_ok() {
                        return Err(ErrorKind::AlreadyExists.into());
                    }
                    std::fs::rename(from, to)
                }
                other => other,
            }
        });
        match taken {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {
                Ok(false)
            }
            Err(error) => Err(Error::io(to, "rename to")(error)),
        }
    }

    /// Lets the names `a` and `b` change places in one step; `false` on a file system that cannot.
    ///
    /// # Errors
    /// When the system refuses for another reason.
    pub fn exchange(&self, a: &Path, b: &Path) -> Result<bool> {
        match self.step(Step::Exchange(a, b), || rename_with(a, b, rustix::fs::RenameFlags::EXCHANGE)) {
            Ok(()) => Ok(true),
            Err(error) if is_not_offered(&error) => Ok(false),
            Err(error) => Err(Error::io(b, "exchange with its replacement")(error)),
        }
    }

    /// Removes what is at `path`, a directory with all that is in it; nothing there is fine. Links are not
    /// followed.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let removed = match path.symlink_metadata() {
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_dir() => {
                for entry in std::fs::read_dir(path).map_err(Error::io(path, "list"))? {
                    self.remove(&entry.map_err(Error::io(path, "list"))?.path())?;
                }
                return self.remove_directory(path);
            }
            Ok(_) => self.step(Step::Remove(path), || std::fs::remove_file(path)),
        };
        match removed {
            Err(error) if is_absent(&error) => Ok(()),
            removed => removed.map_err(Error::io(path, "remove")),
        }
    }

    /// Removes the empty directory at `path`.
    ///
    /// # Errors
    /// When it is not empty, or cannot be removed.
    pub fn remove_directory(&self, path: &Path) -> Result<()> {
        let take = || std::fs::remove_dir(path);
        self.step(Step::RemoveDirectory(path), take).map_err(Error::io(path, "remove"))
    }

    /// Makes the directory at `path`, which must not be there.
    ///
    /// # Errors
    /// When it is, or cannot be made.
    pub fn make_directory(&self, path: &Path) -> Result<()> {
        let take = || std::fs::create_dir(path);
        self.step(Step::MakeDirectory(path), take).map_err(Error::io(path, "create"))
    }

    /// Makes the directory at `path` and those above it, unless they are there; each new name is synced.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make_directories(&self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_directories(parent)?;
        }
        match self.make_directory(path) {
            // Somebody else was faster.
            Err(_) if path.is_dir() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_parent(path),
        }
    }

    /// Makes `link` a symbolic link to `target`.
    ///
    /// # Errors
    /// When something is there, or it cannot be made.
    pub fn link(&self, target: &Path, link: &Path) -> Result<()> {
        let take = || std::os::unix::fs::symlink(target, link);
        self.step(Step::Link(target, link), take).map_err(Error::io(link, "link"))
    }

    /// Puts the names in the directory at `path` on the disk.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync_directory(&self, path: &Path) -> Result<()> {
        let take = || File::open(path)?.sync_all();
        self.step(Step::SyncDirectory(path), take).map_err(Error::io(path, "sync"))
    }

    /// Puts the name `path` on the disk: syncs the directory that holds it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync_parent(&self, path: &Path) -> Result<()> {
        self.sync_directory(parent_of(path))
    }
}

impl DiskFile {
    /// The name under which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from other files while it exists, whatever it is called.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn inode(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.ino())
    }

    /// Its length.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn len_bytes(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(Error::io(&self.path, "stat"))
    }

    /// Writes all of `bytes` from `offset_bytes` on.
    ///
    /// # Errors
    /// When the system refuses; a part may be written then.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset_bytes: u64) -> Result<()> {
        if self.disk.watch.is_none() {
            return self.file.write_all_at(bytes, offset_bytes).map_err(Error::io(&self.path, "write"));
        }
        while !bytes.is_empty() {
            let written = self.write_some(bytes, offset_bytes).map_err(Error::io(&self.path, "write"))?;
            bytes = &bytes[written..];
            offset_bytes += written as u64;
        }
        Ok(())
    }

    /// One write under a [`Watch`], which may be a short one.
    fn write_some(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<usize> {
        let Some(watch) = &self.disk.watch else { return self.file.write_at(bytes, offset_bytes) };
        let most = match watch.before(Step::Write(self, offset_bytes, bytes)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error),
            Ok(most) => bytes.len().min(most.max(1)),
        };
        self.file.write_all_at(&bytes[..most], offset_bytes)?;
        watch.after(Step::Write(self, offset_bytes, &bytes[..most]));
        Ok(most)
    }

    /// Fills `buf` from `offset_bytes` on.
    ///
    /// # Errors
    /// When the system refuses or the file ends early.
    pub fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        let len = buf.len();
        let take = || self.file.read_exact_at(buf, offset_bytes);
        let read = self.disk.step(Step::Read(self, offset_bytes, len), take);
        read.map_err(Error::io(&self.path, "read back"))
    }

    /// Lets the system forget what it keeps of this file in memory, as far as that is on the disk: whoever reads it
    /// next sees what other machines have written meanwhile. It is no error if the system does not.
    pub fn forget_cached(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Gives the file this length.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_len(&self, len_bytes: u64) -> Result<()> {
        let take = || self.file.set_len(len_bytes);
        self.disk.step(Step::Resize(self, len_bytes), take).map_err(Error::io(&self.path, "resize"))
    }

    /// Puts content and length on the disk. The name is another matter: [`Disk::sync_parent`].
    ///
    /// # Errors
    /// When the system refuses: nothing may be said of what was written since the last time.
    pub fn sync(&self) -> Result<()> {
        let take = || self.file.sync_data();
        self.disk.step(Step::Sync(self), take).map_err(Error::io(&self.path, "sync"))
    }
}

/// Writes bytes one after the other to a [`DiskFile`], from its start.
#[derive(Debug)]
pub struct Appender {
    file: DiskFile,
    end_bytes: u64,
}

impl Appender {
    /// Goes on from `end_bytes` of `file`.
    pub fn new(file: DiskFile, end_bytes: u64) -> Self {
        Self { file, end_bytes }
    }

    /// Writes `bytes` at the end.
    ///
    /// # Errors
    /// As [`DiskFile::write_all_at`]; the end stays where it was then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.end_bytes)?;
        self.end_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The file.
    pub fn file(&self) -> &DiskFile {
        &self.file
    }
}

/// `path` with `suffix` after its last component (`model/` counts as `model`).
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// The directory that holds the name `path`.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn rename_with(from: &Path, to: &Path, flags: rustix::fs::RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
}

/// Whether a file system does not know what was asked of it.
fn is_not_offered(error: &io::Error) -> bool {
    let offered = [rustix::io::Errno::INVAL, rustix::io::Errno::NOSYS, rustix::io::Errno::OPNOTSUPP];
    offered.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
