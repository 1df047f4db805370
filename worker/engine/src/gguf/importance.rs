//! What an error in each column of a matrix costs: the mean of the squares of the column's inputs, and llama.cpp's files
//! of it ("importance matrix", imatrix).
//!
//! ```text
//! GGUF form: for each tensor NAME of the model: NAME.in_sum2 = sum x_j^2, NAME.counts = number of inputs
//! older form: tensors:i32, tensors x (len:i32 name calls:i32 columns:i32 f32 x columns), the sums divided by calls
//! ```
//!
//! Both are hostile input: a count is compared with the bytes that are left before anything is allocated for it.

use std::{collections::BTreeMap, path::Path};

use super::writer::{Entry, TensorInfo, Writer};
use crate::{
    EngineError, Result,
    checkpoint::{Role, SourceDtype, gguf},
};

/// The largest importance file that is read; that of a 70B model has 30 MB.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Inputs per chunk that the GGUF form declares.
const CHUNK: u32 = 512;

/// The mean of `x_j^2` over the inputs `x` of each linear layer, one value per column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    columns: BTreeMap<Role, Vec<f32>>,
}

impl Importance {
    /// Means that were measured here.
    ///
    /// # Errors
    /// [`EngineError::Config`] when a value is negative or not finite, with the tensor's name.
    pub fn new(columns: BTreeMap<Role, Vec<f32>>) -> Result<Self> {
        let wrong = |v: &f32| !(v.is_finite() && *v >= 0.0);
        for (role, values) in &columns {
            if let Some(at) = values.iter().position(wrong) {
                let name = role.gguf_name();
                return Err(EngineError::Config(format!("the importance of {name}, column {at}, is {}", values[at])));
            }
        }
        Ok(Self { columns })
    }

    /// The means of a tensor's columns; `None` when it was not measured.
    pub fn get(&self, role: Role) -> Option<&[f32]> {
        self.columns.get(&role).map(Vec::as_slice)
    }

    /// Number of measured tensors.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// True when nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Reads an imatrix file in either form. Tensors of other kinds of models are left out.
    ///
    /// # Errors
    /// [`EngineError::Io`], or [`EngineError::Checkpoint`] for a file that is damaged or says nothing about any tensor of
    /// the supported models.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| EngineError::io(path, e))?.len();
        if size > MAX_FILE_BYTES {
            let limit = MAX_FILE_BYTES >> 20;
            return Err(EngineError::checkpoint(
                path.display(),
                format!("larger than {limit} MiB: no importance matrix"),
            ));
        }
        let bytes = std::fs::read(path).map_err(|e| EngineError::io(path, e))?;
        Self::parse(&bytes, &path.display().to_string())
    }

    fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let columns = if bytes.starts_with(b"GGUF") { sums(bytes, file)? } else { Legacy { bytes, file }.read()? };
        if columns.is_empty() {
            return Err(EngineError::checkpoint(file, "holds no importance of any tensor of the supported models"));
        }
        Self::new(columns).map_err(|error| EngineError::checkpoint(file, error.to_string()))
    }

    /// Writes the GGUF form. `inputs` is the number of inputs (tokens) that the means are over.
    ///
    /// # Errors
    /// [`EngineError::Io`].
    pub fn write(&self, path: &Path, inputs: u32, dataset: &str) -> Result<()> {
        let inputs = inputs.max(1);
        let entries = [
            ("general.type", Entry::text("imatrix")),
            ("imatrix.datasets", Entry::texts([dataset].into_iter())),
            ("imatrix.chunk_count", Entry::unsigned(inputs.div_ceil(CHUNK))),
            ("imatrix.chunk_size", Entry::unsigned(CHUNK)),
        ];
        let entries = entries.map(|(key, entry)| (key.to_owned(), entry));
        let info = |name: String, cols| TensorInfo { name, shape: vec![1, cols], dtype: SourceDtype::F32 };
        let infos: Vec<TensorInfo> = self
            .columns
            .iter()
            .flat_map(|(role, values)| {
                let name = role.gguf_name();
                [info(format!("{name}.in_sum2"), values.len()), info(format!("{name}.counts"), 1)]
            })
            .collect();
        let mut writer = Writer::create(path, &entries, &infos)?;
        for values in self.columns.values() {
            let sums: Vec<u8> = values.iter().flat_map(|mean| (mean * inputs as f32).to_le_bytes()).collect();
            writer.write(&sums)?;
            writer.write(&(inputs as f32).to_le_bytes())?;
        }
        writer.finish().map(drop)
    }

    /// Writes the older form, which llama.cpp before the GGUF form reads. `inputs` and `dataset` as for [`Self::write`].
    ///
    /// # Errors
    /// [`EngineError::Io`].
    pub fn write_legacy(&self, path: &Path, inputs: u32, dataset: &str) -> Result<()> {
        let calls = inputs.div_ceil(CHUNK).max(1);
        let mut out = (self.columns.len() as i32).to_le_bytes().to_vec();
        for (role, values) in &self.columns {
            let name = role.gguf_name();
            out.extend((name.len() as i32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend((calls as i32).to_le_bytes());
            out.extend((values.len() as i32).to_le_bytes());
            out.extend(values.iter().flat_map(|mean| (mean * calls as f32).to_le_bytes()));
        }
        out.extend((calls as i32).to_le_bytes());
        out.extend((dataset.len() as i32).to_le_bytes());
        out.extend(dataset.as_bytes());
        std::fs::write(path, out).map_err(|e| EngineError::io(path, e))
    }
}

/// The GGUF form.
fn sums(bytes: &[u8], file: &str) -> Result<BTreeMap<Role, Vec<f32>>> {
    let (_, tensors) = gguf::float_tensors(bytes, file)?;
    let mut columns = BTreeMap::new();
    for (name, (cols, sums)) in &tensors {
        let Some(tensor) = name.strip_suffix(".in_sum2") else { continue };
        let Some(role) = Role::from_gguf_name(tensor) else { continue };
        let count = match tensors.get(&format!("{tensor}.counts")) {
            Some((1, counts)) if counts.len() == 1 && *cols == sums.len() => counts[0],
            _ => {
                return Err(EngineError::checkpoint(
                    file,
                    format!("{name} is no row of sums with one number in {tensor}.counts"),
                ));
            }
        };
        // A tensor that saw no input says nothing about its columns.
        if count > 0.0 {
            columns.insert(role, sums.iter().map(|sum| sum / count).collect());
        }
    }
    Ok(columns)
}

/// The older form, from its first byte on.
struct Legacy<'a> {
    bytes: &'a [u8],
    file: &'a str,
}

impl<'a> Legacy<'a> {
    fn read(mut self) -> Result<BTreeMap<Role, Vec<f32>>> {
        let mut columns = BTreeMap::new();
        // The smallest possible tensor has three numbers.
        for _ in 0..self.count(12, "tensors")? {
            let len = self.count(1, "characters of a name")?;
            let name = String::from_utf8_lossy(self.take(len)?).into_owned();
            let calls = self.number()?;
            let cols = self.count(4, "columns")?;
            let sums = self.take(cols * 4)?.as_chunks::<4>().0;
            if let Some(role) = Role::from_gguf_name(&name) {
                let calls = calls.max(1) as f32;
                columns.insert(role, sums.iter().map(|sum| f32::from_le_bytes(*sum) / calls).collect());
            }
        }
        Ok(columns)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or_else(|| {
            EngineError::checkpoint(self.file, "the importance matrix ends in the middle; make or download it again")
        })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<i32> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(i32::from_le_bytes(bytes))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.number()?;
        usize::try_from(count).ok().filter(|count| *count <= self.bytes.len() / least).ok_or_else(|| {
            EngineError::checkpoint(
                self.file,
                format!("declares {count} {what}, more than it can hold: damaged, or no importance matrix"),
            )
        })
    }
}

#[cfg(test)]
#[path = "importance_tests.rs"]
mod tests;
