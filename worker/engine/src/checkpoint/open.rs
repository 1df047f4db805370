//! Opening a checkpoint and asking it for tensors.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use modelprofile_kernels::MappedFile;

use super::{
    Metadata, Role, RowMap, SourceTensor, gguf, gguf_config,
    identity::Identity,
    store::{SourceFile, StoredTensor},
};
use crate::{EngineError, ModelConfig, Result, RopeScaling};

/// Counts above these are no model but a damaged or hostile file. They bound the work and memory of opening one, and
/// keep every product of two of them far from overflow.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;

/// An open checkpoint: the configuration, and every tensor that it demands present and of the right shape.
///
/// # Guarantees
/// Every [`Role`] of [`Role::all`] has a tensor, its shape is the configuration's, and its bytes lie inside a mapped
/// file. Values are checked when they are read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, StoredTensor>,
    roles: BTreeMap<Role, (String, RowMap)>,
    metadata: Option<Metadata>,
    identity: OnceLock<Identity>,
}

impl Checkpoint {
    /// Opens a `.gguf` file.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] for damaged or incomplete files, [`EngineError::Unsupported`] for sound ones that this
    /// build cannot run, [`EngineError::Io`] or [`EngineError::Kernel`] when a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = file_name(path);
        let map = MappedFile::open(path)?;
        let (metadata, tensors) = gguf::parse(&map, &name)?;
        let files = vec![SourceFile { name: name.clone(), map: Arc::new(map) }];
        let factors = match tensors.get(ROPE_FACTORS) {
            Some(stored) => Some(view(&files, ROPE_FACTORS, stored, RowMap::Identity).to_f32()?),
            None => None,
        };
        let config = gguf_config::config(&metadata, &tensors, factors, &name)?;
        check_config(&config, &name)?;
        let roles =
            Role::all(&config).into_iter().map(|role| (role, (role.gguf_name(), role.gguf_row_map(&config)))).collect();
        let checkpoint = Self {
            path: path.to_owned(),
            config,
            files,
            tensors,
            roles,
            metadata: Some(metadata),
            identity: OnceLock::new(),
        };
        checkpoint.check_tensors(&name, &[ROPE_FACTORS])?;
        Ok(checkpoint)
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tensor of a role; `None` when a model of this configuration has none.
    pub fn tensor(&self, role: Role) -> Option<SourceTensor<'_>> {
        let (name, row_map) = self.roles.get(&role)?;
        let (name, stored) = self.tensors.get_key_value(name)?;
        Some(view(&self.files, name, stored, *row_map))
    }

    /// The tensor of a role that must be there.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when a model of this configuration has no such tensor.
    pub fn require(&self, role: Role) -> Result<SourceTensor<'_>> {
        self.tensor(role).ok_or_else(|| EngineError::checkpoint(self.path.display(), format!("no tensor for {role:?}")))
    }

    /// All tensors of the files by name, in the file's own row order (no [`RowMap`]).
    pub fn tensors(&self) -> impl Iterator<Item = SourceTensor<'_>> {
        self.tensors.iter().map(|(name, stored)| view(&self.files, name, stored, RowMap::Identity))
    }

    /// The metadata of a GGUF file; `None` for a directory.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The directory that holds the checkpoint's files.
    pub fn directory(&self) -> &Path {
        if self.metadata.is_some() { self.path.parent().unwrap_or(Path::new(".")) } else { &self.path }
    }

    /// Weights of the model; a tied output layer counts once.
    pub fn parameters(&self) -> u64 {
        self.roles.keys().filter_map(|role| self.tensor(*role)).map(|tensor| tensor.elements() as u64).sum()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> &Identity {
        self.identity.get_or_init(|| Identity::of(self))
    }

    /// Names and bytes of all files, in a stable order.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), &file.map[..]))
    }

    fn check_tensors(&self, file: &str, ignored: &[&str]) -> Result<()> {
        let mut used: Vec<&str> = ignored.to_vec();
        for (role, (name, _)) in &self.roles {
            let Some(stored) = self.tensors.get(name) else {
                return Err(EngineError::checkpoint(file, format!("tensor {name} is missing; the file is incomplete")));
            };
            let (rows, cols) = role.shape(&self.config);
            let vector = rows == 1 && stored.shape == [cols];
            if !vector && stored.shape != [rows, cols] {
                return Err(EngineError::checkpoint(
                    &self.files[stored.file].name,
                    format!(
                        "tensor {name} has the shape {:?}, the configuration demands [{rows}, {cols}]",
                        stored.shape
                    ),
                ));
            }
            used.push(name);
        }
        used.sort_unstable();
        // A tensor that no part of the model reads would change its result: say so instead of answering wrongly.
        match self.tensors.keys().find(|name| used.binary_search(&name.as_str()).is_err()) {
            None => Ok(()),
            Some(name) => Err(EngineError::Unsupported(format!(
                "{file}: tensor {name} has no place in {:?} models",
                self.config.architecture
            ))),
        }
    }
}

/// Divisors of the rotary frequencies in GGUF files of Llama 3.
const ROPE_FACTORS: &str = "rope_freqs.weight";

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A stored tensor with its bytes. The range was checked against the file when the tensor was placed.
fn view<'a>(files: &'a [SourceFile], name: &'a str, stored: &'a StoredTensor, row_map: RowMap) -> SourceTensor<'a> {
    let file = &files[stored.file];
    let (rows, cols) = stored.matrix();
    let bytes = &file.map[stored.offset..stored.offset + stored.len];
    SourceTensor { name, file: &file.name, rows, cols, dtype: stored.dtype, bytes, row_map }
}

/// Refuses configurations that no model has and that the model code need not defend against.
fn check_config(config: &ModelConfig, file: &str) -> Result<()> {
    let bounded = [
        ("layers", config.layers, MAX_LAYERS),
        ("hidden size", config.hidden, MAX_WIDTH),
        ("MLP width", config.intermediate, MAX_WIDTH),
        ("attention heads", config.heads, MAX_LAYERS),
        ("key/value heads", config.kv_heads, MAX_LAYERS),
        ("head size", config.head_dim, MAX_LAYERS),
        ("vocabulary", config.vocab, MAX_WIDTH),
        ("context length", config.max_positions, u32::MAX as usize),
    ];
    for (what, value, most) in bounded {
        if value == 0 || value > most {
            return Err(EngineError::checkpoint(file, format!("{what} is {value}; 1 to {most} are possible")));
        }
    }
    let wrong = |message: String| Err(EngineError::checkpoint(file, message));
    if !config.heads.is_multiple_of(config.kv_heads) {
        return wrong(format!("{} heads are no multiple of {} key/value heads", config.heads, config.kv_heads));
    }
    if !config.head_dim.is_multiple_of(2) {
        return wrong(format!("the head size {} is odd; rotary embedding needs halves", config.head_dim));
    }
    if !(config.rms_epsilon.is_finite() && config.rms_epsilon >= 0.0) {
        return wrong(format!("the RMS epsilon is {}", config.rms_epsilon));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 0.0) {
        return wrong(format!("the rotary base is {}", config.rope_theta));
    }
    if let RopeScaling::Factors(factors) = &config.rope_scaling
        && (factors.len() != config.head_dim / 2 || factors.iter().any(|f| *f <= 0.0))
    {
        return wrong(format!("{ROPE_FACTORS} does not hold {} positive factors", config.head_dim / 2));
    }
    Ok(())
}
