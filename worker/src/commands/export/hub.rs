//! `export hub`: a quantized checkpoint in the layout that another engine reads.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use modelprofile_engine::{
    artifact::Store,
    checkpoint::{Checkpoint, quantized},
    interchange,
    quantize::Recipe,
};

use crate::commands::{
    Cache, Compute,
    calibration::Calibration,
    model::{Fetch, print_notes, write_cards},
    parse_recipe, progress_bar,
};

/// Options of `export hub`.
#[derive(Debug, Args)]
pub(super) struct Hub {
    /// The directory of an artifact (`quantize` prints its key) or of a quantized checkpoint, or hf://OWNER/NAME; with
    /// `--format` an original checkpoint (https://HOST/FILE.gguf and pvc://CLAIM/PATH too), which is quantized into the cache
    /// first.
    #[arg(long, value_name = "PATH|URI")]
    model: String,
    #[command(flatten)]
    fetch: Fetch,
    /// What to make of an original checkpoint, as `quantize` takes it: FP8, INT8:smoothquant, INT4:g128:integer:awq, ...
    #[arg(long, value_parser = parse_recipe)]
    format: Option<Recipe>,
    #[command(flatten)]
    calibration: Calibration,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    cache: Cache,
    /// The layout to write.
    #[arg(long, value_enum)]
    layout: Layout,
    /// A directory that does not exist yet.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// The layouts that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// vLLM, transformers: FP8, INT8, INT4.
    CompressedTensors,
    /// AutoAWQ, version GEMM: INT4.
    Autoawq,
    /// GPTQModel, AutoGPTQ: INT4 and INT8 in groups.
    Gptq,
    /// TensorRT-LLM: FP8 and symmetric INT4.
    Modelopt,
}

impl From<Layout> for quantized::Layout {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::CompressedTensors => Self::CompressedTensors,
            Layout::Autoawq => Self::AutoAwq,
            Layout::Gptq => Self::Gptq,
            Layout::Modelopt => Self::ModelOpt,
        }
    }
}

impl Hub {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let layout = quantized::Layout::from(self.layout);
        let cache = self.cache.directory();
        let model = self.fetch.fetch(&self.model, &cache)?;
        let mut checkpoint = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        let bar = progress_bar(layout.name());
        if let Some(recipe) = self.format {
            let calibration = self.calibration.needed_by(&[recipe], &checkpoint)?;
            let artifact = Store::new(&cache).prepare_calibrated(
                &mut self.compute.backend()?,
                self.compute.threads(),
                &checkpoint,
                recipe,
                calibration.as_ref(),
                &mut |progress| {
                    bar.set_length(progress.total);
                    bar.set_position(progress.done);
                    bar.set_message(progress.activity);
                },
            )?;
            // The export takes it along.
            write_cards(&cache, &[&artifact], &model, checkpoint.name());
            checkpoint = Checkpoint::open(artifact.directory())?;
        }
        let exported = interchange::export(&checkpoint, layout, &self.output, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_message(progress.activity);
        })?;
        bar.finish_and_clear();
        for note in exported.notes {
            println!("note: {note}");
        }
        print_notes(&model);
        println!("{}  {} MiB  {}", layout.name(), exported.bytes >> 20, self.output.display());
        Ok(())
    }
}
