//! Importance matrices: sums of the squares of what each weight is multiplied with, over a text.
//!
//! Every weight is read once, and all tokens of the text go through a layer together, so a model of any size is
//! calibrated in the memory that `perplexity` takes, plus the sums themselves. Behind every layer states and sums are kept on
//! the disk, so that a run that was stopped goes on there.
//!
//! Source: llama.cpp `tools/imatrix/imatrix.cpp`. It leaves out batches of fewer than 16 tokens; here all tokens of all
//! windows count.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Request, check, room};
use crate::checkpoint::{Watched, Watcher, Watching, WeightStore};
use crate::error::{Error, Result};
use crate::family::{Ecosystem, Family, LayerRole, Place, Role, Spec};
use crate::imatrix::{Collected, Sums};
use crate::model::{self, Observer, Saved, Stopped, Storage, There, Walk};

/// Collects over the windows of `request`, whose original is not looked at. `family` is the model's: entries have the
/// names that tensors have in GGUF files. With `output` the head is among them. How far it has come is kept behind every
/// layer.
///
/// # Errors
/// As [`super::measure`].
pub fn importance(
    request: &Request,
    family: &Family,
    output: bool,
    way: Way,
    observer: &mut dyn Observer,
) -> Result<Collected> {
    check(request)?;
    let Request { model, windows, .. } = *request;
    let Way { saved, stopped, storage } = way;
    let mut collector = Collector::new(family, model);
    let first = stopped.as_ref().map_or(0, |stopped| stopped.layers);
    let states = match stopped {
        None => None,
        Some(stopped) => {
            collector.take_in(&stopped.own).ok_or_else(|| {
                let message = format!("{}: not of this model; remove it", saved.path().display());
                Error::Request(message)
            })?;
            stopped.states.into_iter().next()
        }
    };
    let watching = Watching { store: model, watcher: &collector };
    let mut walk = match states {
        Some(states) => Walk::resume(&watching, windows.tokens.len(), windows.context, first, states)?,
        None => Walk::new(&watching, &windows.tokens, windows.context, &storage)?,
    };
    let layers = model.spec().layers;
    for layer in first..layers {
        let choices = walk.step()?;
        saved.write(layer + 1, &[walk.hidden()], &collector.to_bytes())?;
        observer.layer(layer, layers, choices.as_deref());
    }
    if output {
        model::watch_output(&watching, &walk.finish())?;
    }
    Ok(Collected { chunk_size: windows.context as u32, ..collector.finish() })
}

/// How far a collection has come, and where that is kept.
pub struct Way {
    saved: Saved,
    stopped: Option<Stopped>,
    storage: Storage,
}

impl Way {
    /// That of the collection that `request` and `saved` speak of.
    ///
    /// # Errors
    /// When memory will not do, when what was kept cannot be read, or when it is another request's.
    pub fn find(request: &Request, saved: Saved) -> Result<Self> {
        check(request)?;
        let storage = room::find(request)?;
        let stopped = match saved.read(&storage)? {
            There::Nothing => None,
            There::Walk(stopped) => Some(stopped),
            There::Other(other) => {
                let difference = saved.difference(&other);
                return Err(Error::Request(format!(
                    "{}: an unfinished run of another request is there: {difference}. Repeat that command to finish it, or \
                     add --restart to throw its work away",
                    saved.path().display()
                )));
            }
        };
        Ok(Self { saved, stopped, storage })
    }

    /// Layers that are done.
    pub fn layers(&self) -> usize {
        self.stopped.as_ref().map_or(0, |stopped| stopped.layers)
    }
}

/// Where the sums of an input go.
#[derive(Debug, Clone)]
struct Slot {
    /// Position in [`Collector::entries`].
    entry: usize,
    columns: Range<usize>,
    /// Which of the counts.
    count: usize,
    /// Whether the rows are counted: those of the first head stand for all.
    counts: bool,
}

/// Adds up by the names of GGUF tensors.
struct Collector {
    slots: HashMap<Watched, Slot>,
    names: Vec<String>,
    entries: Mutex<Vec<Option<Sums>>>,
    /// Columns and counts of each entry.
    sizes: Vec<(usize, usize)>,
}

impl Collector {
    fn new(family: &Family, model: &dyn WeightStore) -> Self {
        let mut collector =
            Self { slots: HashMap::new(), names: Vec::new(), entries: Mutex::default(), sizes: Vec::new() };
        for tensor in family.tensors(model.spec()) {
            if !is_collected(tensor.role, model.spec()) {
                continue;
            }
            let Some(place) = tensor.places(Ecosystem::Gguf).first() else { continue };
            let cols = tensor.shape.last().copied().unwrap_or(1);
            collector.add(tensor.role, place, cols);
        }
        let entries = collector.names.iter().map(|_| None).collect();
        collector.entries = Mutex::new(entries);
        collector
    }

    fn entry(&mut self, name: &str, columns: usize, counts: usize) -> usize {
        let known = self.names.iter().rposition(|known| known == name);
        known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.sizes.push((columns, counts));
            self.names.len() - 1
        })
    }

    fn add(&mut self, role: Role, place: &Place, cols: usize) {
        match place {
            Place::Whole(name) | Place::Raised(name) | Place::HeadsInterleaved { name, .. } => {
                let entry = self.entry(name, cols, 1);
                self.put(Watched::Weight(role), Slot { entry, columns: 0..cols, count: 0, counts: true });
            }
            // Matrices side by side have one input.
            Place::Rows { name, first, .. } => {
                let entry = self.entry(name, cols, 1);
                if *first == 0 {
                    self.put(Watched::Weight(role), Slot { entry, columns: 0..cols, count: 0, counts: true });
                }
            }
            Place::Stacked { name, number, count, first, .. } => {
                let entry = self.entry(name, cols * count, *count);
                if *first == 0 {
                    let columns = number * cols..(number + 1) * cols;
                    self.put(Watched::Weight(role), Slot { entry, columns, count: *number, counts: true });
                }
            }
            Place::SplitTransposed { keys, values, heads, key_rows, .. } => {
                let Role::Layer(layer, _) = role else { return };
                for (name, width, watched) in [
                    (keys, *key_rows, Watched::KeyHead as fn(usize, usize) -> Watched),
                    (values, cols, Watched::ValueHead),
                ] {
                    let entry = self.entry(name, heads * width, 1);
                    for head in 0..*heads {
                        let columns = head * width..(head + 1) * width;
                        self.put(watched(layer, head), Slot { entry, columns, count: 0, counts: head == 0 });
                    }
                }
            }
        }
    }

    fn put(&mut self, watched: Watched, slot: Slot) {
        self.slots.insert(watched, slot);
    }

    /// What was collected so far: for each entry whether there is one, its sums as f32 and its counts as u64, little-endian.
    fn to_bytes(&self) -> Vec<u8> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::new();
        for entry in &*entries {
            bytes.push(u8::from(entry.is_some()));
            if let Some(Sums { sums, counts }) = entry {
                bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
                bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
            }
        }
        bytes
    }

    /// Goes on with what [`Collector::to_bytes`] gave; `None` when it is another collector's.
    fn take_in(&mut self, mut bytes: &[u8]) -> Option<()> {
        let entries = self.entries.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (entry, &(cols, counts)) in entries.iter_mut().zip(&self.sizes) {
            let (is_there, rest) = bytes.split_first()?;
            bytes = rest;
            if *is_there == 0 {
                continue;
            }
            let (of_sums, rest) = bytes.split_at_checked(cols * size_of::<f32>())?;
            let (of_counts, rest) = rest.split_at_checked(counts * size_of::<u64>())?;
            bytes = rest;
            let sums = of_sums.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let counts = of_counts.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            *entry = Some(Sums { sums, counts });
        }
        bytes.is_empty().then_some(())
    }

    fn finish(self) -> Collected {
        let entries = self.entries.into_inner().unwrap_or_else(PoisonError::into_inner);
        let seen = self.names.into_iter().zip(entries).filter_map(|(name, entry)| Some((name, entry?)));
        Collected { entries: seen.collect(), ..Collected::default() }
    }
}

impl Watcher for Collector {
    fn saw(&self, watched: Watched, sums: &[f64], rows: usize) {
        let Some(Slot { entry, columns, count, counts }) = self.slots.get(&watched).cloned() else { return };
        let (cols, count_len) = self.sizes[entry];
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry =
            entries[entry].get_or_insert_with(|| Sums { sums: vec![0.0; cols], counts: vec![0; count_len] });
        for (sum, &more) in entry.sums[columns].iter_mut().zip(sums) {
            *sum = (f64::from(*sum) + more) as f32;
        }
        if counts {
            entry.counts[count] += rows as u64;
        }
    }
}

/// Matrices of layers, and the head; what looks tokens up is multiplied with nothing.
fn is_collected(role: Role, spec: &Spec) -> bool {
    match role {
        Role::Output => true,
        Role::Layer(layer, own) => {
            let is_router = matches!(own, LayerRole::Router | LayerRole::SharedGate);
            layer < spec.layers && (own.is_linear() || is_router)
        }
        _ => false,
    }
}
