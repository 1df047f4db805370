//! Artifacts: the quantized form of a checkpoint for one profile, found again at the next start.
//!
//! ```text
//! CACHE/artifacts/KEY/manifest.json   what is inside, with the checksum of
//! CACHE/artifacts/KEY/packed-cpu.bin  all weights in the backend's layout, mapped at load, layer after layer
//! CACHE/artifacts/KEY/model.safetensors, config.json   the same weights for other tools, with the tokenizer's files
//! CACHE/artifacts/KEY.lock            held while one process builds it
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `build` | quantizes tensor by tensor, or layer by layer, and writes the files |
//! | `packed` | the packed file as it grows |
//! | `stream` | a file written and hashed beside the work that makes its bytes |
//! | `journal` | how far a build has come, for the one that goes on after a kill |
//! | `tensors`, `config` | the files for other tools, in the compressed-tensors layout: weights, configuration |
//! | [`store`] | keys, lookup, locks |
//! | `opened` | an artifact that is there: verified, mapped, read from |
//! | `digest` | SHA-256 of files |
//! | `find` | lookup without the checkpoint, which may be pruned meanwhile |

pub(crate) mod build;
mod config;
mod digest;
mod find;
mod journal;
mod opened;
mod packed;
pub mod store;
mod stream;
mod tensors;

use std::{collections::BTreeMap, path::Path};

use modelprofile_kernels::WeightKind;
use serde::{Deserialize, Serialize};

pub(crate) use config::scheme;
pub(crate) use digest::hex;
pub use find::{Finder, Found};
pub use opened::{Artifact, check_files};
pub use store::Store;

use crate::{EngineError, Result, quantize::BlockTypes};

/// Changes when the quantizer or a file's layout changes: old artifacts are then rebuilt under a new key.
pub const FORMAT_VERSION: u32 = 4;

/// Contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// Key, as the directory is named.
    pub key: String,
    /// Name of the source checkpoint.
    pub source: String,
    /// Content identity of the source checkpoint.
    pub revision: String,
    /// Licence that the source declares; quantizing changes nothing of it.
    pub license: Option<String>,
    /// Canonical weight format.
    pub format: String,
    /// Tensors of the source that were quantized already and were rounded a second time.
    #[serde(default, skip_serializing_if = "BlockTypes::is_empty")]
    pub source_quantization: BlockTypes,
    /// SHA-256 of the packed file.
    pub sha256: String,
    /// Length of the packed file.
    pub bytes: u64,
    /// SHA-256 of the files for other tools, which only [`check_files`] looks at: the engine never reads them.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Packed tensors, in file order.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// The manifest in a directory; `None` where there is none: the directory is no artifact.
    ///
    /// # Errors
    /// [`EngineError::Artifact`] when it is damaged, or of another version's form.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(directory.join(store::MANIFEST)) else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| EngineError::Artifact {
            path: directory.display().to_string(),
            message: format!("{}: {e}", store::MANIFEST),
        })
    }
}

/// One tensor in the packed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name, e.g. `layers.3.qkv`.
    pub name: String,
    /// Storage.
    pub kind: EntryKind,
    /// Output features, or 1 for a vector.
    pub n: usize,
    /// Input features, or the length of a vector.
    pub k: usize,
    /// Start in the packed file, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Storage of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// FP32 vector (norm gains, biases).
    F32,
    /// See [`WeightKind::Bf16`].
    Bf16,
    /// See [`WeightKind::Fp8`].
    Fp8,
    /// See [`WeightKind::Fp8Static`].
    Fp8Static,
    /// See [`WeightKind::Fp8Block`].
    Fp8Block,
    /// See [`WeightKind::Int8`].
    Int8,
    /// See [`WeightKind::Int8Outliers`].
    Int8Outliers {
        /// Columns in BF16.
        columns: u16,
    },
    /// See [`WeightKind::Int4`].
    Int4 {
        /// Inputs per scale.
        group: u16,
    },
    /// See [`WeightKind::Int8Group`].
    Int8Group {
        /// Inputs per scale.
        group: u16,
    },
}

impl EntryKind {
    /// The weight kind; `None` for a vector.
    pub fn weight(self) -> Option<WeightKind> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(WeightKind::Bf16),
            Self::Fp8 => Some(WeightKind::Fp8),
            Self::Fp8Static => Some(WeightKind::Fp8Static),
            Self::Fp8Block => Some(WeightKind::Fp8Block),
            Self::Int8 => Some(WeightKind::Int8),
            Self::Int8Outliers { columns } => Some(WeightKind::Int8Outliers { columns }),
            Self::Int4 { group } => Some(WeightKind::Int4 { group }),
            Self::Int8Group { group } => Some(WeightKind::Int8Group { group }),
        }
    }
}

impl From<WeightKind> for EntryKind {
    fn from(kind: WeightKind) -> Self {
        match kind {
            WeightKind::Bf16 => Self::Bf16,
            WeightKind::Fp8 => Self::Fp8,
            WeightKind::Fp8Static => Self::Fp8Static,
            WeightKind::Fp8Block => Self::Fp8Block,
            WeightKind::Int8 => Self::Int8,
            WeightKind::Int8Outliers { columns } => Self::Int8Outliers { columns },
            WeightKind::Int4 { group } => Self::Int4 { group },
            WeightKind::Int8Group { group } => Self::Int8Group { group },
        }
    }
}

/// Progress of a preparation, for a bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Bytes of source weights read so far.
    pub done: u64,
    /// Bytes of source weights in all.
    pub total: u64,
    /// "quantizing layer 3 of 30".
    pub activity: String,
}
