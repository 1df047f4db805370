//! A checkpoint whose weight files were removed once everything was made of them. Configuration, vocabulary and identity
//! stay, which is all that a start with finished artifacts asks for.
//!
//! ```text
//! directory   its small files stay
//! .gguf       its head stays: metadata and tensor directory, without the data
//! Remains     what the removed bytes said: the revision, the rotary factors that a GGUF file keeps as a tensor
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Checkpoint, gguf, identity, open::ROPE_FACTORS};
use crate::{EngineError, Result, artifact::hex};

/// What has to be remembered of a checkpoint to open it without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remains {
    /// [`Checkpoint::revision`] of the whole.
    pub revision: String,
    /// SHA-256, in hex, over what stays: other small files, or another head, do not belong to the revision.
    pub kept: String,
    /// Of a GGUF file; zeros for a directory.
    pub gguf: GgufHead,
}

/// The part of a GGUF file that stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GgufHead {
    /// Bytes before the tensor data.
    pub head: usize,
    /// Bytes of the whole file.
    pub whole: usize,
    /// Bits of the FP32 divisors of the rotary frequencies, if the file has them: JSON keeps integers exactly.
    pub rope_factors: Option<Vec<u32>>,
}

impl GgufHead {
    /// The divisors of the rotary frequencies.
    pub(super) fn factors(&self) -> Option<Vec<f32>> {
        Some(self.rope_factors.as_ref()?.iter().map(|bits| f32::from_bits(*bits)).collect())
    }
}

impl Checkpoint {
    /// What to remember before the weight files are removed.
    ///
    /// # Errors
    /// Those of reading the file's head; [`EngineError::Pruned`] for a checkpoint that has no weights.
    pub fn remains(&self) -> Result<Remains> {
        self.check_weights()?;
        let mut gguf = GgufHead::default();
        if let (Some(_), [file]) = (&self.metadata, &self.files[..]) {
            gguf.head = gguf::parse_head(&file.map, &file.name, file.map.len())?.data;
            gguf.whole = file.map.len();
            let factors = self.named(ROPE_FACTORS).map(|tensor| tensor.to_f32()).transpose()?;
            gguf.rope_factors = factors.map(|factors| factors.into_iter().map(f32::to_bits).collect());
        }
        Ok(Remains { revision: self.revision().to_owned(), kept: self.kept(gguf.head)?, gguf })
    }

    /// Opens what is left of a checkpoint: a directory without its weight files, or the head of a `.gguf` file. It has no
    /// tensors, and [`Self::revision`] is that of the whole.
    ///
    /// # Errors
    /// As [`Self::open`]; [`EngineError::Checkpoint`] when what stays is not what `remains` was made of.
    pub fn open_pruned(path: &Path, remains: &Remains) -> Result<Self> {
        let checkpoint = Self::open_as(path, Some(remains))?;
        if checkpoint.kept(remains.gguf.head)? == remains.kept {
            return Ok(checkpoint);
        }
        Err(EngineError::checkpoint(path.display(), "its files have changed since its weights were pruned"))
    }

    /// Opens what describes a model: the small files of a directory whose weights need not be there, or a whole `.gguf` file.
    /// A directory's checkpoint has no tensors, nothing is built of it, and its [`Self::revision`] is no content's.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_description(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::open(path);
        }
        let revision = format!("description of {}", path.display());
        Self::open_as(path, Some(&Remains { revision, kept: String::new(), gguf: GgufHead::default() }))
    }

    /// Holds that there are weights to read.
    ///
    /// # Errors
    /// [`EngineError::Pruned`] when [`Self::open_pruned`] opened it.
    pub fn check_weights(&self) -> Result<()> {
        if self.pruned { Err(EngineError::Pruned { name: self.name.clone() }) } else { Ok(()) }
    }

    /// SHA-256 over the `head` bytes of a GGUF file, or over the small files of a directory.
    fn kept(&self, head: usize) -> Result<String> {
        match (&self.metadata, &self.files[..]) {
            (Some(_), [file]) => {
                let bytes = file.map.get(..head);
                let bytes = bytes.ok_or_else(|| EngineError::checkpoint(&file.name, "the head is cut off"))?;
                Ok(hex(&Sha256::digest(bytes)))
            }
            _ => Ok(identity::revision(self.side_files.iter())),
        }
    }
}

#[cfg(test)]
#[path = "pruned_tests.rs"]
mod tests;
