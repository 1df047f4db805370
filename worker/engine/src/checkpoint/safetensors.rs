//! The weights of a Hugging Face directory: one safetensors file, or shards with an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    sync::Arc,
};

use modelprofile_kernels::MappedFile;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use serde::Deserialize;

use super::{
    SourceDtype,
    store::{SourceFile, StoredCodes, StoredTensor},
};
use crate::{EngineError, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The length of the header, which precedes it.
const PREFIX: usize = 8;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight files of a directory and what they hold.
#[derive(Debug, Default)]
pub(super) struct Weights {
    pub(super) files: Vec<SourceFile>,
    /// Tensors of values.
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    /// Tensors of codes, which only quantized checkpoints have.
    pub(super) codes: BTreeMap<String, StoredCodes>,
}

/// Maps every weight file of the directory and finds its tensors.
pub(super) fn open(directory: &Path) -> Result<Weights> {
    let (names, index) = weight_files(directory)?;
    let Weights { mut files, mut tensors, mut codes } = Weights::default();
    for name in names {
        let path = directory.join(&name);
        if !path.is_file() {
            return Err(EngineError::checkpoint(&name, format!("{INDEX} names this file, but it is missing")));
        }
        let map = MappedFile::open(&path)?;
        for (tensor, stored) in parse(&map, &name, files.len())? {
            let twice = tensors.contains_key(&tensor) || codes.contains_key(&tensor);
            match stored {
                Placed::Values(stored) => drop(tensors.insert(tensor.clone(), stored)),
                Placed::Codes(stored) => drop(codes.insert(tensor.clone(), stored)),
            }
            if twice {
                return Err(EngineError::checkpoint(&name, format!("tensor {tensor} is in another shard too")));
            }
        }
        files.push(SourceFile { name, map: Arc::new(map) });
    }
    for (tensor, file) in index.map(|index| index.weight_map).unwrap_or_default() {
        let place = tensors.get(&tensor).map(|t| t.file).or_else(|| codes.get(&tensor).map(|t| t.file));
        if place.is_none_or(|place| files[place].name != file) {
            return Err(EngineError::checkpoint(&file, format!("tensor {tensor} is missing; {INDEX} puts it here")));
        }
    }
    Ok(Weights { files, tensors, codes })
}

/// A tensor by what its type holds.
enum Placed {
    Values(StoredTensor),
    Codes(StoredCodes),
}

/// The files to read, by name, and the index if there is one.
fn weight_files(directory: &Path) -> Result<(BTreeSet<String>, Option<Index>)> {
    if directory.join(SINGLE).is_file() {
        return Ok((BTreeSet::from([SINGLE.to_owned()]), None));
    }
    let path = directory.join(INDEX);
    if !path.is_file() {
        let place = directory.display();
        return Err(EngineError::checkpoint(
            place,
            format!(
                "neither {SINGLE} nor {INDEX} is here; other weight files are not read, convert them to safetensors"
            ),
        ));
    }
    let bytes = MappedFile::open(&path)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| EngineError::checkpoint(INDEX, error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.values().cloned().collect();
    // The index is downloaded: it must not lead out of its directory.
    let plain = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
    };
    match names.iter().find(|name| !plain(name)) {
        None => Ok((names, Some(index))),
        Some(name) => Err(EngineError::checkpoint(INDEX, format!("{name:?} is not a plain file name"))),
    }
}

fn parse(bytes: &[u8], file: &str, index: usize) -> Result<Vec<(String, Placed)>> {
    let damaged =
        |error| EngineError::checkpoint(file, format!("{error}; it is truncated or damaged, download it again"));
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let data = PREFIX + header;
    metadata.tensors().into_iter().map(|(name, info)| place(name, info, bytes.len(), data, file, index)).collect()
}

/// Checks a tensor's range against its shape and the file once more: reading trusts the result.
fn place(
    name: String,
    info: &TensorInfo,
    file_len: usize,
    data: usize,
    file: &str,
    index: usize,
) -> Result<(String, Placed)> {
    let dtype = match info.dtype {
        Dtype::F32 => Ok(SourceDtype::F32),
        Dtype::F16 => Ok(SourceDtype::F16),
        Dtype::BF16 => Ok(SourceDtype::Bf16),
        codes @ (Dtype::F8_E4M3 | Dtype::I8 | Dtype::U8) => Err((codes, 1)),
        codes @ Dtype::I32 => Err((codes, 4)),
        codes @ Dtype::I64 => Err((codes, 8)),
        other => {
            return Err(EngineError::Unsupported(format!(
                "{file}: tensor {name} is {other:?}; directories are read with F32, F16 and BF16, and codes of quantized \
                 layers with F8_E4M3, I8, U8, I32 and I64"
            )));
        }
    };
    let bytes = |shape: &[usize]| match dtype {
        Ok(dtype) => StoredTensor::byte_len(shape, dtype),
        Err((_, size)) => shape.iter().try_fold(size, |bytes: usize, dim| bytes.checked_mul(*dim)),
    };
    let shape = if info.shape.is_empty() { vec![1] } else { info.shape.clone() };
    let (start, end) = info.data_offsets;
    let placed = data.checked_add(start).zip(data.checked_add(end)).and_then(|(start, end)| {
        let len = end.checked_sub(start)?;
        (end <= file_len && bytes(&shape) == Some(len)).then_some((start, len))
    });
    match placed {
        Some((offset, len)) => {
            let placed = match dtype {
                Ok(dtype) => Placed::Values(StoredTensor { file: index, dtype, shape, offset, len }),
                Err((dtype, _)) => Placed::Codes(StoredCodes { file: index, dtype, shape, offset, len }),
            };
            Ok((name, placed))
        }
        None => Err(EngineError::checkpoint(
            file,
            format!("tensor {name} of shape {shape:?} does not fit its bytes {start}..{end}"),
        )),
    }
}
