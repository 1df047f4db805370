//! `quantize`: a checkpoint into the artifact cache, with a progress bar.

use std::{path::Path, time::Instant};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use modelprofile_engine::{
    artifact::{Progress, Store},
    checkpoint::Checkpoint,
    quantize::{Recipe, plan::Speeds},
    text::Text,
};

use super::{
    Devices, Wish,
    measure::{Measure, figures},
    on_device,
    original::{self, Reference},
    plan::Measured,
};
use crate::quality::Dataset;

/// Options of `quantize`.
#[derive(Debug, Args)]
pub(super) struct Quantize {
    /// A Hugging Face directory, a GGUF file, or hf://OWNER/NAME, https://HOST/FILE.gguf, pvc://CLAIM/PATH.
    #[arg(long, value_name = "PATH|URI")]
    model: String,
    #[command(flatten)]
    fetch: super::model::Fetch,
    /// BF16, FP8[:tensor|:block|:static], INT8[:gptq|:smoothquant|:llm-int8],
    /// INT4[:g32|:g64|:g128][:symmetric|:integer|:minimum][:awq|:gptq], Q4_1, Q4_0, Q8_0; several with commas.
    #[arg(long, value_delimiter = ',', required = true, value_parser = super::parse_recipe)]
    format: Vec<Recipe>,
    /// Say what it will take in time and memory, here and for models of 8 and 70 billion weights, and stop. Of a hub's
    /// safetensors this fetches no weights.
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    calibration: super::calibration::Calibration,
    /// Do not measure what the artifacts cost in quality. A worker that serves one measures it then. The BF16 reference that
    /// is measured against is removed in the end, unless it was there before.
    #[arg(long)]
    no_measure: bool,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
}

impl Quantize {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let cache = self.cache.directory();
        let chosen = self.compute.choose(&cache, Wish::default())?;
        on_device!(chosen, |devices| if self.plan {
            self.print_plan(devices, &cache)
        } else {
            self.quantize(devices, &cache)
        })
    }

    fn quantize<D: Devices>(&self, devices: &D, cache: &Path) -> anyhow::Result<()> {
        let model = self.fetch.fetch(&self.model, cache)?;
        let checkpoint = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        // A format that does not fit is not found out after hours of another.
        self.format.iter().try_for_each(|recipe| recipe.fits(checkpoint.config()))?;
        let store = Store::new(cache);
        let reference = Reference::before(&store, &checkpoint);
        let measure = Measure { checkpoint: &checkpoint, cache, devices };
        let calibration = self.calibration.needed_by(&self.format, &checkpoint)?;
        for &recipe in &self.format {
            let (bar, start) = (super::progress_bar(&recipe.canonical()), Instant::now());
            let artifact = store.prepare_calibrated(
                &mut devices.open()?,
                devices.threads(),
                &checkpoint,
                recipe,
                calibration.as_ref(),
                &mut |progress| show(&bar, progress),
            )?;
            super::model::write_cards(cache, &[&artifact], &model, checkpoint.name());
            let (manifest, seconds) = (artifact.manifest(), start.elapsed().as_secs_f64());
            println!(
                "{}  {} MiB  {}  {seconds:.1} s  {:.2} M parameters/s",
                recipe.canonical(),
                manifest.bytes >> 20,
                manifest.key,
                checkpoint.parameters() as f64 / seconds / 1e6
            );
            if !self.no_measure {
                let quality =
                    measure.artifact(&artifact, &Dataset::built_in(), &mut |progress| show(&bar, progress))?;
                println!("  {}", figures(&quality));
            }
            bar.finish_and_clear();
        }
        reference.remove_if_new(&store, &checkpoint);
        Ok(())
    }

    /// Prints the plan, from what describes the model alone: who plans has not decided to fetch its weights.
    fn print_plan<D: Devices>(&self, devices: &D, cache: &Path) -> anyhow::Result<()> {
        let model = self.fetch.describe(&self.model, cache)?;
        let checkpoint = original::describe(&model)?;
        self.format.iter().try_for_each(|recipe| recipe.fits(checkpoint.config()))?;
        let calibration = self.calibration.needed_by(&self.format, &checkpoint)?;
        let speeds = Speeds::measure(&mut devices.open()?, devices.threads())?;
        let tokens = calibration.as_ref().map(|calibration| calibration.tokens().len());
        let measured = if self.no_measure { None } else { Some(measured(&checkpoint)?) };
        super::plan::print(checkpoint.name(), checkpoint.config(), &self.format, tokens, measured.as_ref(), &speeds);
        Ok(())
    }
}

/// The text that [`Quantize::run`] measures with, as the model cuts it.
fn measured(checkpoint: &Checkpoint) -> anyhow::Result<Measured> {
    let (dataset, config) = (Dataset::built_in(), checkpoint.config());
    let window = dataset.window(config);
    let tokens = dataset.tokens(&Text::load(checkpoint)?.tokenizer, config)?;
    Ok(Measured { windows: tokens.len() / window, window })
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total);
    bar.set_position(progress.done);
    bar.set_message(progress.activity);
}
