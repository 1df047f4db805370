//! Opening a checkpoint and asking it for tensors.

mod check;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use check::check_config;
use modelprofile_kernels::MappedFile;

use super::{
    Metadata, Remains, Role, RowMap, SourceTensor, gguf, gguf_config, hugging_face, identity,
    quantized::{self, Quantization, StoredWeight, parts::Tensors},
    safetensors::{self, Weights},
    store::{SourceFile, StoredCodes, StoredTensor},
};
use crate::{EngineError, ModelConfig, Result};

/// An open checkpoint: the configuration, and every tensor that it demands present and of the right shape; or without any
/// tensor, when [`Self::open_pruned`] opened it.
///
/// # Guarantees
/// Every [`Role`] of [`Role::all`] has a tensor, or, in a quantized checkpoint, the tensors of a quantized layer; their
/// shapes are the configuration's, and their bytes lie inside a mapped file. Values are checked when they are read.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) name: String,
    licence: Option<String>,
    directory: PathBuf,
    pub(super) config: ModelConfig,
    /// The files that hold tensors.
    pub(super) files: Vec<SourceFile>,
    /// The other files that [`Self::revision`] covers.
    pub(super) side_files: Vec<SourceFile>,
    tensors: BTreeMap<String, StoredTensor>,
    /// The codes of quantized layers.
    codes: BTreeMap<String, StoredCodes>,
    quantization: Option<Quantization>,
    roles: BTreeMap<Role, (String, RowMap)>,
    pub(super) metadata: Option<Metadata>,
    revision: OnceLock<String>,
    /// The weight files are gone; `tensors` and `codes` are empty then.
    pub(super) pruned: bool,
}

impl Checkpoint {
    /// Opens a `.gguf` file, or a Hugging Face directory: `config.json`, `model.safetensors` or its shards with their index,
    /// `generation_config.json` if there.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] for damaged or incomplete files, [`EngineError::Unsupported`] for sound ones that this
    /// build cannot run, [`EngineError::Io`] or [`EngineError::Kernel`] when a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, None)
    }

    /// Opens what is whole, or what `remains` of it.
    pub(super) fn open_as(path: &Path, remains: Option<&Remains>) -> Result<Self> {
        if path.is_dir() { Self::open_directory(path, remains) } else { Self::open_gguf(path, remains) }
    }

    fn open_gguf(path: &Path, remains: Option<&Remains>) -> Result<Self> {
        let file = file_name(path);
        let map = MappedFile::open(path)?;
        let whole = remains.map_or(map.len(), |remains| remains.gguf.whole);
        let gguf::Header { metadata, mut tensors, .. } = gguf::parse_head(&map, &file, whole)?;
        let files = vec![SourceFile { name: file.clone(), map: Arc::new(map) }];
        let factors = match (remains, tensors.get(ROPE_FACTORS)) {
            (Some(remains), _) => remains.gguf.factors(),
            (None, Some(stored)) => Some(view(&files, ROPE_FACTORS, stored, RowMap::Identity).to_f32()?),
            (None, None) => None,
        };
        let config = gguf_config::config(&metadata, &tensors, factors, &file)?;
        check_config(&config, &file)?;
        if remains.is_some() {
            // Their bytes are not there.
            tensors.clear();
        }
        let place = |role: Role| (role, (role.gguf_name(), role.gguf_row_map(&config)));
        let checkpoint = Self {
            roles: Role::all(&config).into_iter().map(place).collect(),
            name: metadata.text("general.name").unwrap_or(file.trim_end_matches(".gguf")).to_owned(),
            licence: metadata.text("general.license").and_then(identity::canonical_licence),
            directory: path.parent().unwrap_or(Path::new("")).to_owned(),
            config,
            files,
            side_files: Vec::new(),
            tensors,
            codes: BTreeMap::new(),
            quantization: None,
            metadata: Some(metadata),
            revision: remains.map_or_else(OnceLock::new, |remains| remains.revision.clone().into()),
            pruned: remains.is_some(),
        };
        if !checkpoint.pruned {
            checkpoint.check_tensors(&file, |name| name == ROPE_FACTORS)?;
        }
        Ok(checkpoint)
    }

    fn open_directory(path: &Path, remains: Option<&Remains>) -> Result<Self> {
        let mut side_files = Vec::new();
        for name in identity::SIDE_FILES.into_iter().filter(|name| path.join(name).is_file()) {
            let map = Arc::new(MappedFile::open(&path.join(name))?);
            side_files.push(SourceFile { name: name.to_owned(), map });
        }
        let side = |name: &str| side_files.iter().find(|file| file.name == name).map(|file| &**file.map);
        let text = side(hugging_face::CONFIG)
            .ok_or_else(|| EngineError::checkpoint(path.display(), format!("{} is missing", hugging_face::CONFIG)))?;
        let config = hugging_face::config(text, side(hugging_face::GENERATION_CONFIG))?;
        check_config(&config, hugging_face::CONFIG)?;
        let quantization = Quantization::parse(text, side(quantized::HF_QUANT_CONFIG), &config)?;
        let Weights { files, tensors, codes } = match remains {
            None => safetensors::open(path)?,
            Some(_) => Weights::default(),
        };
        let place = |role: Role| (role, (role.hugging_face_name(), RowMap::Identity));
        let tied = config.tied_embeddings;
        let checkpoint = Self {
            roles: Role::all(&config).into_iter().map(place).collect(),
            name: identity::directory_name(path),
            licence: identity::readme_licence(path),
            directory: path.to_owned(),
            config,
            files,
            side_files,
            tensors,
            codes,
            quantization,
            metadata: None,
            revision: remains.map_or_else(OnceLock::new, |remains| remains.revision.clone().into()),
            pruned: remains.is_some(),
        };
        if checkpoint.pruned {
            return Ok(checkpoint);
        }
        // Old files carry the rotary frequencies, which follow from the configuration, or a copy of a tied output layer.
        checkpoint.check_tensors(&path.display().to_string(), |name| {
            name.ends_with(".rotary_emb.inv_freq") || (tied && name == Role::Output.hugging_face_name())
        })?;
        Ok(checkpoint)
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How the linear layers are quantized; `None` for a checkpoint of values, and for GGUF files, whose blocks are types
    /// of single tensors.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The quantized weight of a role, exactly as stored; `None` where the checkpoint keeps values, which
    /// [`Self::tensor`] gives.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] for numbers that make no sense (NaN, a group outside the layer), by tensor;
    /// [`EngineError::Unsupported`] for inputs that the layer scales.
    pub fn quantized(&self, role: Role) -> Result<Option<StoredWeight>> {
        match self.quantized_layer(role) {
            None => Ok(None),
            Some((quantization, module)) => {
                let (n, k) = role.shape(&self.config);
                quantization.read(&self.all().module(&module), n, k).map(Some)
            }
        }
    }

    /// Bytes that a role takes in the files.
    pub fn stored_bytes(&self, role: Role) -> u64 {
        let (n, k) = role.shape(&self.config);
        match self.quantized_layer(role) {
            None => self.tensor(role).map_or(0, |tensor| tensor.bytes.len() as u64),
            Some((quantization, module)) => {
                quantization.parts(n, k).map_or(0, |parts| self.all().module(&module).bytes(&parts))
            }
        }
    }

    /// The tensors of codes in a quantized checkpoint: name, type, shape and bytes.
    pub fn codes(&self) -> impl Iterator<Item = (&str, String, &[usize], u64)> {
        let codes = self.codes.iter();
        codes.map(|(name, t)| (name.as_str(), format!("{:?}", t.dtype), t.shape.as_slice(), t.len as u64))
    }

    fn all(&self) -> Tensors<'_> {
        Tensors { files: &self.files, floats: &self.tensors, codes: &self.codes }
    }

    /// The name of a role's layer if the files hold it quantized.
    fn quantized_layer(&self, role: Role) -> Option<(&Quantization, String)> {
        let absent = |_: &String| !self.pruned && !self.tensors.contains_key(&role.hugging_face_name());
        let module = role.module().filter(absent)?;
        Some((self.quantization.as_ref()?, module))
    }

    /// The tensor of a role; `None` when a model of this configuration has none, the checkpoint has it quantized, or the
    /// weights were pruned.
    pub fn tensor(&self, role: Role) -> Option<SourceTensor<'_>> {
        let (name, row_map) = self.roles.get(&role)?;
        let (name, stored) = self.tensors.get_key_value(name)?;
        Some(view(&self.files, name, stored, *row_map))
    }

    /// The tensor of a role that must be there.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when a model of this configuration has no such tensor; [`EngineError::Pruned`] when there
    /// are no weights at all.
    pub fn require(&self, role: Role) -> Result<SourceTensor<'_>> {
        self.check_weights()?;
        self.tensor(role).ok_or_else(|| EngineError::checkpoint(&self.name, format!("no tensor for {role:?}")))
    }

    /// Gives back the memory of the pages that hold a role's tensor; they are read again when they are needed.
    pub fn release(&self, role: Role) {
        if let Some((name, _)) = self.roles.get(&role) {
            self.release_named(name);
        }
        if let Some((_, module)) = self.quantized_layer(role) {
            let parts = self.codes.range(module.clone()..).take_while(|(name, _)| name.starts_with(&module));
            for (_, part) in parts {
                self.files[part.file].map.release(part.offset, part.len);
            }
        }
    }

    /// [`Self::release`] for a tensor by its name in the files.
    pub fn release_named(&self, name: &str) {
        if let Some(stored) = self.tensors.get(name)
            && let Some(file) = self.files.get(stored.file)
        {
            file.map.release(stored.offset, stored.len);
        }
    }

    /// The tensor of values of this name, whatever its role.
    pub(crate) fn named(&self, name: &str) -> Option<SourceTensor<'_>> {
        let (name, stored) = self.tensors.get_key_value(name)?;
        Some(view(&self.files, name, stored, RowMap::Identity))
    }

    /// All tensors of the files by name, in the file's own row order (no [`RowMap`]).
    pub fn tensors(&self) -> impl Iterator<Item = SourceTensor<'_>> {
        self.tensors.iter().map(|(name, stored)| view(&self.files, name, stored, RowMap::Identity))
    }

    /// The metadata of a GGUF file; `None` for a directory.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The metadata of a GGUF file as stored, in its order: each key with the bytes of its value's type and value. Empty for a
    /// directory.
    pub fn gguf_entries(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let map = self.files.first().map(|file| &**file.map).unwrap_or_default();
        let places = self.metadata.iter().flat_map(Metadata::places);
        places.map(move |(key, place)| (key, map.get(place).unwrap_or_default()))
    }

    /// The directory that holds the checkpoint's files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The model's name: `general.name` of a GGUF file, else the name of the file (without `.gguf`) or directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The licence that the checkpoint declares, lower-case: `general.license`, or `license` in the README's front matter. `None` when it
    /// declares none.
    pub fn licence(&self) -> Option<&str> {
        self.licence.as_deref()
    }

    /// The content's identity: SHA-256, in hex, over names, sizes and bytes of the files that decide what the model answers.
    ///
    /// The first call reads every file once; later ones are free.
    pub fn revision(&self) -> &str {
        self.revision.get_or_init(|| identity::revision(self.files.iter().chain(&self.side_files)))
    }

    /// Weights of the model; a tied output layer counts once.
    pub fn parameters(&self) -> u64 {
        let elements = |role: &Role| {
            let (n, k) = role.shape(&self.config);
            (n * k) as u64
        };
        self.roles.keys().map(elements).sum()
    }
}

/// Divisors of the rotary frequencies in GGUF files of Llama 3.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

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
