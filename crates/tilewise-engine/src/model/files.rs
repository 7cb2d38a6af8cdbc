//! Files of a model's folder, and what stands there in their place.

use std::io::ErrorKind;
use std::path::Path;

use crate::{Error, Result};

/// How a git-lfs pointer begins: a few lines of text that stand for a large file.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a name is in its folder, be it a link to a file that is gone: such a file is wanted and its loss is told.
pub(super) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The bytes of a file, without the mark that some editors put before UTF-8.
///
/// # Errors
/// [`Error::File`] for a file that cannot be read, or that is a pointer to the file that is meant.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).map_err(|e| unreadable(path, &e))?;
    refuse_pointer(path, &bytes)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(.."\u{feff}".len());
    }
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`read`], and [`Error::File`] for bytes that are no UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let name = || path.display().to_string();
    String::from_utf8(read(path)?).map_err(|_| Error::file(name(), "is not UTF-8; save it as UTF-8"))
}

/// The text of a file that a folder may lack.
///
/// # Errors
/// As [`read_text`].
pub(super) fn read_optional(path: &Path) -> Result<Option<String>> {
    is_there(path).then(|| read_text(path)).transpose()
}

/// Why a file cannot be read: a link to a file that is gone is told apart from a file that was never there.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let name = path.display().to_string();
    match std::fs::read_link(path) {
        Ok(target) if error.kind() == ErrorKind::NotFound => {
            let target = target.display();
            Error::file(name, format!("is a link to {target}, which is not there; fetch the model again"))
        }
        _ => Error::file(name, error),
    }
}

/// Refuses the text that git leaves in place of a large file.
///
/// # Errors
/// [`Error::File`] that says how to get the file.
pub(super) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(LFS) {
        let why = "is a git-lfs pointer and not the file itself; run git lfs pull in its folder";
        return Err(Error::file(path.display().to_string(), why));
    }
    Ok(())
}

/// Why a folder holds no model that can be loaded: what it holds in its place, and what to do with it. `lacks` says which
/// file is missed.
pub(super) fn not_a_model(folder: &Path, lacks: &str) -> Error {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let base = read_text(&folder.join("adapter_config.json")).unwrap_or_default();
    let base: serde_json::Value = serde_json::from_str(&base).unwrap_or_default();
    let base = base.get("base_model_name_or_path").and_then(serde_json::Value::as_str);
    Error::file(folder.display().to_string(), instead_of_model(&names, lacks, base))
}

/// What stands in place of a model among files of these names; `base` is the model that an adapter changes.
pub(super) fn instead_of_model(names: &[String], lacks: &str, base: Option<&str>) -> String {
    let is_there = |name: &str| names.iter().any(|known| known == name);
    let ending = |end: &str| names.iter().filter(|name| name.ends_with(end)).min();
    if is_there("adapter_config.json") {
        let base = base.map(|base| format!(" {base}")).unwrap_or_default();
        return format!(
            "is an adapter (LoRA) and no model; merge it into its base model{base} with PEFT's merge_and_unload, and give \
             the folder of the merged one"
        );
    }
    if let Some(gguf) = ending(".gguf") {
        return format!("{lacks}; {gguf} is a GGUF file: {GET_SAFETENSORS}");
    }
    if let Some(pickle) = PICKLES.iter().find(|name| is_there(name)) {
        return format!(
            "{lacks}; {pickle} is a pickle, which can run code when it is read: load it with transformers and save it \
             with save_pretrained, or {GET_SAFETENSORS}"
        );
    }
    match ending(".safetensors") {
        Some(other) if lacks.contains("safetensors") => format!(
            "{lacks}, but {other}: name it model.safetensors if it is the whole model, or fetch the index beside it"
        ),
        _ => format!("{lacks}; give a folder with a model's config.json and safetensors weights"),
    }
}

/// Weights in files that only Python can read.
const PICKLES: [&str; 3] = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];

/// What to do instead of giving another format.
pub(super) const GET_SAFETENSORS: &str =
    "give a model with safetensors weights, its folder or org/name on the hub";
