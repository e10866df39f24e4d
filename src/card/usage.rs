//! How to run a result.

use super::code_block;
use crate::pipeline::Manifest;
use crate::plan::Target;

/// The section, for the programs that read the format.
pub(super) fn section(manifest: &Manifest, target: Option<&dyn Target>) -> String {
    let Some(target) = target else { return String::new() };
    let lines = match target.family() {
        "GGUF" => {
            // Of a split set llama.cpp is given the first file.
            let Some(first) = manifest.files.first() else { return String::new() };
            let name = super::command::quoted_path(&first.name);
            format!("llama-cli -m {name} -p 'Hello'\nllama-server -m {name}")
        }
        "MLX" => "mlx_lm.generate --model . --prompt 'Hello'\nmlx_lm.server --model .".to_owned(),
        _ => "vllm serve .".to_owned(),
    };
    let with = match target.family() {
        "GGUF" => "With llama.cpp, in the folder of the file",
        "MLX" => "With mlx-lm, in this folder",
        _ => "With vLLM, in this folder",
    };
    format!("## Use\n\n{with}:\n\n{}\n", code_block("sh", &lines))
}
