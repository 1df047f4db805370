//! An artifact that is there: verified, mapped, and read from.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use modelprofile_kernels::{Bytes, MappedFile, PackedWeight, WeightSpec};

use super::{
    Entry, FORMAT_VERSION, Manifest,
    digest::file_sha256,
    store::{HUB_FILES, MANIFEST, PACKED},
};
use crate::{EngineError, Result};

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

    pub(super) fn manifest_of(directory: &Path) -> Result<Manifest> {
        let path = directory.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|e| EngineError::io(&path, e))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| damaged(directory, format!("{MANIFEST}: {e}")))?;
        if manifest.version != FORMAT_VERSION {
            return Err(damaged(directory, format!("version {} instead of {FORMAT_VERSION}", manifest.version)));
        }
        Ok(manifest)
    }

    pub(super) fn mapped(directory: &Path, manifest: Manifest) -> Result<Self> {
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
