//! What a result is called without `-o`: as llama.cpp and mlx-lm's users name theirs, after the model and the format.
//!
//! `V3-0324-Q4_K_M.gguf` for a file, `V3-0324-mlx-4bit` for a directory, in the current directory.

use std::path::{Path, PathBuf};

use requant_formats::container::gguf::split;

use crate::error::{Error, Result};
use crate::opened;
use crate::plan::{self, Target};

/// The path of a result of the format `to` that is made of `model`.
///
/// # Errors
/// When the format is not known, or the model has no name that could be used.
pub(super) fn path(model: &Path, to: &str) -> Result<PathBuf> {
    let (target, format) = plan::find_format(to)?;
    let Some(name) = name(model) else {
        return Err(Error::Usage(format!(
            "{}: gives no name for the result; say what it is called, with -o PATH",
            model.display()
        )));
    };
    Ok(match target.is_directory() {
        true => format!("{name}-{}", format.name).into(),
        false => format!("{}-{}.gguf", without_type(target, &name), format.name.to_uppercase()).into(),
    })
}

/// What the model is called.
fn name(model: &Path) -> Option<String> {
    let text = model.to_str()?;
    if opened::is_gguf(model) {
        let file = model.file_name()?.to_str()?;
        let stem = file.strip_suffix(".gguf")?;
        let of_set = split::siblings(file).and_then(|_| stem.rsplit_once("-of-")?.0.rsplit_once('-'));
        return usable(of_set.map_or(stem, |(prefix, _)| prefix));
    }
    if !model.is_dir() {
        // A repository, or a folder in an object store.
        let id = text.split_once("://").map_or(text, |(_, rest)| rest);
        let id = if text.starts_with("hf://") || id == text { id.split('@').next()? } else { id };
        return usable(id.trim_end_matches('/').rsplit('/').next()?);
    }
    let directory = model.canonicalize().ok()?;
    usable(of_snapshot(&directory).or_else(|| directory.file_name()?.to_str())?)
}

/// The repository whose snapshot in the Hugging Face cache this is: `models--org--name/snapshots/COMMIT`.
fn of_snapshot(directory: &Path) -> Option<&str> {
    let snapshots = directory.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    folder.strip_prefix("models--")?.rsplit("--").next()
}

fn usable(name: &str) -> Option<String> {
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

/// A name without the type at its end: `model-F16`, `model.Q8_0`.
fn without_type<'a>(target: &dyn Target, name: &'a str) -> &'a str {
    let is_type = |end: &str| target.formats().iter().any(|format| format.name.eq_ignore_ascii_case(end));
    match name.rsplit_once(['-', '.']) {
        Some((before, end)) if !before.is_empty() && is_type(end) => before,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_called_after_the_model_and_the_format() {
        for (model, to, name) in [
            ("deepseek-ai/V3-0324", "q4_k_m", "V3-0324-Q4_K_M.gguf"),
            ("deepseek-ai/V3-0324@main", "Q4_K_M", "V3-0324-Q4_K_M.gguf"),
            ("hf://deepseek-ai/V3-0324@refs/pr/1", "mlx-4bit", "V3-0324-mlx-4bit"),
            ("deepseek-ai/V3-0324", "MLX-4bit", "V3-0324-mlx-4bit"),
            ("deepseek-ai/V3-0324", "compressed-tensors-w4a16", "V3-0324-compressed-tensors-w4a16"),
            ("gpt2", "iq4_xs", "gpt2-IQ4_XS.gguf"),
            ("s3://bucket/models/V3", "gptq-4bit-128g", "V3-gptq-4bit-128g"),
            ("s3://bucket/", "q8_0", "bucket-Q8_0.gguf"),
            ("gs://bucket/a@b", "q8_0", "a@b-Q8_0.gguf"),
            ("there/V3-F16.gguf", "q4_k_m", "V3-Q4_K_M.gguf"),
            ("V3.q8_0.gguf", "q4_k_m", "V3-Q4_K_M.gguf"),
            ("V3-BF16-00001-of-00003.gguf", "q4_k_m", "V3-Q4_K_M.gguf"),
            ("V3-00002-of-00003.gguf", "q4_0", "V3-Q4_0.gguf"),
            ("V3-F16-of-x.gguf", "q4_0", "V3-F16-of-x-Q4_0.gguf"),
            ("F16.gguf", "q4_0", "F16-Q4_0.gguf"),
            ("-F16.gguf", "q4_0", "-F16-Q4_0.gguf"),
        ] {
            assert_eq!(path(Path::new(model), to).unwrap(), Path::new(name), "{model}");
        }
    }

    #[test]
    fn a_directory_is_called_by_its_own_name() {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("V3");
        let snapshot = directory.path().join("models--org--V3.1/snapshots/0123abcd");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(&model).unwrap();
        for written in [model.clone(), model.join(""), model.join("."), snapshot.join("../../../V3")] {
            assert_eq!(path(&written, "q4_0").unwrap(), Path::new("V3-Q4_0.gguf"), "{}", written.display());
        }
        assert_eq!(path(&snapshot, "mlx-4bit").unwrap(), Path::new("V3.1-mlx-4bit"));
        let nameless = path(Path::new("/"), "q4_0").unwrap_err().to_string();
        assert!(nameless.contains("-o PATH"), "{nameless}");
        assert!(path(&model, "q4km").unwrap_err().to_string().contains("q4_k_m"));
    }
}
