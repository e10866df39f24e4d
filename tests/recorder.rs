//! A disk that can lose power: records every step of a run below one directory, stops at a chosen one, and puts
//! there what a power cut at that moment could have left. No tests of runs.
//!
//! What is assumed of a file system is what journaling ones promise: names change in order, and syncing a
//! directory puts every change of names so far on the disk; content is there for sure once the file was synced,
//! and until then each sector may be there or not.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use requant::disk::{Disk, Step, Watch};

/// Unit in which content survives or not.
const SECTOR_BYTES: usize = 512;

/// What a power cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All of it: the process was killed and the system went on.
    Nothing,
    /// Neither content nor names.
    Everything,
    /// Names are there, content is not.
    Content,
    /// Names and lengths are there, content is zeros.
    Zeroed,
    /// Some sectors, and names up to some moment; the seed says which.
    Some(u64),
}

/// What goes wrong at a step instead of a stop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The step fails once with this error number.
    Once(i32),
    /// The step and all writes after it fail with this error number.
    From(i32),
    /// Nothing fails; every write is short and every step is interrupted first.
    Short,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(usize),
    Directory,
    Link(PathBuf),
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, Node),
    Gone(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Default)]
struct State {
    steps: usize,
    /// Stop before this step; a write is torn in the middle.
    stop_at: Option<usize>,
    is_off: bool,
    fault: Option<(usize, Fault)>,
    interrupted: bool,
    /// Names of steps, for messages.
    log: Vec<String>,
    contents: Vec<Content>,
    /// Which content an inode has now.
    by_inode: HashMap<u64, usize>,
    durable: Names,
    names: Vec<NameChange>,
}

/// See the top of the file.
pub(crate) struct Recorder {
    root: PathBuf,
    state: Mutex<State>,
}

impl Recorder {
    /// Records what happens below `root`; what is there now is on the disk.
    pub(crate) fn new(root: &Path, stop_at: Option<usize>) -> Arc<Self> {
        let mut state = State { stop_at, ..State::default() };
        scan(root, &mut state);
        Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) })
    }

    /// The same with a fault at a step.
    pub(crate) fn with_fault(root: &Path, step: usize, fault: Fault) -> Arc<Self> {
        let recorder = Self::new(root, None);
        recorder.state.lock().unwrap().fault = Some((step, fault));
        recorder
    }

    /// To be written with.
    pub(crate) fn disk(self: &Arc<Self>) -> Disk {
        Disk::watched(Arc::clone(self) as Arc<dyn Watch>)
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> usize {
        self.state.lock().unwrap().steps
    }

    /// Whether the run was stopped.
    pub(crate) fn is_off(&self) -> bool {
        self.state.lock().unwrap().is_off
    }

    /// The last steps, for messages.
    pub(crate) fn last(&self) -> String {
        let state = self.state.lock().unwrap();
        state.log[state.log.len().saturating_sub(8)..].join("\n")
    }

    /// Replaces what is below the root by what the power cut left.
    pub(crate) fn lose(&self, loss: Loss) {
        let state = self.state.lock().unwrap();
        if loss == Loss::Nothing {
            return;
        }
        let mut random = Random(match loss {
            Loss::Some(seed) => seed | 1,
            _ => 1,
        });
        let kept_changes = match loss {
            Loss::Everything => 0,
            Loss::Some(_) => random.below(state.names.len() + 1),
            _ => state.names.len(),
        };
        let mut names = state.durable.clone();
        state.names[..kept_changes].iter().for_each(|change| apply(&mut names, change));
        clear(&self.root);
        for (path, node) in &names {
            match node {
                Node::Directory => std::fs::create_dir(path).unwrap(),
                Node::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                Node::File(id) => {
                    std::fs::write(path, after_loss(&state.contents[*id], loss, &mut random)).unwrap();
                }
            }
        }
    }
}

/// Content of a file after a power cut.
fn after_loss(content: &Content, loss: Loss, random: &mut Random) -> Vec<u8> {
    let mut bytes = content.durable.clone();
    for change in &content.unsynced {
        match (change, loss) {
            (_, Loss::Everything | Loss::Content) => {}
            (Change::Resize(len), Loss::Some(_)) if random.below(2) == 0 => bytes.resize(*len, 0),
            (Change::Resize(_), Loss::Some(_)) => {}
            (Change::Resize(len), _) => bytes.resize(*len, 0),
            (Change::Write(offset, data), Loss::Some(_)) => {
                for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                    if random.below(2) == 0 {
                        write(&mut bytes, offset + number * SECTOR_BYTES, sector);
                    }
                }
            }
            (Change::Write(offset, data), _) => write(&mut bytes, *offset, &vec![0; data.len()]),
        }
    }
    bytes
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

fn scan(directory: &Path, state: &mut State) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let node = if metadata.is_dir() {
            scan(&path, state);
            Node::Directory
        } else if metadata.is_symlink() {
            Node::Link(std::fs::read_link(&path).unwrap())
        } else {
            let id = state.contents.len();
            state.contents.push(Content { durable: std::fs::read(&path).unwrap(), unsynced: Vec::new() });
            state.by_inode.insert(metadata.ino(), id);
            Node::File(id)
        };
        state.durable.insert(path, node);
    }
}

fn clear(root: &Path) {
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// Takes the names at and below `path` out of `names`.
fn take(names: &mut Names, path: &Path) -> Vec<(PathBuf, Node)> {
    let below: Vec<PathBuf> = names.keys().filter(|name| name.starts_with(path)).cloned().collect();
    let node = |name: PathBuf| names.remove(&name).map(|node| (name, node));
    below.into_iter().filter_map(node).collect()
}

fn put(names: &mut Names, taken: Vec<(PathBuf, Node)>, from: &Path, to: &Path) {
    for (name, node) in taken {
        let rest = name.strip_prefix(from).unwrap();
        let name = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
        names.insert(name, node);
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Set(path, node) => {
            names.insert(path.clone(), node.clone());
        }
        NameChange::Gone(path) => drop(names.remove(path)),
        NameChange::Rename(from, to) => {
            let taken = take(names, from);
            take(names, to);
            put(names, taken, from, to);
        }
        NameChange::Exchange(a, b) => {
            let (of_a, of_b) = (take(names, a), take(names, b));
            put(names, of_a, a, b);
            put(names, of_b, b, a);
        }
    }
}

impl State {
    fn changes(&mut self, inode: u64) -> &mut Vec<Change> {
        let id = self.by_inode[&inode];
        &mut self.contents[id].unsynced
    }

    fn sync_names(&mut self) {
        for change in std::mem::take(&mut self.names) {
            apply(&mut self.durable, &change);
        }
    }
}

impl Watch for Recorder {
    fn before(&self, step: Step<'_>) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        if state.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if let Some((_, Fault::Short)) = state.fault {
            state.interrupted = !state.interrupted;
            return if state.interrupted { Err(io::ErrorKind::Interrupted.into()) } else { Ok(1000) };
        }
        let number = state.steps;
        state.steps += 1;
        state.log.push(format!("{number}: {step:?}").chars().take(300).collect());
        match state.fault {
            Some((at, Fault::Once(code))) if at == number => return Err(io::Error::from_raw_os_error(code)),
            Some((at, Fault::From(code))) if at <= number && !matches!(step, Step::Read(..)) => {
                return Err(io::Error::from_raw_os_error(code));
            }
            _ => {}
        }
        if state.stop_at == Some(number) {
            state.is_off = true;
            return match step {
                Step::Write(_, _, bytes) if bytes.len() > 1 => Ok(bytes.len() / 2),
                _ => Err(io::Error::other("the power is off")),
            };
        }
        Ok(usize::MAX)
    }

    fn after(&self, step: Step<'_>) {
        let mut state = self.state.lock().unwrap();
        let own = |path: &Path| path.to_owned();
        match step {
            Step::Create(path) => {
                let inode = path.metadata().unwrap().ino();
                let mut now = state.durable.clone();
                state.names.iter().for_each(|change| apply(&mut now, change));
                if let Some(Node::File(id)) = now.get(path) {
                    let id = *id;
                    state.contents[id].unsynced.push(Change::Resize(0));
                } else {
                    let id = state.contents.len();
                    state.contents.push(Content::default());
                    state.by_inode.insert(inode, id);
                    state.names.push(NameChange::Set(own(path), Node::File(id)));
                }
            }
            Step::Write(file, offset, bytes) => {
                let change = Change::Write(offset as usize, bytes.to_vec());
                state.changes(file.inode().unwrap()).push(change);
            }
            Step::Resize(file, len) => {
                state.changes(file.inode().unwrap()).push(Change::Resize(len as usize));
            }
            Step::Sync(file) => {
                let id = state.by_inode[&file.inode().unwrap()];
                let content = &mut state.contents[id];
                for change in std::mem::take(&mut content.unsynced) {
                    match change {
                        Change::Write(offset, data) => write(&mut content.durable, offset, &data),
                        Change::Resize(len) => content.durable.resize(len, 0),
                    }
                }
            }
            Step::Rename(from, to) => state.names.push(NameChange::Rename(own(from), own(to))),
            Step::Exchange(a, b) => state.names.push(NameChange::Exchange(own(a), own(b))),
            Step::Remove(path) | Step::RemoveDirectory(path) => state.names.push(NameChange::Gone(own(path))),
            Step::MakeDirectory(path) => state.names.push(NameChange::Set(own(path), Node::Directory)),
            Step::Link(target, path) => state.names.push(NameChange::Set(own(path), Node::Link(own(target)))),
            Step::SyncDirectory(_) => state.sync_names(),
            Step::Read(..) => {}
        }
    }
}

/// A small generator of numbers, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end.max(1)
    }
}
