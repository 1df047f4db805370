//! The models and the hardware that are known by name: those of `deploy/`, carried by the program.

use std::path::Path;

use crate::{DescriptionError, Hardware, ModelShape};

macro_rules! files {
    ($folder:literal: $($name:literal)*) => {
        [$(($name, include_str!(concat!("../../deploy/", $folder, "/", $name, ".yaml")))),*]
    };
}

const MODELS: [(&str, &str); 4] = files!("models": "llama-3.1-8b" "llama-3.3-70b" "qwen2.5-32b" "smollm2-135m");
const HARDWARE: [(&str, &str); 4] = files!("hardware": "a100-80gb" "h100-80gb" "h200" "l40s");

/// The names of the known models.
pub fn model_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// The names of the known hardware.
pub fn hardware_names() -> impl Iterator<Item = &'static str> {
    HARDWARE.iter().map(|(name, _)| *name)
}

/// The model of that name, or of that file.
///
/// # Errors
/// There is neither, or the file is not valid; the names that are known are listed.
pub fn model(name: &str) -> Result<ModelShape, DescriptionError> {
    match find(&MODELS, name, "model")? {
        Some(text) => ModelShape::parse(text, name),
        None => ModelShape::load(Path::new(name)),
    }
}

/// The hardware of that name, or of that file.
///
/// # Errors
/// As [`model`].
pub fn hardware(name: &str) -> Result<Hardware, DescriptionError> {
    match find(&HARDWARE, name, "hardware")? {
        Some(text) => Hardware::parse(text, name),
        None => Hardware::load(Path::new(name)),
    }
}

/// The text of a known name; `None` for a path.
fn find(known: &[(&str, &'static str)], name: &str, what: &str) -> Result<Option<&'static str>, DescriptionError> {
    let found = known.iter().find(|(stem, _)| stem.eq_ignore_ascii_case(name)).map(|(_, text)| *text);
    if found.is_none() && !Path::new(name).exists() {
        let names: Vec<_> = known.iter().map(|(stem, _)| *stem).collect();
        return Err(DescriptionError::Unknown(format!(
            "there is no {what} `{name}`, nor such a file; write one of {}, or the path of a file",
            names.join(", ")
        )));
    }
    Ok(found)
}
