//! `quantize`: a checkpoint into the artifact cache, with a progress bar.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{WeightFormat, artifact::Store, checkpoint::Checkpoint};

/// Options of `quantize`.
#[derive(Debug, Args)]
pub(super) struct Quantize {
    /// A Hugging Face directory or a GGUF file.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// BF16, FP8, INT8, INT4[:g32|:g64|:g128][:symmetric|:integer|:minimum], Q4_1, Q4_0, Q8_0; several with commas.
    #[arg(long, value_delimiter = ',', required = true, value_parser = super::parse_format)]
    format: Vec<WeightFormat>,
    #[command(flatten)]
    cache: super::Cache,
}

impl Quantize {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let checkpoint = Checkpoint::open(&self.model).context("the checkpoint cannot be read")?;
        let store = Store::new(&self.cache.directory());
        for format in self.format {
            let bar = super::progress_bar(&format.canonical());
            let artifact = store.prepare(&checkpoint, format, &mut |progress| {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_message(progress.activity);
            })?;
            bar.finish_and_clear();
            let manifest = artifact.manifest();
            println!("{}  {} MiB  {}", format.canonical(), manifest.bytes >> 20, manifest.key);
        }
        Ok(())
    }
}
