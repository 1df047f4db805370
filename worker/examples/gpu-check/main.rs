//! `make gpu-check`, the measuring part: a GPU beside its roofline, within minutes. See `tests/scripts/gpu-check.sh`.
//!
//! ```text
//! gpu-check [--tiny] [--hardware NAME|FILE] [--formats FP8,INT4] [--only-kernels] [--layers N] [--seconds S] [--kernels DIR]
//!           [--peers FILE] [--tests LOG] [--json FILE] [--markdown FILE]
//! gpu-check --ship DIR [--capability 9.0,10.0]      compiles the kernels into a folder that is carried along
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `options` | the command line |
//! | `weights` | random weights, packed once for each shape |
//! | `rig` | a model on the device with its cache, and the same model on paper |
//! | `measure` | bandwidth, kernels, steps, switches |
//! | `report` | JSON and Markdown |
//!
//! Weights are random, so that no model is needed; a layer has the sides of Llama-3.1-8B. On the emulated device of the
//! tests it runs with tiny sizes, says so in everything that it writes, and its times are those of the emulation.

#![allow(unreachable_pub, reason = "one program of several files: what files share is public to each other")]

mod measure;
mod options;
mod report;
mod rig;
mod weights;

use std::time::Instant;

use anyhow::Context;
use modelprofile_kernels::cuda;

use options::Options;

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    if let Some(folder) = &options.ship {
        for capability in &options.capabilities {
            let files = cuda::ship(folder, *capability)?;
            println!("{} kernels for {}.{} in {}", files.len(), capability.0, capability.1, folder.display());
        }
        return Ok(());
    }
    let start = Instant::now();
    let outcome = measure::all(&options, start)?;
    let json = report::json(&options, &outcome);
    let text = format!("{json:#}\n");
    match &options.json {
        Some(file) => std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?,
        None => print!("{text}"),
    }
    let markdown = report::markdown(&json);
    if let Some(file) = &options.markdown {
        std::fs::write(file, &markdown).with_context(|| format!("cannot write {}", file.display()))?;
    }
    eprint!("{markdown}");
    Ok(())
}
