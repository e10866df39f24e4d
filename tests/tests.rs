//! Integration tests, one binary. What belongs where:
//!
//! - `maker`: makes small checkpoints of any kind, whole or broken. No tests.
//! - `conversion`: converts through the library. No tests.
//! - `hostile`: one broken checkpoint per error of the catalogue.
//! - `hostile_files`: files made to do harm: endless, explosive, with absurd numbers, with names that lead elsewhere.
//! - `gguf`: the fixture converted to GGUF, against llama.cpp's files.
//! - `requantize`: GGUF files converted to other types, against llama-quantize's files.
//! - `mlx`: the fixture converted to MLX, against mlx-lm's files.
//! - `rules`: tensors with types of their own, against llama-quantize and mlx-lm.
//! - `budget`: types chosen for a size.
//! - `sensitivity`: types chosen by what they cost the model on a text.
//! - `mixes`: what budgets choose from: every type of a family, for models here and on a hub.
//! - `refits`: budgets for GGUF files.
//! - `error_report`: what was written, measured against its source.
//! - `faults`: what a run leaves behind when it is stopped, fails, or meets another one.
//! - `damage`: bytes of an unfinished result that changed before it is gone on with.
//! - `witness`: a local source that changes, and what is stated about its files.
//! - `streaming`: conversions straight from a hub that misbehaves (crate `test-hub`).
//! - `crashes`: `kill -9` at many points of a streamed conversion.
//! - `recorder`: a disk that can lose power. No tests.
//! - `powercut`: a stop before every step that a run takes on the disk, and every step failing.
//! - `sources`: the same weights stored in other ways.
//! - `packed`: compressed-tensors, GPTQ and AWQ results, read by their definitions.
//! - `verify`: damage to finished results is found and named.
//! - `served`: runs the binary against a local hub. No tests.
//! - `fetch`: downloads whole repositories, with faults on the way.
//! - `snapshots`: the Hugging Face cache is held against the names of its blobs.
//! - `waits`: slow and silent servers: what is said, when it ends, how a stop is heard.
//! - `hostile_hub`: endless, absurd and lying answers of a hub; credentials stay secret.
//! - `checksums`: directories against the hub, records of downloads, caches and lists.
//! - `perplexity`: the forward pass on the fixtures, against transformers and llama-perplexity.
//! - `measured`: models measured straight from a hub.
//! - `deepseek2`: GGUF files of every other kind of that architecture, against llama.cpp.
//! - `deepseek_v2`: GGUF files of DeepSeek-V2, against transformers and llama.cpp.
//! - `merged`: GGUF files with gate and up projection of the experts in one tensor.
//! - `predictor`: GGUF files with a prediction layer, against the checkpoint that has it.
//! - `grouped_query`: GGUF files of families with grouped-query attention, against transformers and llama.cpp.
//! - `families`: checkpoints of the same families, against transformers and the converter's files.
//! - `family_goldens`: two checkpoints of each of many families, against whole files of llama.cpp and mlx-lm.
//! - `family_settings`: settings of families with experts that a consumer does not have, or that nobody computes.
//! - `variants`: the same with what few files of a family have.
//! - `economy`: what a measurement reads and how much memory it takes.
//! - `results`: finished GGUF and MLX results, read back and measured.
//! - `comparison`: two models side by side.
//! - `diff`: two models tensor by tensor.
//! - `destinations`: where results go: what may be replaced, and what they stay away from.
//! - `arguments`: options, MODEL and numbers that make no sense are errors before any work.
//! - `console`: what leaves to terminals and pipes: nothing unsafe, nothing endless, and no panic.
//! - `shares`: one result of several shares, whatever happens to them.
//! - `share_edges`: what shares keep is damaged, they race, and their source is of another kind.
//! - `share_hub`: shares of a model on a hub.
//! - `share_processes`: shares as processes, at once and killed.
//! - `share_losses`: shares and the join, stopped before every step they take on the disk.
//! - `bucket`: a small object store with faults. No tests.
//! - `stores`: models in object stores.
//! - `cluster`: variables of schedulers, and the files in `examples/cluster`.
//! - `xet`: Xet storage instead of plain ranges, with faults.
//! - `formats`: values of `--to`: their list, the help that sums it up, what a typo is told.
//! - `unnamed`: conversions without `-o`, and those that are only shown.
//! - `texts`: several texts, standard input, parts of texts.
//! - `reference`: what the program says of itself: docs, completions, manual pages, families.
//! - `cards`: model cards of results.
//! - `logs`: what is tried again, on stderr with -v and in the file of --log.
//! - `pages`: reports of conversions and measurements, as HTML.
//! - `command`: the command line as scripts see it: exit codes, streams, JSON keys.

#[cfg(test)]
mod arguments;
#[cfg(test)]
mod bucket;
#[cfg(test)]
mod budget;
#[cfg(test)]
mod calibrate;
#[cfg(test)]
mod cards;
#[cfg(test)]
mod checksums;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod command;
#[cfg(test)]
mod comparison;
#[cfg(test)]
mod console;
#[cfg(test)]
mod conversion;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod deepseek2;
#[cfg(test)]
mod deepseek_v2;
#[cfg(test)]
mod destinations;
#[cfg(test)]
mod diff;
#[cfg(test)]
mod economy;
#[cfg(test)]
mod error_report;
#[cfg(test)]
mod families;
#[cfg(test)]
mod family_goldens;
#[cfg(test)]
mod family_refusals;
#[cfg(test)]
mod family_settings;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod feedback;
#[cfg(test)]
mod fetch;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod gguf;
#[cfg(test)]
mod grouped_query;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hostile_files;
#[cfg(test)]
mod hostile_hub;
#[cfg(test)]
mod imatrix;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod maker;
#[cfg(test)]
mod measured;
#[cfg(test)]
mod merged;
#[cfg(test)]
mod mixes;
#[cfg(test)]
mod mlx;
#[cfg(test)]
mod packed;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod perplexity;
#[cfg(test)]
mod powercut;
#[cfg(test)]
mod predictor;
#[cfg(test)]
mod recorder;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod refits;
#[cfg(test)]
mod requantize;
#[cfg(test)]
mod results;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod sensitivity;
#[cfg(test)]
mod served;
#[cfg(test)]
mod share_edges;
#[cfg(test)]
mod share_hub;
#[cfg(test)]
mod share_losses;
#[cfg(test)]
mod share_processes;
#[cfg(test)]
mod shares;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod sources;
#[cfg(test)]
mod stores;
#[cfg(test)]
mod streaming;
#[cfg(test)]
mod texts;
#[cfg(test)]
mod unnamed;
#[cfg(test)]
mod variants;
#[cfg(test)]
mod verify;
#[cfg(test)]
mod waits;
#[cfg(test)]
mod witness;
#[cfg(test)]
mod xet;
