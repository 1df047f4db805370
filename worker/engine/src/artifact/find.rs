//! Artifacts that are there already, found without their checkpoint: a worker that serves does not hold it open, so that its
//! weight files can be pruned, and builds nothing.

use std::path::{Path, PathBuf};

use super::{Artifact, Store};
use crate::{
    EngineError, ModelConfig, ProfileSpec, Result,
    checkpoint::{Checkpoint, Quantization},
    quantize::{Calibration, DEFAULT_CALIBRATION_TOKENS},
};

/// What the keys of a checkpoint's artifacts are made of.
#[derive(Clone, Debug)]
pub struct Finder {
    store: Store,
    revision: String,
    config: ModelConfig,
    quantization: Option<Quantization>,
    calibration: Vec<u32>,
}

/// Where the artifact of a profile is, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its key.
    pub key: String,
    /// Its directory.
    pub directory: PathBuf,
}

impl Found {
    /// The artifact, verified, which reads all of it; `None` when there is none.
    ///
    /// # Errors
    /// [`EngineError::Artifact`] when it is damaged; those of the file system.
    pub fn open(&self) -> Result<Option<Artifact>> {
        match Artifact::open(&self.directory) {
            Ok(artifact) => Ok(Some(artifact)),
            Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Finder {
    /// For artifacts of this checkpoint below `cache`, made with this calibration text. Asks for the checkpoint's revision,
    /// which whoever prepared an artifact knows already.
    pub fn new(cache: &Path, checkpoint: &Checkpoint, calibration: &[u32]) -> Self {
        Self {
            store: Store::new(cache),
            revision: checkpoint.revision().to_owned(),
            config: checkpoint.config().clone(),
            quantization: checkpoint.quantization().cloned(),
            calibration: calibration.to_vec(),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A manifest's profile as the checkpoint means it: one that comes in FP8 keeps its own kind of scales.
    pub fn meant(&self, profile: &ProfileSpec) -> ProfileSpec {
        let weights = self.quantization.as_ref().map_or(profile.weights, |own| own.meant(profile.weights));
        ProfileSpec { weights, ..profile.clone() }
    }

    /// Where the artifact of a profile is, by the same key that [`Store::prepare_calibrated`] gives it.
    ///
    /// # Errors
    /// A format that does not fit the model; a method without its calibration text.
    pub fn find(&self, profile: &ProfileSpec) -> Result<Found> {
        let profile = self.meant(profile);
        profile.validate(&self.config)?;
        let recipe = profile.recipe();
        // As there: what comes quantized needs no text.
        let calibration = match self.quantization {
            None if recipe.needs_calibration() => {
                Some(Calibration::new(&self.calibration, DEFAULT_CALIBRATION_TOKENS, 0)?)
            }
            _ => None,
        };
        let key = Store::key_of(&self.revision, recipe, calibration.as_ref());
        Ok(Found { directory: self.store.directory(&key), key })
    }
}
