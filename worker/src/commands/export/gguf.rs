//! `export gguf`: a checkpoint as a GGUF file.

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{
    artifact::Progress,
    checkpoint::Checkpoint,
    gguf::{self, FileType, Importance},
    quantize::importance,
};

use crate::commands::{
    Cache, Compute, Devices, Wish,
    calibration::Calibration,
    model::{Fetch, print_notes},
    on_device, progress_bar,
};

/// Options of `export gguf`.
#[derive(Debug, Args)]
pub(super) struct Gguf {
    /// A Hugging Face directory, a GGUF file, or hf://OWNER/NAME, https://HOST/FILE.gguf, pvc://CLAIM/PATH.
    #[arg(long, value_name = "PATH|URI")]
    model: String,
    #[command(flatten)]
    fetch: Fetch,
    /// F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_1 or Q4_0.
    #[arg(long = "type", value_name = "TYPE")]
    file_type: FileType,
    /// An importance matrix of this model, as llama-imatrix writes it (either form).
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Measure the importance of every input column on a text of this program's own, or on `--calibration`'s.
    #[arg(long, conflicts_with = "imatrix")]
    importance: bool,
    #[command(flatten)]
    calibration: Calibration,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    cache: Cache,
    /// Quantize a source again that is quantized to another type already. Its error adds to the new one.
    #[arg(long)]
    requantize: bool,
    /// The file to write; one of that name is replaced when the new one is whole.
    #[arg(long, value_name = "FILE.gguf")]
    output: PathBuf,
}

impl Gguf {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let model = self.fetch.fetch(&self.model, &self.cache.directory())?;
        let checkpoint = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        let options = gguf::Options {
            file_type: self.file_type,
            importance: None,
            threads: self.compute.threads(),
            requantize: self.requantize,
        };
        gguf::check(&checkpoint, &options)?;
        let importance = self.importance(&checkpoint)?;
        let options = gguf::Options { importance: importance.as_ref(), ..options };
        let bar = progress_bar(self.file_type.name());
        let started = Instant::now();
        let summary = gguf::export(&checkpoint, &self.output, &options, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_message(progress.activity);
        });
        bar.finish_and_clear();
        let summary = summary?;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{}  {}  {} MiB  {:.2} bits per weight  {seconds:.1} s  {:.1} M parameters/s",
            self.output.display(),
            self.file_type,
            summary.bytes >> 20,
            summary.bits_per_weight,
            summary.parameters as f64 / seconds / 1e6
        );
        print_notes(&model);
        Ok(())
    }

    /// What errors in each column cost, from where the options say.
    fn importance(&self, checkpoint: &Checkpoint) -> anyhow::Result<Option<Importance>> {
        if let Some(path) = &self.imatrix {
            return Importance::read(path).context("the importance matrix cannot be read").map(Some);
        }
        if !self.importance && !self.calibration.is_given() {
            return Ok(None);
        }
        let sequences = self.calibration.sequences(checkpoint)?;
        let chosen = self.compute.choose(&self.cache.directory(), Wish::default())?;
        let bar = progress_bar("importance");
        let show = &mut |progress: Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            bar.set_message(progress.activity);
        };
        let columns = on_device!(chosen, |devices| importance(&mut devices.open()?, checkpoint, &sequences, show))?;
        bar.finish_and_clear();
        Ok(Some(Importance::new(columns)?))
    }
}
