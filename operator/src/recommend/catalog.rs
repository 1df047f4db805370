//! The models and the hardware that are known by name: those of `deploy/`, carried by the program.

use std::path::Path;

use anyhow::bail;

use super::{Compute, Machine};
use crate::simulate::{Hardware, ModelShape};

macro_rules! files {
    ($folder:literal: $($name:literal)*) => {
        [$(($name, include_str!(concat!("../../../deploy/", $folder, "/", $name, ".yaml")))),*]
    };
}

const MODELS: [(&str, &str); 4] = files!("models": "llama-3.1-8b" "llama-3.3-70b" "qwen2.5-32b" "smollm2-135m");
const HARDWARE: [(&str, &str); 4] = files!("hardware": "a100-80gb" "h100-80gb" "h200" "l40s");

/// Memory of a machine without an accelerator, in bytes, when nothing else is said.
const CPU_MEMORY_BYTES: u64 = 16 << 30;

/// The model of that name, or of that file.
///
/// # Errors
/// There is neither, or the file is not valid; the names that are known are listed.
pub fn model(name: &str) -> anyhow::Result<ModelShape> {
    match find(&MODELS, name, "model")? {
        Some(text) => ModelShape::parse(text, name),
        None => ModelShape::load(Path::new(name)),
    }
}

/// The hardware of that name (`cpu` for a machine without a data-centre GPU), or of that file.
///
/// # Errors
/// As [`model`].
pub fn hardware(name: &str) -> anyhow::Result<Machine> {
    if name.eq_ignore_ascii_case("cpu") {
        return Ok(Machine { name: "CPU".to_owned(), memory_bytes: CPU_MEMORY_BYTES, compute: Compute::Cpu });
    }
    let hardware = match find(&HARDWARE, name, "hardware")? {
        Some(text) => Hardware::parse(text, name)?,
        None => Hardware::load(Path::new(name))?,
    };
    Ok(Machine::from(&hardware))
}

/// The text of a known name; `None` for a path.
fn find(known: &[(&str, &'static str)], name: &str, what: &str) -> anyhow::Result<Option<&'static str>> {
    let found = known.iter().find(|(stem, _)| stem.eq_ignore_ascii_case(name)).map(|(_, text)| *text);
    if found.is_none() && !Path::new(name).exists() {
        let names: Vec<_> = known.iter().map(|(stem, _)| *stem).collect();
        let cpu = if what == "hardware" { ", cpu" } else { "" };
        bail!(
            "there is no {what} `{name}`, nor such a file; write one of {}{cpu}, or the path of a file",
            names.join(", ")
        );
    }
    Ok(found)
}
