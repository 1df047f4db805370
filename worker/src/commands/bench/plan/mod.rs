//! `bench --plan`: how long every kernel of a step would take on a GPU that is not at hand ([`crate::plan`]), as a table or as
//! JSON.

mod model;
mod report;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use modelprofile_api::Manifest;
use modelprofile_engine::{ModelConfig, WeightFormat};
use modelprofile_kernels::KvFormat;
use modelprofile_roofline::Hardware;

use crate::{
    commands::format_name,
    plan::{Crossover, Device, Profile, Step, crossovers},
};

/// Options of `bench --plan`.
#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    /// Print how long each kernel of a step would take on --hardware, modelled from bytes and operations; nothing is
    /// computed, and of the model only its shape is needed: --model takes names such as llama-3.1-8b, files like those of
    /// deploy/models, and a config.json, too.
    #[arg(long, requires = "hardware", help_heading = "Modelled on other hardware")]
    pub(super) plan: bool,
    /// The GPU: a name such as h100-80gb, or a file like those of deploy/hardware.
    #[arg(long, value_name = "NAME|FILE", requires = "plan", help_heading = "Modelled on other hardware")]
    hardware: Option<String>,
    /// Take formats, KV cache and tensor parallelism from the profiles of a ModelProfile manifest, and the model's name if
    /// --model is left out.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        requires = "plan",
        help_heading = "Modelled on other hardware"
    )]
    pub(super) file: Option<PathBuf>,
    /// Format of the KV cache.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "FP8E4M3",
        value_parser = super::super::parse_kv,
        help_heading = "Modelled on other hardware"
    )]
    kv_cache: KvFormat,
    /// GPUs that share the model; several numbers with commas.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1",
        value_parser = super::super::at_least_one,
        help_heading = "Modelled on other hardware"
    )]
    tensor_parallel: Vec<usize>,
    /// Print JSON.
    #[arg(long, requires = "plan", help_heading = "Modelled on other hardware")]
    json: bool,
}

/// What to plan steps of.
pub(super) struct Sizes<'a> {
    /// Sequences that decode together.
    pub(super) batch: &'a [usize],
    /// Tokens that each of them has in the cache.
    pub(super) context: usize,
    /// Prompts.
    pub(super) prefill: &'a [usize],
    /// Rows of a prefill step.
    pub(super) chunk: usize,
}

/// Everything that is planned, with its times.
struct Outcome {
    hardware: Hardware,
    model: String,
    profiles: Vec<Planned>,
    crossovers: Vec<Crossover>,
}

/// One profile's share.
struct Planned {
    profile: Profile,
    /// Bytes of the weights on one GPU.
    weight_bytes: u64,
    /// Seconds to bring them there.
    switch: modelprofile_roofline::Cost,
    steps: Vec<Step>,
}

impl PlanOptions {
    /// Plans and prints.
    ///
    /// # Errors
    /// The hardware, the model or the manifest cannot be read, or the model cannot be divided as asked.
    pub(super) fn run(
        &self,
        model: Option<&std::path::Path>,
        formats: &[WeightFormat],
        sizes: &Sizes<'_>,
    ) -> anyhow::Result<()> {
        let hardware = self.hardware.as_deref().context("--plan needs --hardware, such as --hardware h100-80gb")?;
        let hardware = modelprofile_roofline::hardware(hardware)?;
        let manifest = self.file.as_deref().map(read_manifest).transpose()?;
        let (name, config) = match (model, &manifest) {
            (Some(model), _) => model::read(model)?,
            (None, Some(manifest)) => model::of_manifest(&manifest.spec.model.uri)?,
            (None, None) => {
                bail!("--plan needs --model or --file: a name such as llama-3.1-8b, a file, or a checkpoint")
            }
        };
        let profiles = match &manifest {
            Some(manifest) => of_manifest(manifest)?,
            None => self.profiles(formats),
        };
        let outcome = plan(hardware, (name, &config), &profiles, sizes)?;
        if self.json {
            println!("{:#}", report::json(&outcome, &config, sizes));
        } else {
            print!("{}", report::text(&outcome, &config, sizes)?);
        }
        Ok(())
    }

    /// The profiles of the command line: every format on every number of GPUs.
    fn profiles(&self, formats: &[WeightFormat]) -> Vec<Profile> {
        let named = |weights: WeightFormat, devices| Profile {
            name: format_name(weights),
            weights,
            kv: self.kv_cache,
            devices,
        };
        formats.iter().flat_map(|f| self.tensor_parallel.iter().map(move |devices| named(*f, *devices))).collect()
    }
}

fn read_manifest(file: &std::path::Path) -> anyhow::Result<Manifest> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Manifest::from_yaml(&text).map_err(|errors| anyhow::anyhow!("{}: {errors}", file.display()))
}

/// The profiles of a manifest.
fn of_manifest(manifest: &Manifest) -> anyhow::Result<Vec<Profile>> {
    manifest
        .spec
        .profiles
        .iter()
        .map(|profile| {
            let spec = super::super::preparation::profile(profile)?;
            Ok(Profile {
                name: profile.name.clone(),
                weights: spec.weights,
                kv: spec.kv,
                devices: profile.tensor_parallel as usize,
            })
        })
        .collect()
}

/// Plans all steps of all profiles.
fn plan(
    hardware: Hardware,
    (model, config): (String, &ModelConfig),
    profiles: &[Profile],
    sizes: &Sizes<'_>,
) -> anyhow::Result<Outcome> {
    let planned = profiles.iter().map(|profile| {
        let on = Device::new(&hardware, config, profile)?;
        let mut steps = Vec::new();
        for batch in sizes.batch {
            steps.push(on.decode(*batch, sizes.context)?);
        }
        for prompt in sizes.prefill {
            steps.push(on.prefill(*prompt, sizes.chunk)?);
        }
        let weight_bytes = on.weight_bytes()?;
        let switch = on.ceilings().host_copy(weight_bytes as f64);
        Ok(Planned { profile: profile.clone(), weight_bytes, switch, steps })
    });
    let planned = planned.collect::<anyhow::Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for profile in profiles {
        for crossover in crossovers(&hardware, config, profile)? {
            if !found.contains(&crossover) {
                found.push(crossover);
            }
        }
    }
    Ok(Outcome { hardware, model, profiles: planned, crossovers: found })
}
