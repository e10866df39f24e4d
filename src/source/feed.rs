//! A streamed source whose order of reading is known: each file is brought before it is read, and goes when
//! nothing later reads it.
//!
//! The order is a list of visits: byte ranges that are read at the same time. A thread walks ahead of the
//! reader and brings files, verified, as long as there is room. When the reader waits for a file and there is
//! none, the file goes whose next use is furthest away, and comes again for it. Small ranges (norms, scales)
//! of a file that goes are kept in memory until their last use, so that no file stays or comes again for them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::feed_state::{Order, State, Wanted};
use super::{Extent, Source, SourceFile, Streamed, Supply};
use crate::error::{Error, Result};

/// How long a wait sleeps before it asks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// A [`Streamed`] source that looks after its files itself.
pub struct Feed {
    streamed: Streamed,
    stop: Arc<AtomicBool>,
    order: OnceLock<Order>,
    state: Mutex<State>,
    changed: Condvar,
    /// The work is done: what is still on its way is not needed.
    halt: AtomicBool,
}

/// A file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// The file.
    pub name: &'a str,
    /// Its length.
    pub bytes: u64,
    /// Files that have come so far, this one included.
    pub number: usize,
    /// Files that are needed.
    pub files: usize,
    /// It had come before, and had to go for others.
    pub is_again: bool,
    /// Bytes of files in the spool, this one included.
    pub held_bytes: u64,
}

impl Feed {
    /// Wraps `streamed`, which has a spool. `stop` ends everything.
    pub fn new(streamed: Streamed, stop: Arc<AtomicBool>) -> Self {
        let (order, state, changed) = (OnceLock::new(), Mutex::default(), Condvar::new());
        Self { streamed, stop, order, state, changed, halt: AtomicBool::new(false) }
    }

    /// Says in which order the weights will be read, visit after visit; once. Until then only headers and
    /// small files can be read, and from then on only what is in a visit. A reader may leave visits out, and
    /// may begin again.
    ///
    /// # Errors
    /// When the spool cannot hold the files of one visit.
    pub fn follow(&self, visits: Vec<Vec<Extent>>) -> Result<()> {
        let order = Order::new(visits);
        let least = order.least_room(|file| self.streamed.room_bytes(file));
        let limit = self.streamed.limit_bytes();
        if least > limit {
            return Err(Error::Request(format!(
                "--spool-limit: {limit} bytes; tensors that are read together, and the largest shard, need {least}"
            )));
        }
        // Set once by contract; a second order would be the same.
        let _ = self.order.set(order);
        Ok(())
    }

    /// Bytes of files that will be downloaded, if each comes once.
    pub fn download_bytes(&self) -> u64 {
        let files = self.order.get().map(Order::files).into_iter().flatten();
        files.map(|file| self.streamed.room_bytes(file)).sum()
    }

    /// Runs `work`, which reads the weights, while files come and go; then removes the spool.
    ///
    /// # Errors
    /// Those of `work`, or what kept a file from coming.
    pub fn run<T>(&self, on_file: &(dyn Fn(Arrival) + Sync), work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = std::thread::scope(|scope| {
            let _closing = Closing(self);
            scope.spawn(|| {
                if let Err(error) = self.intake(on_file) {
                    let mut state = self.lock();
                    state.failure.get_or_insert(error);
                    state.closed = true;
                    self.changed.notify_all();
                }
            });
            work()
        });
        let (present, failure) = {
            let mut state = self.lock();
            (state.take_present(), state.failure.take())
        };
        let released = present.into_iter().try_for_each(|file| self.streamed.release(file));
        let cleaned = released.and_then(|()| self.streamed.finish());
        match (result, failure) {
            (Err(Error::Interrupted), Some(failure)) => Err(failure),
            (Err(error), _) => Err(error),
            (Ok(value), _) => cleaned.map(|()| value),
        }
    }

    /// Brings files until the work is done.
    fn intake(&self, on_file: &(dyn Fn(Arrival) + Sync)) -> Result<()> {
        let Some(order) = self.order.get() else { return Ok(()) };
        let files = order.files().count();
        let mut came = BTreeSet::new();
        while let Some(file) = self.next_file(order)? {
            self.streamed.bring(file, &self.halt, &|_| {})?;
            let held_bytes = {
                let mut state = self.lock();
                state.arrived(file);
                self.changed.notify_all();
                state.held_bytes
            };
            let is_again = !came.insert(file);
            let SourceFile { name, len_bytes, .. } = &self.files()[file];
            on_file(Arrival { name, bytes: *len_bytes, number: came.len(), files, is_again, held_bytes });
        }
        Ok(())
    }

    /// Waits until a file is wanted and makes room for it; `None` once the work is done.
    fn next_file(&self, order: &Order) -> Result<Option<usize>> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if state.closed {
                return Ok(None);
            }
            while let Some(file) = state.useless(order) {
                self.release(order, &mut state, file)?;
            }
            if let Some(wanted) = state.wanted(order)
                && self.make_room(order, &mut state, wanted)?
            {
                return Ok(Some(wanted.file));
            }
            state = self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes room for a file, if there is some or the reader waits for it.
    fn make_room(&self, order: &Order, state: &mut State, wanted: Wanted) -> Result<bool> {
        let room = self.streamed.room_bytes(wanted.file);
        while state.held_bytes > 0 && state.held_bytes + room > self.streamed.limit_bytes() {
            match state.least_wanted(order).filter(|_| wanted.is_urgent) {
                Some(file) => self.release(order, state, file)?,
                None => return Ok(false),
            }
        }
        state.expect(wanted.file, room);
        Ok(true)
    }

    /// Lets go of a file; what is small and still needed stays in memory.
    fn release(&self, order: &Order, state: &mut State, file: usize) -> Result<()> {
        for range in state.to_keep(order, file) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.streamed.read_at(file, range.start, &mut bytes)?;
            state.keep(file, range.start, bytes);
        }
        self.streamed.release(file)?;
        state.gone(order, file);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from a file that comes and goes.
    fn read_fed(&self, order: &Order, file: usize, range: Range<u64>, buf: &mut [u8]) -> Result<()> {
        let Some(extent) = order.find(file, &range) else {
            let place = format!("{}: {}", self.location(), self.files()[file].name);
            let message = format!("bytes {} to {} are not among those to be read", range.start, range.end);
            return Err(Error::hub(place, message));
        };
        let mut state = self.lock();
        if state.enter(extent) {
            self.changed.notify_all();
        }
        loop {
            if state.closed || self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if state.read_kept(file, extent.start_bytes, range.start, buf) {
                return Ok(());
            }
            if state.begin_reading(file) {
                break;
            }
            state = self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let read = self.streamed.read_at(file, range.start, buf);
        self.lock().end_reading(file);
        read
    }
}

/// Ends the intake when the work is done, or has panicked.
struct Closing<'a>(&'a Feed);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.halt.store(true, Ordering::Relaxed);
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Source for Feed {
    fn location(&self) -> String {
        self.streamed.location()
    }

    fn model_name(&self) -> String {
        self.streamed.model_name()
    }

    fn files(&self) -> &[SourceFile] {
        self.streamed.files()
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        match self.order.get() {
            None => self.streamed.read_at(file, offset_bytes, buf),
            Some(order) => self.read_fed(order, file, offset_bytes..offset_bytes + buf.len() as u64, buf),
        }
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.streamed.read_small(name)
    }

    fn is_at_hand(&self) -> bool {
        self.streamed.is_at_hand()
    }

    fn reread(&self, file: usize) -> Result<bool> {
        self.streamed.reread(file)
    }
}
