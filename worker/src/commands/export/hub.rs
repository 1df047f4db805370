//! `export hub`: a quantized checkpoint in the layout that another engine reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use modelprofile_engine::{
    artifact::{Manifest, Progress, Store},
    calibrate,
    checkpoint::{Checkpoint, quantized},
    interchange,
    quantize::Recipe,
};
use modelprofile_kernels::{KvFormat, KvScales};

use crate::commands::{
    Cache, Compute, Devices, Wish,
    calibration::Calibration,
    model::{Fetch, print_notes, write_cards},
    on_device,
    original::Reference,
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
    /// Also write scales of an FP8 (E4M3) KV cache, one for the keys and one for the values of each layer: those that a
    /// worker calibrates, or on the text of `--calibration`. In compressed-tensors and modelopt.
    #[arg(long, value_enum, value_name = "FORMAT")]
    kv_cache: Option<KvCache>,
    /// A directory that does not exist yet.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// What other engines take scales of a KV cache for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KvCache {
    /// E4M3.
    Fp8,
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
        if self.kv_cache.is_some() {
            // Before what takes long.
            interchange::holds_kv_scales(layout)?;
        }
        ensure!(!self.output.exists(), "{} exists; name a new directory", self.output.display());
        let cache = self.cache.directory();
        let chosen = self.compute.choose(&cache, Wish::default())?;
        on_device!(chosen, |devices| self.export(devices, layout, &cache))
    }

    fn export<D: Devices>(&self, devices: &D, layout: quantized::Layout, cache: &Path) -> anyhow::Result<()> {
        let model = self.fetch.fetch(&self.model, cache)?;
        let original = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        if let Some(recipe) = self.format {
            interchange::holds_recipe(layout, recipe, original.config())?;
        }
        let bar = progress_bar(layout.name());
        let scales = self.kv_cache.map(|KvCache::Fp8| self.kv_scales(devices, &original, cache, &bar)).transpose()?;
        let made = match self.format {
            None => None,
            Some(recipe) => {
                let calibration = self.calibration.needed_by(&[recipe], &original)?;
                let artifact = Store::new(cache).prepare_calibrated(
                    &mut devices.open()?,
                    devices.threads(),
                    &original,
                    recipe,
                    calibration.as_ref(),
                    &mut |progress| show(&bar, progress),
                )?;
                // The export takes it along.
                write_cards(cache, &[&artifact], &model, original.name());
                Some(Checkpoint::open(artifact.directory())?)
            }
        };
        let exported = interchange::export_with_kv_scales(
            made.as_ref().unwrap_or(&original),
            layout,
            scales.as_ref(),
            &self.output,
            &mut |progress| show(&bar, progress),
        )?;
        bar.finish_and_clear();
        for note in exported.notes {
            println!("note: {note}");
        }
        print_notes(&model);
        println!("{}  {} MiB  {}", layout.name(), exported.bytes >> 20, self.output.display());
        Ok(())
    }

    /// The scales that a worker has calibrated or would calibrate. An artifact takes its original's where they are found;
    /// else they are measured on the artifact itself.
    fn kv_scales<D: Devices>(
        &self,
        devices: &D,
        checkpoint: &Checkpoint,
        cache: &Path,
        bar: &ProgressBar,
    ) -> anyhow::Result<KvScales> {
        let tokens = self.calibration.tokens(checkpoint)?;
        let layout = checkpoint.config().kv_layout(KvFormat::Fp8E4m3);
        // A GGUF file may lie among artifacts, but is none.
        let directory = Some(checkpoint.directory()).filter(|_| checkpoint.gguf_metadata().is_none());
        if let Some(manifest) = directory.map(Manifest::read).transpose()?.flatten()
            && let Some(found) = calibrate::found(cache, &manifest.revision, &layout, &tokens)
        {
            return Ok(found);
        }
        let store = Store::new(cache);
        let reference = Reference::before(&store, checkpoint);
        let mut backend = devices.open()?;
        let show = &mut |progress| show(bar, progress);
        let scales = calibrate::kv_scales(&mut backend, checkpoint, cache, &layout, &tokens, show)?;
        reference.remove_if_new(&store, checkpoint);
        Ok(scales)
    }
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total);
    bar.set_position(progress.done);
    bar.set_message(progress.activity);
}
