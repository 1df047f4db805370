//! The GGUF container, versions 2 and 3: metadata, tensor directory, data section.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 entries:u64
//! entries x (key:string type:u32 value)            -> Metadata
//! tensors x (name:string dims:u32 dim:u64.. type:u32 offset:u64)
//! padding to general.alignment (32), then the data, offsets relative to it
//! ```
//!
//! The file is hostile input: a count or length is compared with the bytes that are left before anything is allocated
//! for it, and every sum and product is checked.

use std::collections::BTreeMap;

use super::{
    SourceDtype,
    gguf_metadata::{Metadata, Value},
    store::StoredTensor,
};
use crate::{EngineError, Result};

/// Nested arrays deeper than this are refused; no known key nests at all.
const MAX_DEPTH: u32 = 3;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;

/// Reads the header of a GGUF file. Tensor offsets in the result are relative to the start of the file and in bounds.
pub(super) fn parse(bytes: &[u8], file: &str) -> Result<(Metadata, BTreeMap<String, StoredTensor>)> {
    let header = parse_head(bytes, file, bytes.len())?;
    Ok((header.metadata, header.tensors))
}

/// What stands before the data of a GGUF file.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// Places relative to the start of the file.
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    /// First byte of the data section.
    pub(super) data: usize,
}

/// [`parse`] for a file of which only the beginning may be there. Tensors are in bounds of `whole`, the bytes of the
/// complete file, and not of `bytes`.
pub(super) fn parse_head(bytes: &[u8], file: &str, whole: usize) -> Result<Header> {
    let mut reader = Reader { bytes, at: 0, file, whole };
    if reader.take(4, "the magic")? != b"GGUF" {
        return Err(reader.error("does not start with the GGUF magic"));
    }
    let version = reader.u32("the version")?;
    if (1..=0xff).contains(&version.swap_bytes()) {
        return Err(EngineError::Unsupported(format!("{file}: a big-endian GGUF file; convert it to little-endian")));
    }
    if !(2..=3).contains(&version) {
        return Err(EngineError::Unsupported(format!("{file}: GGUF version {version}; versions 2 and 3 are read")));
    }
    // The smallest possible entries: an empty name, and a one-byte value or a scalar tensor.
    let tensors = reader.count(24, "tensors")?;
    let entries = reader.count(8 + 4 + 1, "metadata entries")?;

    let mut metadata = Metadata::default();
    for _ in 0..entries {
        let key = reader.text("a metadata key")?;
        let start = reader.at;
        let value = reader.typed_value(&key)?;
        metadata.places.push((key.clone(), start..reader.at));
        if metadata.entries.insert(key.clone(), value).is_some() {
            return Err(reader.error(format!("metadata key {key} appears twice")));
        }
    }

    let mut infos = Vec::with_capacity(tensors);
    for _ in 0..tensors {
        infos.push(reader.tensor_info()?);
    }
    let data = data_start(&reader, &metadata)?;
    let mut stored = BTreeMap::new();
    for info in infos {
        let (name, tensor) = reader.place(info, data)?;
        if stored.insert(name.clone(), tensor).is_some() {
            return Err(reader.error(format!("tensor {name} appears twice")));
        }
    }
    Ok(Header { metadata, tensors: stored, data: data.start })
}

fn data_start(reader: &Reader<'_>, metadata: &Metadata) -> Result<Data> {
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(_) => metadata
            .unsigned("general.alignment")
            .and_then(|a| usize::try_from(a).ok())
            .filter(|a| a.is_power_of_two() && *a <= 1 << 20)
            .ok_or_else(|| reader.error("general.alignment is not a power of two"))?,
    };
    let start = reader.at.checked_next_multiple_of(alignment).ok_or_else(|| reader.error("the header is too long"))?;
    Ok(Data { start, alignment })
}

#[derive(Clone, Copy)]
struct Data {
    start: usize,
    alignment: usize,
}

struct TensorInfo {
    name: String,
    /// Row-major: the slowest dimension first (GGUF stores them the other way round).
    shape: Vec<usize>,
    dtype: SourceDtype,
    offset: u64,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
    /// Bytes of the complete file.
    whole: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>) -> EngineError {
        EngineError::checkpoint(self.file, message)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let taken = rest.get(..len).ok_or_else(|| {
            self.error(format!("the file ends inside {what} (byte {}); download it again", self.bytes.len()))
        })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each: more than the file can hold is refused.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / least;
        usize::try_from(count).ok().filter(|c| *c <= room).ok_or_else(|| {
            self.error(format!("declares {count} {what}, more than the file can hold; it is truncated or damaged"))
        })
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.count(1, what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }

    fn typed_value(&mut self, key: &str) -> Result<Value> {
        let kind = self.u32(key)?;
        self.value(kind, key, 0)
    }

    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.flag(key)?),
            8 => Value::Text(self.text(key)?),
            9 => self.list(key, depth)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.error(format!("metadata key {key} has the unknown type {other}"))),
        })
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.array::<1>(key)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(format!("metadata key {key} has {other} where a flag is 0 or 1"))),
        }
    }

    fn list(&mut self, key: &str, depth: u32) -> Result<Value> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("metadata key {key} nests arrays more than {MAX_DEPTH} deep")));
        }
        let kind = self.u32(key)?;
        let least = match kind {
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => 1,
        };
        let count = self.count(least, key)?;
        let mut items = (0..count).map(|_| self.value(kind, key, depth + 1));
        Ok(match kind {
            0..=5 | 11 => Value::Integers(collect(count, items.by_ref(), |value| match value {
                Value::Unsigned(v) => i64::try_from(v).ok(),
                Value::Signed(v) => Some(v),
                _ => None,
            })?),
            6 => Value::Floats(collect(count, items.by_ref(), |value| match value {
                // Widened from FP32 a moment ago: exact.
                Value::Float(v) => Some(v as f32),
                _ => None,
            })?),
            8 => Value::Texts(collect(count, items.by_ref(), |value| match value {
                Value::Text(v) => Some(v),
                _ => None,
            })?),
            _ => Value::List(items.collect::<Result<_>>()?),
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.text("a tensor's name")?;
        let dims = self.u32(&name)?;
        if dims == 0 || dims > MAX_DIMS {
            return Err(self.error(format!("tensor {name} has {dims} dimensions; 1 to {MAX_DIMS} are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = self.u64(&name)?;
            let dim = usize::try_from(dim).ok().filter(|d| *d > 0);
            shape.push(dim.ok_or_else(|| self.error(format!("tensor {name} has a dimension of 0 or beyond memory")))?);
        }
        shape.reverse();
        let kind = self.u32(&name)?;
        let dtype = dtype(kind).ok_or_else(|| {
            EngineError::Unsupported(format!(
                "{}: tensor {name} has the ggml type {}; readable are F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K",
                self.file,
                type_name(kind)
            ))
        })?;
        Ok(TensorInfo { name, shape, dtype, offset: self.u64("a tensor's offset")? })
    }

    fn place(&self, info: TensorInfo, data: Data) -> Result<(String, StoredTensor)> {
        let TensorInfo { name, shape, dtype, offset } = info;
        let len = StoredTensor::byte_len(&shape, dtype).ok_or_else(|| {
            self.error(format!("tensor {name} has the impossible shape {shape:?} for {}", dtype.name()))
        })?;
        let start = usize::try_from(offset)
            .ok()
            .filter(|o| o.is_multiple_of(data.alignment))
            .and_then(|o| o.checked_add(data.start));
        let start = start.ok_or_else(|| self.error(format!("tensor {name} has the impossible offset {offset}")))?;
        match start.checked_add(len) {
            Some(end) if end <= self.whole => {
                Ok((name, StoredTensor { file: 0, dtype, shape, offset: start, len }))
            }
            _ => Err(self.error(format!(
                "tensor {name} needs {len} bytes from byte {start}, the file has {}; it is truncated, download it again",
                self.whole
            ))),
        }
    }
}

/// Gathers values that the reader made of one kind; `count` was checked against the file's size.
fn collect<T>(
    count: usize,
    items: impl Iterator<Item = Result<Value>>,
    convert: impl Fn(Value) -> Option<T>,
) -> Result<Vec<T>> {
    let mut out = Vec::with_capacity(count);
    for item in items {
        out.extend(convert(item?));
    }
    Ok(out)
}

/// Numbers of the types in tensor directories.
const TYPES: [(u32, SourceDtype); 11] = [
    (0, SourceDtype::F32),
    (1, SourceDtype::F16),
    (2, SourceDtype::Q4_0),
    (3, SourceDtype::Q4_1),
    (6, SourceDtype::Q5_0),
    (7, SourceDtype::Q5_1),
    (8, SourceDtype::Q8_0),
    (12, SourceDtype::Q4_K),
    (13, SourceDtype::Q5_K),
    (14, SourceDtype::Q6_K),
    (30, SourceDtype::Bf16),
];

fn dtype(kind: u32) -> Option<SourceDtype> {
    TYPES.into_iter().find(|(number, _)| *number == kind).map(|(_, dtype)| dtype)
}

/// The number of a type in a tensor directory.
pub(crate) fn type_number(dtype: SourceDtype) -> u32 {
    TYPES.into_iter().find(|(_, known)| *known == dtype).map_or(0, |(number, _)| number)
}

/// Columns and values of the F32 tensors of a GGUF file that is no model (an importance matrix).
pub(crate) type FloatTensors = BTreeMap<String, (usize, Vec<f32>)>;

/// Metadata and F32 tensors of a GGUF file that is no model.
pub(crate) fn float_tensors(bytes: &[u8], file: &str) -> Result<(Metadata, FloatTensors)> {
    let (metadata, tensors) = parse(bytes, file)?;
    let floats = |(name, stored): (String, StoredTensor)| {
        let values = bytes.get(stored.offset..stored.offset + stored.len).unwrap_or_default();
        let values = values.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
        (name, (stored.matrix().1, values))
    };
    let is_float = |(_, stored): &(String, StoredTensor)| stored.dtype == SourceDtype::F32;
    Ok((metadata, tensors.into_iter().filter(is_float).map(floats).collect()))
}

/// Names of the types that users meet and this reader does not know.
fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return other.to_string(),
    };
    name.to_owned()
}
