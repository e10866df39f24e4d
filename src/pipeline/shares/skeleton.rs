//! What `join` needs to know of a plan, so that it needs neither the source nor the network: the files of the result with
//! their headers, its tensors, what each job writes, and what the manifest says beside digests.

use std::path::Path;

use requant_formats::{codec, layout};
use serde::{Deserialize, Serialize};

use super::folder::{Agreement, write_new};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::inside;
use crate::pipeline::execute::Written;
use crate::pipeline::manifest::About;
use crate::plan::{Blueprint, OutputFile, OutputTensor, Placement, Rounding, Sidecar};
use crate::small::{self, shown};

/// Most JSON values of a plan: a tensor has about ten, a job seven.
const MAX_VALUES: u64 = 40_000_000;

/// A plan without its source.
#[derive(Clone)]
pub(super) struct Skeleton {
    pub(super) about: About,
    /// Whether shares find out the digests of the source's files.
    pub(super) is_witnessed: bool,
    pub(super) blueprint: Blueprint,
    /// What each job writes.
    pub(super) written: Vec<Written>,
    /// Bytes of weights that each job reads.
    pub(super) bytes_in: Vec<u64>,
    /// Which share does each job, from 0.
    pub(super) share_of: Vec<u32>,
}

/// As it is written; headers, small files and tensors that follow from headers are in a file of their own.
#[derive(Serialize, Deserialize)]
struct Text {
    about: About,
    is_witnessed: bool,
    is_directory: bool,
    /// Name, length, length of the header.
    files: Vec<(String, u64, u64)>,
    /// Name, length.
    sidecars: Vec<(String, u64)>,
    tensors: Vec<Tensor>,
    jobs: Vec<(Written, u64, u32)>,
}

#[derive(Serialize, Deserialize)]
struct Tensor {
    names: Vec<String>,
    shape: Vec<usize>,
    type_name: String,
    codec: String,
    layout: String,
    /// File, offset, length.
    placements: Vec<(usize, u64, u64)>,
    /// Length of what follows from headers alone.
    #[serde(default)]
    content: Option<u64>,
}

impl Skeleton {
    pub(super) fn new(
        about: About,
        is_witnessed: bool,
        blueprint: &Blueprint,
        written: Vec<Written>,
        bytes_in: Vec<u64>,
        share_of: Vec<u32>,
    ) -> Self {
        Self { about, is_witnessed, blueprint: blueprint.clone(), written, bytes_in, share_of }
    }

    /// Writes it into `directory`; gives the fingerprints of what was written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, disk: &Disk, directory: &Path) -> Result<String> {
        let Self { about, blueprint, .. } = self;
        let tensors = blueprint.tensors.iter().map(|tensor| Tensor {
            names: tensor.names.clone(),
            shape: tensor.shape.clone(),
            type_name: tensor.type_name.clone(),
            codec: tensor.codec.name().to_owned(),
            layout: tensor.layout.name().to_owned(),
            placements: tensor
                .placements
                .iter()
                .map(|place| (place.file, place.offset_bytes, place.len_bytes))
                .collect(),
            content: tensor.content.as_ref().map(|content| content.len() as u64),
        });
        let files = blueprint.files.iter();
        let sidecars = blueprint.sidecars.iter();
        let jobs = self.written.iter().zip(&self.bytes_in).zip(&self.share_of);
        let text = Text {
            about: about.clone(),
            is_witnessed: self.is_witnessed,
            is_directory: blueprint.is_directory,
            files: files
                .clone()
                .map(|file| (file.name.clone(), file.len_bytes, file.header.len() as u64))
                .collect(),
            sidecars: sidecars
                .clone()
                .map(|sidecar| (sidecar.name.clone(), sidecar.bytes.len() as u64))
                .collect(),
            tensors: tensors.collect(),
            jobs: jobs.map(|((written, &bytes), &share)| (written.clone(), bytes, share)).collect(),
        };
        let path = directory.join("skeleton.json");
        let text = serde_json::to_vec(&text).map_err(|error| Error::io(&path, "encode")(error.into()))?;
        write_new(disk, &path, &text)?;
        let contents = files.map(|file| &file.header).chain(sidecars.map(|sidecar| &sidecar.bytes));
        let contents = contents.chain(blueprint.tensors.iter().filter_map(|tensor| tensor.content.as_ref()));
        let content = contents.flatten().copied().collect::<Vec<u8>>();
        write_new(disk, &directory.join("content"), &content)?;
        Ok(fingerprints(&text, &content))
    }

    /// Reads what is in `directory`, if that is what was `agreed` on: whatever is wrong in it would be wrong in the result,
    /// and in its manifest in the same way.
    ///
    /// # Errors
    /// When it cannot be read, is not what was written, or makes no sense.
    pub(super) fn read(directory: &Path, agreed: &Agreement) -> Result<Self> {
        let path = directory.join("skeleton.json");
        let bytes = small::read(&path, small::SHARE_PLAN)?;
        let content = small::read(&directory.join("content"), small::SHARE_PLAN)?;
        let senseless = |what: String| Error::checkpoint(path.display().to_string(), what);
        let damaged = || {
            senseless(format!(
                "it, or a file beside it, is not what was written: damaged since. Remove {} and run any share again, which \
                 writes it anew; what the shares have done stays done",
                directory.display()
            ))
        };
        if fingerprints(&bytes, &content) != agreed.skeleton {
            return Err(damaged());
        }
        small::check_json_up_to(&path.display().to_string(), &bytes, MAX_VALUES)?;
        let text: Text = serde_json::from_slice(&bytes)
            .map_err(|error| senseless(format!("not the plan of shares: {error}")))?;
        let mut rest = content.as_slice();
        let mut next = |len: u64| {
            let split = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
            let (bytes, left) =
                split.ok_or_else(|| senseless("the file content beside it is shorter".into()))?;
            rest = left;
            Ok::<_, Error>(bytes.to_vec())
        };
        let mut files = Vec::new();
        for (name, len_bytes, header) in text.files {
            files.push(OutputFile { name, len_bytes, header: next(header)? });
        }
        let mut sidecars = Vec::new();
        for (name, len) in text.sidecars {
            sidecars.push(Sidecar { name, bytes: next(len)? });
        }
        let tensors = text.tensors.into_iter().map(|tensor| {
            let codec = codec::find(&tensor.codec);
            let layout = layout::find(&tensor.layout);
            let (Some(codec), Some(layout)) = (codec, layout) else {
                return Err(senseless(format!("unknown type {} in {}", tensor.codec, tensor.layout)));
            };
            let placements = tensor.placements.into_iter();
            Ok(OutputTensor {
                names: tensor.names,
                shape: tensor.shape,
                type_name: tensor.type_name,
                codec,
                layout,
                rounding: Rounding::Exact,
                pieces: Vec::new(),
                scale_sources: Vec::new(),
                content: tensor.content.map(&mut next).transpose()?,
                placements: placements
                    .map(|(file, offset_bytes, len_bytes)| Placement { file, offset_bytes, len_bytes })
                    .collect(),
                rule: None,
                importance: None,
                is_weight: true,
            })
        });
        let blueprint = Blueprint {
            is_directory: text.is_directory,
            tensors: tensors.collect::<Result<_>>()?,
            files,
            sidecars,
            dropped: Vec::new(),
            kept: Vec::new(),
        };
        let mut skeleton =
            Self::new(text.about, text.is_witnessed, &blueprint, Vec::new(), Vec::new(), Vec::new());
        for (written, bytes, share) in text.jobs {
            skeleton.written.push(written);
            skeleton.bytes_in.push(bytes);
            skeleton.share_of.push(share);
        }
        if !agreed.is_dealt_as(&skeleton.share_of) {
            return Err(damaged());
        }
        skeleton.check().map_err(senseless)?;
        Ok(skeleton)
    }

    /// What no plan has: whoever followed it would write to other files, or beyond their ends.
    fn check(&self) -> std::result::Result<(), String> {
        let Self { blueprint, written, .. } = self;
        let files = blueprint.files.iter().map(|file| &file.name);
        let names = files.chain(blueprint.sidecars.iter().map(|sidecar| &sidecar.name));
        let is_lone = !blueprint.is_directory && blueprint.files.len() == 1;
        for name in names {
            if !(inside::is_below(name) || is_lone && name.is_empty()) {
                return Err(format!(
                    "file {}: expected a name below the directory of the result",
                    shown(name)
                ));
            }
        }
        for file in &blueprint.files {
            if file.header.len() as u64 > file.len_bytes {
                return Err(format!("file {}: its header is longer than it", shown(&file.name)));
            }
        }
        for tensor in &blueprint.tensors {
            let named = |what: &str| format!("tensor {}: {what}", shown(&tensor.type_name));
            let elems = tensor.shape.iter().try_fold(1usize, |elems, &len| elems.checked_mul(len));
            if elems.is_none() || tensor.names.is_empty() {
                return Err(named("its shape or names make no sense"));
            }
            let stored = tensor.stored().map_err(|error| error.to_string())?;
            let is_whole = stored.len() == tensor.placements.len() && stored.len() == tensor.names.len();
            let is_in_file = tensor.placements.iter().all(|place| {
                let end = place.offset_bytes.checked_add(place.len_bytes);
                let file = blueprint.files.get(place.file);
                end.zip(file).is_some_and(|(end, file)| end <= file.len_bytes)
            });
            if !is_whole || !is_in_file {
                return Err(named("lies beyond the end of its file"));
            }
            if let Some(content) = &tensor.content
                && tensor.placements.iter().any(|place| place.len_bytes != content.len() as u64)
            {
                return Err(named("is not as long as its place"));
            }
            let mut runs = tensor.runs(0..tensor.matrix(1.0).rows());
            let is_in_place = runs.all(|(place, runs)| {
                let last = (runs.count as u64).saturating_sub(1).saturating_mul(runs.stride_bytes);
                let end = runs.offset_bytes.saturating_add(last).saturating_add(runs.run_bytes as u64);
                runs.count == 0 || end <= place.len_bytes
            });
            if !is_in_place {
                return Err(named("is longer than its place"));
            }
        }
        for job in written {
            let tensor = blueprint.tensors.get(job.tensor);
            if !tensor.is_some_and(|tensor| job.fits(tensor)) {
                return Err(format!("a job writes rows {:?} of tensor number {}", job.rows, job.tensor));
            }
        }
        Ok(())
    }
}

fn fingerprints(text: &[u8], content: &[u8]) -> String {
    format!("{:032x}{:032x}", Fingerprint::of(0, text), Fingerprint::of(0, content))
}
