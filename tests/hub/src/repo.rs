//! What is served: repositories, their commits, and the files of a commit.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::content::{Bytes, Content, DiskFile};
use crate::digest::{git_blob_oid, sha1_of, sha256_of_all};
use crate::xet::{Cut, Stored};

/// Files of this size and more are stored as LFS, whatever their name.
const LFS_FROM_BYTES: u64 = 1 << 20;
const LFS_SUFFIXES: [&str; 4] = [".safetensors", ".gguf", ".bin", ".pt"];

/// A model repository. The branch `main` points to the commit made last.
#[derive(Clone)]
pub struct Repo {
    pub(crate) id: String,
    pub(crate) commits: Vec<Commit>,
    pub(crate) refs: BTreeMap<String, String>,
    pub(crate) token: Option<String>,
    pub(crate) gate: Option<Gate>,
}

/// The terms under which a gated repository hands out files.
#[derive(Debug, Clone)]
pub struct Gate {
    /// How access is granted; only shown.
    pub mode: GateMode,
    /// Tokens whose owners have been granted access.
    pub granted: Vec<String>,
}

/// How access to a gated repository is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// By a click on the website.
    Auto,
    /// By the owner.
    Manual,
}

/// A commit: its name and all its files.
#[derive(Clone)]
pub struct Commit {
    pub(crate) sha: String,
    pub(crate) files: Vec<RepoFile>,
}

/// One file of a commit.
#[derive(Clone)]
pub struct RepoFile {
    /// Path in the repository.
    pub(crate) name: String,
    pub(crate) content: Arc<dyn Content>,
    /// Git's name of the blob; of an LFS file, of its pointer.
    pub(crate) oid: String,
    /// SHA-256 of the content, if it is kept as LFS.
    pub(crate) sha256: Option<String>,
    /// Under which hash Xet storage has it, as the hub says.
    pub(crate) xet_hash: Option<String>,
    /// What Xet storage has.
    pub(crate) stored: Option<Arc<Stored>>,
}

impl RepoFile {
    /// A file; large ones and weights are kept as LFS.
    pub fn new(name: &str, content: Arc<dyn Content>) -> io::Result<RepoFile> {
        if is_lfs(name, content.len()) { Self::lfs(name, content) } else { Self::plain(name, content) }
    }

    /// A file that is kept in git itself, whatever its size.
    pub fn plain(name: &str, content: Arc<dyn Content>) -> io::Result<RepoFile> {
        let oid = git_blob_oid(content.as_ref())?;
        Ok(RepoFile { name: name.to_string(), oid, content, sha256: None, xet_hash: None, stored: None })
    }

    /// A file that is kept as LFS, whatever its size.
    pub fn lfs(name: &str, content: Arc<dyn Content>) -> io::Result<RepoFile> {
        let sha256 = crate::digest::sha256_hex(content.as_ref())?;
        Ok(Self::lfs_with_digest(name, content, sha256))
    }

    /// An LFS file whose SHA-256 is stated, not computed.
    pub fn lfs_with_digest(name: &str, content: Arc<dyn Content>, sha256: String) -> RepoFile {
        let pointer = lfs_pointer(&sha256, content.len());
        let oid = sha1_of(format!("blob {}\0{pointer}", pointer.len()).as_bytes());
        let (sha256, xet_hash, stored) = (Some(sha256), None, None);
        RepoFile { name: name.to_string(), oid, content, sha256, xet_hash, stored }
    }

    /// Puts the file into Xet storage as well.
    pub fn in_xet(mut self, cut: Cut) -> io::Result<RepoFile> {
        let stored = Stored::new(self.content.as_ref(), cut)?;
        self.xet_hash = Some(stored.hash.clone());
        self.stored = Some(Arc::new(stored));
        Ok(self)
    }

    /// The hub says this is the hash of the file in Xet storage, whatever is there.
    pub fn with_xet_hash(mut self, hash: &str) -> RepoFile {
        self.xet_hash = Some(hash.to_string());
        self
    }

    /// The hash in Xet storage, as the hub says.
    pub fn xet_hash(&self) -> Option<&str> {
        self.xet_hash.as_deref()
    }

    /// Path in the repository.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 as the hub states it; none for a file kept in git.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// The bytes.
    pub fn content(&self) -> &Arc<dyn Content> {
        &self.content
    }

    pub(crate) fn len(&self) -> u64 {
        self.content.len()
    }

    /// Bytes of the LFS pointer in git.
    pub(crate) fn pointer_bytes(&self) -> usize {
        self.sha256.as_deref().map_or(0, |sha256| lfs_pointer(sha256, self.len()).len())
    }
}

impl Commit {
    /// A commit of these files; its name follows from theirs and their content.
    pub fn new(mut files: Vec<RepoFile>) -> Commit {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let listing: String = files.iter().map(|file| format!("{} {}\n", file.oid, file.name)).collect();
        Commit { sha: sha1_of(format!("commit {listing}").as_bytes()), files }
    }

    /// The regular files under `directory`, hidden ones left out.
    pub fn from_directory(directory: &Path) -> io::Result<Commit> {
        let mut names = Vec::new();
        collect_files(directory, "", &mut names)?;
        let mut contents: Vec<Arc<dyn Content>> = Vec::with_capacity(names.len());
        for name in &names {
            contents.push(Arc::new(DiskFile::open(&directory.join(name))?));
        }
        let (large, small): (Vec<_>, Vec<_>) =
            names.into_iter().zip(contents).partition(|(name, content)| is_lfs(name, content.len()));
        let (large_names, large): (Vec<_>, Vec<_>) = large.into_iter().unzip();
        let digests = sha256_of_all(&large, &|_, _| ())?;
        let mut files = Vec::new();
        for ((name, content), sha256) in large_names.iter().zip(large).zip(digests) {
            files.push(RepoFile::lfs_with_digest(name, content, sha256));
        }
        for (name, content) in small {
            files.push(RepoFile::plain(&name, content)?);
        }
        Ok(Commit::new(files))
    }

    /// Name of the commit: 40 hex digits.
    pub fn sha(&self) -> &str {
        &self.sha
    }

    /// The files, by name.
    pub fn files(&self) -> &[RepoFile] {
        &self.files
    }

    pub(crate) fn file(&self, name: &str) -> Option<&RepoFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

impl Repo {
    /// A repository `org/name` with one commit on `main`.
    pub fn new(id: &str, commit: Commit) -> Repo {
        let refs = BTreeMap::from([("main".to_string(), commit.sha.clone())]);
        Repo { id: id.to_string(), commits: vec![commit], refs, token: None, gate: None }
    }

    /// A repository with the files under `directory`.
    pub fn from_directory(id: &str, directory: &Path) -> io::Result<Repo> {
        Ok(Repo::new(id, Commit::from_directory(directory)?))
    }

    /// A repository without files, to be filled by [`Repo::file`].
    pub fn empty(id: &str) -> Repo {
        Repo::new(id, Commit::new(Vec::new()))
    }

    /// Adds a file to the commit on `main`, which gets a new name; a file of that name is replaced.
    pub fn file(self, name: &str, bytes: impl Into<Vec<u8>>) -> io::Result<Repo> {
        let file = RepoFile::new(name, Arc::new(Bytes(bytes.into())))?;
        Ok(self.with_file(file))
    }

    /// As [`Repo::file`], with any content.
    pub fn with_file(mut self, file: RepoFile) -> Repo {
        let mut files = self.main().map(|commit| commit.files.clone()).unwrap_or_default();
        files.retain(|old| old.name != file.name);
        files.push(file);
        self.move_main(Commit::new(files), false);
        self
    }

    /// Puts the LFS files of the commit on `main` into Xet storage as well.
    pub fn in_xet(mut self, cut: Cut) -> io::Result<Repo> {
        let main = self.refs.get("main").cloned().unwrap_or_default();
        for commit in self.commits.iter_mut().filter(|commit| commit.sha == main) {
            let stored = |file: RepoFile| if file.sha256.is_some() { file.in_xet(cut) } else { Ok(file) };
            commit.files =
                std::mem::take(&mut commit.files).into_iter().map(stored).collect::<io::Result<_>>()?;
        }
        Ok(self)
    }

    /// Makes the repository private: visible with this token only.
    pub fn with_token(mut self, token: &str) -> Repo {
        self.token = Some(token.to_string());
        self
    }

    /// Makes the repository gated: listed for everyone, files for some.
    pub fn gated(mut self, gate: Gate) -> Repo {
        self.gate = Some(gate);
        self
    }

    /// Adds another name for a commit, a branch or tag.
    pub fn with_ref(mut self, name: &str, sha: &str) -> Repo {
        self.refs.insert(name.to_string(), sha.to_string());
        self
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The commit `main` points to.
    pub fn main(&self) -> Option<&Commit> {
        self.commit("main")
    }

    /// The commit a branch, tag or full hash names.
    pub fn commit(&self, revision: &str) -> Option<&Commit> {
        let sha = self.refs.get(revision).map_or(revision, String::as_str);
        self.commits.iter().find(|commit| commit.sha == sha)
    }

    pub(crate) fn move_main(&mut self, commit: Commit, keep_old: bool) {
        let old = self.refs.insert("main".to_string(), commit.sha.clone());
        if !keep_old {
            let named: Vec<&String> = self.refs.values().collect();
            self.commits.retain(|kept| Some(&kept.sha) != old.as_ref() || named.contains(&&kept.sha));
        }
        if self.commit(&commit.sha).is_none() {
            self.commits.push(commit);
        }
    }
}

fn is_lfs(name: &str, len_bytes: u64) -> bool {
    len_bytes >= LFS_FROM_BYTES || LFS_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

fn lfs_pointer(sha256: &str, len_bytes: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len_bytes}\n")
}

fn collect_files(root: &Path, below: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let Ok(file_name) = entry.file_name().into_string() else { continue };
        if file_name.starts_with('.') {
            continue;
        }
        let name = if below.is_empty() { file_name } else { format!("{below}/{file_name}") };
        let kind = std::fs::metadata(entry.path())?;
        if kind.is_dir() {
            collect_files(root, &name, names)?;
        } else if kind.is_file() {
            names.push(name);
        }
    }
    Ok(())
}
