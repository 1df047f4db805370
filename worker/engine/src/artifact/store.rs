//! Where artifacts live: keys, lookup, locks, verification.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::sync_channel},
};

use modelprofile_kernels::{Bytes, Calibrate, MappedFile, PackedWeight, WeightSpec};
use sha2::{Digest, Sha256};

use super::{Entry, FORMAT_VERSION, Manifest, Progress, build};
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

/// A verified artifact, mapped.
#[derive(Clone, Debug)]
pub struct Artifact {
    manifest: Manifest,
    path: PathBuf,
    file: Arc<MappedFile>,
}

impl Artifact {
    /// Opens and verifies an artifact directory.
    ///
    /// # Errors
    /// [`EngineError::Io`] with `NotFound` when there is none; [`EngineError::Artifact`] when it is damaged.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Self::manifest_of(directory)?;
        let found = file_sha256(&directory.join(PACKED))?;
        if found != manifest.sha256 {
            let message = format!("{PACKED} has checksum {found}, expected {}", manifest.sha256);
            return Err(damaged(directory, message));
        }
        Self::mapped(directory, manifest)
    }

    fn manifest_of(directory: &Path) -> Result<Manifest> {
        let path = directory.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|e| EngineError::io(&path, e))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| damaged(directory, format!("{MANIFEST}: {e}")))?;
        if manifest.version != FORMAT_VERSION {
            return Err(damaged(directory, format!("version {} instead of {FORMAT_VERSION}", manifest.version)));
        }
        Ok(manifest)
    }

    fn mapped(directory: &Path, manifest: Manifest) -> Result<Self> {
        let path = directory.join(PACKED);
        let file = Arc::new(MappedFile::open(&path)?);
        if file.len() as u64 != manifest.bytes {
            let message = format!("{PACKED} has {} bytes, expected {}", file.len(), manifest.bytes);
            return Err(damaged(directory, message));
        }
        Ok(Self { manifest, path, file })
    }

    /// The directory that holds it, and what was measured about it.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// What is inside.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Holds that the packed file is still what was verified when it was opened.
    ///
    /// # Errors
    /// [`EngineError::Artifact`] when it was changed or truncated since.
    pub fn check_intact(&self) -> Result<()> {
        if self.file.is_intact() {
            return Ok(());
        }
        Err(self.damaged("it was changed while it was in use: restart the worker, which rebuilds it".into()))
    }

    /// Bytes that the packed weights take in memory.
    pub fn weight_bytes(&self) -> u64 {
        self.manifest.bytes
    }

    fn damaged(&self, message: String) -> EngineError {
        EngineError::Artifact { path: self.path.display().to_string(), message }
    }

    fn entry(&self, name: &str) -> Result<(&Entry, Bytes)> {
        let entry = self
            .manifest
            .entries
            .iter()
            .find(|e| e.name == name)
            .ok_or_else(|| self.damaged(format!("no tensor {name}")))?;
        let bytes = Bytes::from_file(self.file.clone(), entry.offset as usize, entry.len as usize)
            .ok_or_else(|| self.damaged(format!("tensor {name} leaves the file")))?;
        Ok((entry, bytes))
    }

    /// True when the artifact holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.manifest.entries.iter().any(|e| e.name == name)
    }

    /// Names, kinds and shapes of the weights, in file order.
    pub fn specs(&self) -> impl Iterator<Item = (&str, WeightSpec)> {
        let spec = |e: &Entry| e.kind.weight().map(|kind| WeightSpec { kind, n: e.n, k: e.k });
        self.manifest.entries.iter().filter_map(move |e| Some((e.name.as_str(), spec(e)?)))
    }

    /// A packed weight, its bytes mapped.
    pub fn weight(&self, name: &str) -> Result<PackedWeight> {
        let (entry, bytes) = self.entry(name)?;
        let kind = entry.kind.weight().ok_or_else(|| self.damaged(format!("tensor {name} is a vector")))?;
        let spec = WeightSpec { kind, n: entry.n, k: entry.k };
        spec.validate()?;
        if modelprofile_kernels::packed_len(&spec) != bytes.len() {
            return Err(self.damaged(format!("tensor {name} has {} bytes", bytes.len())));
        }
        Ok(PackedWeight { spec, bytes })
    }

    /// An FP32 vector.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, bytes) = self.entry(name)?;
        if entry.kind.weight().is_some() || Some(bytes.len()) != entry.k.checked_mul(4) {
            return Err(self.damaged(format!("tensor {name} is not a vector of {}", entry.k)));
        }
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// Checks the files of an artifact that other tools read against its manifest. A directory without a manifest, which is no
/// artifact, passes.
///
/// # Errors
/// [`EngineError::Artifact`] names the file that was changed.
pub fn check_files(directory: &Path) -> Result<()> {
    let Some(manifest) = Manifest::read(directory)? else { return Ok(()) };
    for name in HUB_FILES {
        let Some(expected) = manifest.files.get(name) else { continue };
        let found = file_sha256(&directory.join(name))?;
        if found != *expected {
            let message =
                format!("{name} has checksum {found}, expected {expected}; remove the directory and quantize again");
            return Err(EngineError::Artifact { path: directory.display().to_string(), message });
        }
    }
    Ok(())
}

fn damaged(directory: &Path, message: String) -> EngineError {
    EngineError::Artifact { path: directory.display().to_string(), message }
}

/// SHA-256 of a file, read in pieces: the next one is read while one is hashed.
pub(super) fn file_sha256(path: &Path) -> Result<String> {
    const PIECE: usize = 1 << 20;
    let io = |e| EngineError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut read = |buffer: &mut Vec<u8>| {
        buffer.resize(PIECE, 0);
        let n = file.read(buffer).map_err(io)?;
        buffer.truncate(n);
        Ok::<_, EngineError>(n > 0)
    };
    let mut hash = Sha256::new();
    let mut first = Vec::new();
    // A file of one piece, as configurations are, is not worth a thread.
    if !read(&mut first)? || first.len() < PIECE {
        hash.update(&first);
        while read(&mut first)? {
            hash.update(&first);
        }
        return Ok(hex(&hash.finalize()));
    }
    let (full, empty) = (sync_channel::<Vec<u8>>(2), sync_channel::<Vec<u8>>(4));
    std::thread::scope(|scope| {
        let (hashed, back) = (full.1, empty.0);
        let hasher = scope.spawn(move || {
            for buffer in hashed {
                hash.update(&buffer);
                // The reader is done when it wants none back.
                let _ = back.try_send(buffer);
            }
            hex(&hash.finalize())
        });
        let full = full.0;
        let mut buffer = first;
        loop {
            let _ = full.send(buffer);
            buffer = empty.1.try_recv().unwrap_or_default();
            if !read(&mut buffer)? {
                break;
            }
        }
        drop(full);
        hasher.join().map_err(|_| io(std::io::Error::other("the thread that hashed it has panicked")))
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
