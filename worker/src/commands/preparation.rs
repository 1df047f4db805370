//! A manifest's model, ready to be served: brought, quantized, measured. What `serve` and `prepare` share.
//!
//! ```text
//! Preparation (flags) -> Ladder (the manifest) -> model -> checkpoint -> artifacts -> scales of the cache -> quality -> Prepared
//!                                                   ^------ again with weights, where they were pruned and are needed
//! ```

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use modelprofile_api::{EngineType, Quality, Validated};
use modelprofile_engine::{
    Method, ProfileSpec, WeightFormat, ZeroPoint,
    artifact::{Artifact, Finder},
    calibrate::kv_scales,
    checkpoint::Checkpoint,
    serve::{EngineConfig, prepare},
    text::Text,
};
use modelprofile_kernels::{GroupedActivations, KvFormat};

use super::{
    Devices, Wish,
    device::Chosen,
    measure::Measure,
    original::{self, Original},
};
use crate::{
    app::App,
    gate::Gate,
    outcome::Invalid,
    quality::Dataset,
    source::{Located, Progress},
};

/// Options that decide what is prepared, and where it is kept.
#[derive(Debug, Args)]
pub(super) struct Preparation {
    /// The ModelProfile manifest (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    volumes: super::model::Volumes,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
}

/// A manifest, and its profiles as the engine knows them.
pub(super) struct Ladder {
    pub(super) manifest: Validated,
    /// Empty for another engine: see [`Preparation::fetch`].
    profiles: Vec<ProfileSpec>,
}

/// Everything that an engine starts from.
pub(super) struct Prepared {
    pub(super) checkpoint: Checkpoint,
    pub(super) text: Text,
    /// Its bounds of serving are all zero: whoever starts an engine sets them.
    pub(super) config: EngineConfig,
    pub(super) artifacts: Vec<Artifact>,
    /// What finds those of profiles to come.
    pub(super) finder: Finder,
    /// Of which the weights are to be pruned: nothing needs them any more.
    pub(super) original: Option<Original>,
}

impl Ladder {
    /// An app that is still preparing the ladder.
    pub(super) fn app(&self, api_keys: Vec<String>) -> App {
        let names: Vec<String> = self.manifest.spec().profiles.iter().map(|profile| profile.name.clone()).collect();
        let mut app = App::new(self.manifest.manifest().served_name(), &names, api_keys, None);
        app.gate = Gate::new(self.manifest.spec().quality.clone(), &names);
        app
    }
}

impl Preparation {
    /// The manifest's file.
    pub(super) fn path(&self) -> &Path {
        &self.config
    }

    /// The device to prepare the ladder on, and to serve it on if that is what is to follow.
    ///
    /// # Errors
    /// See [`Compute::choose`](super::Compute::choose).
    pub(super) fn device(&self, ladder: &Ladder, serves: bool) -> anyhow::Result<Chosen> {
        let budget = ladder.manifest.memory_budget_bytes();
        // All profiles have the same.
        let parallel = ladder.manifest.spec().profiles.first().map(|profile| profile.tensor_parallel as usize);
        self.compute.choose(&self.cache.directory(), Wish { budget, parallel, serves })
    }

    /// The text that quality is measured with, as it is scored with these activations.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn dataset(&self, quality: &Quality, activations: GroupedActivations) -> anyhow::Result<Dataset> {
        let dataset = super::measure::dataset(quality, self.volumes.directory())?;
        Ok(dataset.with_activations(activations))
    }

    /// Reads the manifest.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn ladder(&self) -> anyhow::Result<Ladder> {
        let manifest = self.validated()?;
        let engine = manifest.spec().engine.kind;
        if engine != EngineType::Native {
            let engine = engine.as_str();
            return Err(Invalid(format!(
                "{engine} loads its files as they are, so there is nothing to prepare but to fetch them; give --fetch-only"
            ))
            .into());
        }
        let profiles = manifest.spec().profiles.iter().map(profile).collect::<Result<_, _>>()?;
        Ok(Ladder { manifest, profiles })
    }

    /// Reads the manifest of any engine, for [`Self::fetch`] alone.
    ///
    /// # Errors
    /// As [`Self::ladder`].
    pub(super) fn manifest(&self) -> anyhow::Result<Ladder> {
        Ok(Ladder { manifest: self.validated()?, profiles: Vec::new() })
    }

    fn validated(&self) -> anyhow::Result<Validated> {
        let text = std::fs::read_to_string(&self.config).with_context(|| Invalid(self.config.display().to_string()))?;
        Ok(Validated::from_yaml(&text).map_err(|errors| Invalid(errors.to_string()))?)
    }

    /// Brings the model into the cache as it is, for an engine that loads it so. The app tells how far it is.
    ///
    /// # Errors
    /// Its licence was not accepted, or it cannot be fetched.
    pub(super) fn fetch(&self, app: &App, ladder: &Ladder) -> anyhow::Result<()> {
        let say = |progress: Progress| {
            let activity = progress.to_string();
            app.prepare(|state| state.profiles.iter_mut().for_each(|p| activity.clone_into(&mut p.activity)));
        };
        let (model, cache) = (&ladder.manifest.spec().model, self.cache.directory());
        self.volumes.fetch(model, &cache, false, &mut { say }).map(drop)
    }

    /// Prepares the profiles: from what is left of a pruned original if that is enough, else from the whole one. The app
    /// tells how far it is.
    ///
    /// # Errors
    /// Each says what to do; [`crate::outcome`] knows what kind it is.
    pub(super) fn run<D: Devices>(&self, devices: &D, app: &App, ladder: &Ladder) -> anyhow::Result<Prepared> {
        let spec = ladder.manifest.spec();
        let cache = self.cache.directory();
        let say = |activity: &str| {
            app.prepare(|state| state.profiles.iter_mut().for_each(|p| activity.clone_into(&mut p.activity)));
        };
        // The licence is held against what was accepted before weights are fetched or anything is quantized.
        let fetch = |without_weights| {
            let model = self.volumes.fetch(&spec.model, &cache, without_weights, &mut |p| say(&p.to_string()));
            say("");
            model
        };
        let model = fetch(!spec.cache.keep_original)?;
        if model.pruned.is_none() {
            return self.with_model(devices, model, app, ladder);
        }
        let error = match original::open(&model) {
            Err(error) => error,
            Ok(_) => match self.with_model(devices, model, app, ladder) {
                Err(error) if original::is_missing(&error) => error,
                other => return other,
            },
        };
        tracing::info!("{error:#}; fetching the original again");
        let model = fetch(false).with_context(|| format!("{error:#}"))?;
        self.with_model(devices, model, app, ladder)
    }

    /// [`Self::run`] with the model at hand.
    fn with_model<D: Devices>(
        &self,
        devices: &D,
        model: Located,
        app: &App,
        ladder: &Ladder,
    ) -> anyhow::Result<Prepared> {
        let spec = ladder.manifest.spec();
        let checkpoint = original::open(&model)?;
        let text = Text::load(&checkpoint)?;
        let calibration = text.tokenizer.encode(super::CALIBRATION, false)?;
        let finder = Finder::new(&self.cache.directory(), &checkpoint, &calibration);
        let config = EngineConfig {
            cache: self.cache.directory(),
            threads: devices.threads(),
            profiles: ladder.profiles.iter().map(|profile| finder.meant(profile)).collect(),
            calibration,
            start: None,
            memory_budget: 0,
            max_context_tokens: None,
            max_batched_tokens: 0,
            max_running: 0,
            max_waiting: 0,
        };
        let mut backend = devices.open()?;
        let artifacts =
            prepare(&mut backend, &checkpoint, &config, &mut |index, progress| app.progress(index, progress))?;
        app.prepare(|state| {
            for (profile, artifact) in state.profiles.iter_mut().zip(&artifacts) {
                artifact.manifest().key.clone_into(&mut profile.artifact_key);
                profile.weight_bytes = artifact.weight_bytes();
            }
        });
        super::model::write_cards(&config.cache, &artifacts.iter().collect::<Vec<_>>(), &model, checkpoint.name());
        // The engine would measure them when it starts, from the reference that may be pruned before.
        if let Some(profile) = config.profiles.first() {
            let layout = checkpoint.config().kv_layout(profile.kv);
            let progress = &mut |progress| app.progress(0, progress);
            kv_scales(&mut backend, &checkpoint, &config.cache, &layout, &config.calibration, progress)?;
        }
        drop(backend);
        let measure = Measure { checkpoint: &checkpoint, cache: &config.cache, devices };
        measure.ladder(app, (&spec.quality, self.volumes.directory()), &config.profiles, &artifacts)?;
        // One that could not be measured may be next time, for which the original is needed.
        let measured = config.profiles.iter().all(|profile| app.gate.quality(&profile.name).is_some());
        let prune = !spec.cache.keep_original && measured;
        let original = prune.then(|| Original::of(model, &checkpoint, &config.cache)).flatten();
        Ok(Prepared { checkpoint, text, config, artifacts, finder, original })
    }
}

/// A manifest's profile as the engine knows it.
///
/// # Errors
/// A format that is not built yet.
pub(super) fn profile(profile: &modelprofile_api::Profile) -> Result<ProfileSpec, Invalid> {
    use modelprofile_api::{KvCacheFormat, Method as ApiMethod, WeightFormat as Api, ZeroPoint as ApiZero};
    let weights = match profile.weights.format {
        Api::Bf16 => WeightFormat::Bf16,
        Api::Fp8 => WeightFormat::Fp8,
        Api::Int8 => WeightFormat::Int8,
        Api::Int4 => WeightFormat::Int4 {
            group: profile.weights.effective_group_size().unwrap_or(128) as u16,
            zero: match profile.weights.effective_zero_point() {
                Some(ApiZero::Symmetric) => ZeroPoint::Symmetric,
                Some(ApiZero::Integer) => ZeroPoint::Integer,
                Some(ApiZero::Minimum) | None => ZeroPoint::Minimum,
            },
        },
        Api::Q4_1 => WeightFormat::Q4_1,
        Api::Q4_0 => WeightFormat::Q4_0,
        Api::Q8_0 => WeightFormat::Q8_0,
        other => {
            let format = other.as_str();
            return Err(Invalid(format!("profile {}: the weight format {format} is not built yet", profile.name)));
        }
    };
    let kv = match profile.kv_cache.format {
        KvCacheFormat::Bf16 => KvFormat::Bf16,
        KvCacheFormat::Fp16 => KvFormat::Fp16,
        KvCacheFormat::Fp8E4m3 => KvFormat::Fp8E4m3,
        KvCacheFormat::Fp8E5m2 => KvFormat::Fp8E5m2,
    };
    let method = match profile.weights.method {
        ApiMethod::RoundToNearest => Method::RoundToNearest,
        ApiMethod::Awq => Method::Awq,
        ApiMethod::Gptq => Method::Gptq,
        ApiMethod::SmoothQuant => Method::SmoothQuant,
        ApiMethod::LlmInt8 => Method::LlmInt8,
    };
    Ok(ProfileSpec { name: profile.name.clone(), weights, method, kv })
}
