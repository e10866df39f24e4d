//! Importance matrices: sums of the squares of what each weight is multiplied with, over a text.
//!
//! Every weight is read once, and all tokens of the text go through a layer together, so a model of any size is
//! calibrated in the memory that `perplexity` takes, plus the sums themselves.
//!
//! Source: llama.cpp `tools/imatrix/imatrix.cpp`. It leaves out batches of fewer than 16 tokens; here all tokens of all
//! windows count.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Request, check, room};
use crate::checkpoint::{Watched, Watcher, Watching, WeightStore};
use crate::error::Result;
use crate::family::{Ecosystem, Family, LayerRole, Place, Role, Spec};
use crate::imatrix::{Collected, Sums};
use crate::model::{self, Observer};

/// Collects over the windows of `request`, whose original is not looked at. `family` is the model's: entries have the
/// names that tensors have in GGUF files. With `output` the head is among them.
///
/// # Errors
/// As [`super::measure`].
pub fn importance(
    request: &Request,
    family: &Family,
    output: bool,
    observer: &mut dyn Observer,
) -> Result<Collected> {
    check(request)?;
    let storage = room::find(request)?;
    let Request { model, windows, .. } = *request;
    let collector = Collector::new(family, model);
    let watching = Watching { store: model, watcher: &collector };
    let hidden = model::forward(&watching, &windows.tokens, windows.context, &storage, observer)?;
    if output {
        model::watch_output(&watching, &hidden)?;
    }
    Ok(Collected { chunk_size: windows.context as u32, ..collector.finish() })
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
