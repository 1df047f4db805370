//! Where artifacts live: keys, lookup, locks.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use modelprofile_kernels::Calibrate;
use sha2::{Digest, Sha256};

use super::{Artifact, FORMAT_VERSION, Progress, build, digest::hex};
use crate::{
    EngineError, Result, WeightFormat,
    checkpoint::Checkpoint,
    interchange::CARD,
    quantize::{BlockTypes, Calibration, Pipeline, Recipe},
};

/// Name of the packed file.
pub const PACKED: &str = "packed-cpu.bin";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// What other tools read of an artifact.
pub(super) const HUB_FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// A cache directory of artifacts.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Artifacts under `cache/artifacts`.
    pub fn new(cache: &Path) -> Self {
        Self { root: cache.join("artifacts") }
    }

    /// Key of what a recipe makes of a checkpoint: SHA-256 over source revision, format, method, calibration text where the
    /// method looks at it, and quantizer version.
    pub fn key(checkpoint: &Checkpoint, recipe: Recipe, calibration: Option<&Calibration>) -> String {
        Self::key_of(checkpoint.revision(), recipe, calibration)
    }

    /// The same of the checkpoint of this revision.
    pub(super) fn key_of(revision: &str, recipe: Recipe, calibration: Option<&Calibration>) -> String {
        let mut text = format!("v{FORMAT_VERSION}\n{revision}\n{}\n", recipe.canonical());
        if let Some(calibration) = calibration.filter(|_| recipe.needs_calibration()) {
            text.push_str(&calibration.digest());
        }
        hex(&Sha256::digest(text.as_bytes()))[..32].to_owned()
    }

    /// The artifact of a checkpoint in a format, each weight rounded to the nearest: found, or built on all of the machine's
    /// cores.
    ///
    /// # Errors
    /// As [`Self::prepare_calibrated`].
    pub fn prepare(
        &self,
        checkpoint: &Checkpoint,
        format: WeightFormat,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Artifact> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.without_text(threads, checkpoint, format.into(), progress)
    }

    /// The artifact that a recipe makes of a checkpoint: found, or built.
    ///
    /// # Guarantees
    /// Two processes never build the same artifact at once: the second waits and finds it. A killed build leaves only a
    /// temporary directory, in which the next build goes on. A damaged artifact is rebuilt. Equal inputs give equal bytes,
    /// whatever the number of threads, and whether the build was killed in between or not. Each call warns of weights that
    /// are rounded a second time, before it builds anything ([`BlockTypes`]).
    ///
    /// # Errors
    /// A method that does not make the format, or has no calibration text; a format that cannot hold the model's layers
    /// ([`Recipe::fits`]); [`EngineError::Pruned`] when it would have to be built and the checkpoint has no weights; the
    /// checkpoint's, the device's and the file system's errors. Nothing half-written stays under the key.
    pub fn prepare_calibrated<B: Calibrate>(
        &self,
        backend: &mut B,
        threads: usize,
        checkpoint: &Checkpoint,
        recipe: Recipe,
        calibration: Option<&Calibration>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Artifact> {
        // What a text decided of a checkpoint that is quantized already (static scales, outlier columns) comes with it.
        if checkpoint.quantization().is_some() || !recipe.needs_calibration() {
            return self.without_text(threads, checkpoint, recipe, progress);
        }
        recipe.fits(checkpoint.config())?;
        let calibration =
            calibration.ok_or_else(|| EngineError::Config(format!("{} needs calibration text", recipe.canonical())))?;
        let key = Self::key(checkpoint, recipe, Some(calibration));
        self.found_or_built(checkpoint, recipe, &key, |directory, key| {
            let mut pipeline = Pipeline::new(backend, threads, checkpoint, recipe, calibration)?;
            build::build(directory, key, checkpoint, recipe, threads, Some(&mut pipeline), progress)
        })
    }

    /// What a recipe makes of a checkpoint without a calibration text.
    fn without_text(
        &self,
        threads: usize,
        checkpoint: &Checkpoint,
        recipe: Recipe,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Artifact> {
        recipe.fits(checkpoint.config())?;
        self.found_or_built(checkpoint, recipe, &Self::key(checkpoint, recipe, None), |directory, key| {
            build::build(directory, key, checkpoint, recipe, threads, None, progress)
        })
    }

    /// Directory of the artifact with this key, whether it is there or not.
    pub fn directory(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Whether the BF16 artifact of a checkpoint is there.
    pub fn has_reference(&self, checkpoint: &Checkpoint) -> bool {
        self.root.join(Self::key(checkpoint, WeightFormat::Bf16.into(), None)).exists()
    }

    /// Removes the BF16 artifact of a checkpoint if it served nothing but measuring and calibrating: one that is, or was, a
    /// profile's has a measured quality and stays. The bytes that were freed; 0 when there is none, or a process builds or looks it up.
    ///
    /// # Errors
    /// Those of the file system. What is left after one is rebuilt when it is needed.
    pub fn remove_reference(&self, checkpoint: &Checkpoint) -> Result<u64> {
        let key = Self::key(checkpoint, WeightFormat::Bf16.into(), None);
        let directory = self.root.join(&key);
        if !directory.exists() || is_a_profile(&directory) {
            return Ok(0);
        }
        let lock_path = self.root.join(format!("{key}.lock"));
        let lock = File::create(&lock_path).map_err(|e| EngineError::io(&lock_path, e))?;
        if lock.try_lock().is_err() {
            return Ok(0);
        }
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        let bytes = files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        fs::remove_dir_all(&directory).map_err(|e| EngineError::io(&directory, e))?;
        Ok(bytes)
    }

    fn found_or_built(
        &self,
        checkpoint: &Checkpoint,
        recipe: Recipe,
        key: &str,
        build: impl FnOnce(&Path, &str) -> Result<()>,
    ) -> Result<Artifact> {
        let directory = self.root.join(key);
        fs::create_dir_all(&self.root).map_err(|e| EngineError::io(&self.root, e))?;
        let lock_path = self.root.join(format!("{key}.lock"));
        let lock = File::create(&lock_path).map_err(|e| EngineError::io(&lock_path, e))?;
        lock.lock().map_err(|e| EngineError::io(&lock_path, e))?;
        let warn = |again: &BlockTypes| {
            if let Some(warning) = again.warning(checkpoint.name(), &recipe.canonical()) {
                tracing::warn!("{warning}");
            }
        };
        match Artifact::open(&directory) {
            Ok(artifact) => {
                // The checkpoint may be pruned; the artifact remembers what it was made of.
                warn(&artifact.manifest().source_quantization);
                return Ok(artifact);
            }
            Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "the artifact is damaged and is rebuilt");
            }
        }
        // Before anything is removed: who fetches the weights again may build it then.
        checkpoint.check_weights()?;
        warn(&BlockTypes::requantized(checkpoint, recipe));
        let temporary = self.root.join(format!("{key}.tmp"));
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|e| EngineError::io(&directory, e))?;
        }
        fs::create_dir_all(&temporary).map_err(|e| EngineError::io(&temporary, e))?;
        let built = build(&temporary, key)
            .and_then(|()| sync_directory(&temporary))
            .and_then(|()| fs::rename(&temporary, &directory).map_err(|e| EngineError::io(&directory, e)));
        if let Err(error) = built {
            // Half an artifact may be what filled the disk. Its own error would hide the one that matters.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        sync_directory(&self.root)?;
        tracing::info!(format = %recipe.canonical(), %key, "the artifact was built");
        // Its checksum was computed of what was written a moment ago: the page cache would give the same bytes again.
        Artifact::mapped(&directory, Artifact::manifest_of(&directory)?)
    }
}

/// Whether something in an artifact's directory says that it is more than a reference to measure with: a quality of its own
/// on whatever text, which every profile's artifact has, or a card.
fn is_a_profile(directory: &Path) -> bool {
    let quality = |name: &str| name.strip_suffix(".json").is_some_and(|stem| stem.starts_with("quality"));
    let names =
        fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|file| file.file_name().into_string().ok());
    names.into_iter().any(|name| name == CARD || quality(&name))
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(|e| EngineError::io(path, e))
}
