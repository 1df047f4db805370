//! The GGUF container, version 3, written as a stream.
//!
//! ```text
//! "GGUF" 3:u32 tensors:u64 entries:u64
//! entries x (key:string type:u32 value)
//! tensors x (name:string dims:u32 dim:u64.. type:u32 offset:u64)
//! padding to 32, then the tensors, each padded to 32
//! ```
//!
//! Places of tensors follow from their shapes, so the header is complete before the first tensor is computed. The file
//! appears under its name only when it is whole and on disk.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::{
    EngineError, Result,
    checkpoint::{SourceDtype, gguf::type_number},
};

/// `general.alignment` of a file that does not say.
const ALIGNMENT: usize = 32;

/// A metadata value as stored: the number of its type, then its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry(Vec<u8>);

impl Entry {
    /// Type and value as another file stores them.
    pub(super) fn stored(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// An unsigned number of 32 bits, which readers expect of all counts and ids.
    pub(super) fn unsigned(value: u32) -> Self {
        Self::new(4, &value.to_le_bytes())
    }

    /// An FP32 number.
    pub(super) fn float(value: f32) -> Self {
        Self::new(6, &value.to_le_bytes())
    }

    /// A flag.
    pub(super) fn flag(value: bool) -> Self {
        Self::new(7, &[u8::from(value)])
    }

    /// Text.
    pub(super) fn text(value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        Self::new(8, &bytes)
    }

    /// An array of signed numbers of 32 bits.
    pub(super) fn integers(values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::array(5, values.len(), &bytes)
    }

    /// An array of text.
    pub(super) fn texts<'a>(values: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let (count, mut bytes) = (values.len(), Vec::new());
        for value in values {
            text(&mut bytes, value);
        }
        Self::array(8, count, &bytes)
    }

    fn array(kind: u32, count: usize, bytes: &[u8]) -> Self {
        let mut out = Self::new(9, &kind.to_le_bytes());
        out.0.extend((count as u64).to_le_bytes());
        out.0.extend(bytes);
        out
    }

    fn new(kind: u32, bytes: &[u8]) -> Self {
        Self([&kind.to_le_bytes(), bytes].concat())
    }
}

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Slowest dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: SourceDtype,
}

impl TensorInfo {
    /// Bytes of the tensor; `None` when its type's blocks do not divide its rows.
    pub(super) fn bytes(&self) -> Option<usize> {
        let (cols, outer) = self.shape.split_last()?;
        self.dtype.row_bytes(*cols)?.checked_mul(outer.iter().product())
    }
}

/// A file that is being written.
///
/// # Guarantees
/// The output's name shows the old file or the whole new one, never a part. A writer that is dropped before
/// [`Self::finish`] leaves nothing behind.
#[derive(Debug)]
pub(super) struct Writer {
    file: BufWriter<File>,
    output: PathBuf,
    temporary: Temporary,
    /// Bytes of each tensor, last first.
    left: Vec<usize>,
    /// Bytes that the current tensor still needs.
    current: usize,
    padding: usize,
    written: u64,
}

/// Removes the file when dropped.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is none. Otherwise its own error would hide the one that matters.
        let _ = fs::remove_file(&self.0);
    }
}

impl Writer {
    /// Opens a temporary file beside `output` and writes the header.
    ///
    /// # Errors
    /// [`EngineError::Io`], and [`EngineError::Config`] for a tensor whose rows its type does not divide.
    pub(super) fn create(output: &Path, entries: &[(String, Entry)], tensors: &[TensorInfo]) -> Result<Self> {
        let (header, mut sizes) = header(entries, tensors)?;
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let path = output.with_file_name(name);
        let file = File::create(&path).map_err(|e| EngineError::io(&path, e))?;
        sizes.reverse();
        let mut writer = Self {
            file: BufWriter::new(file),
            output: output.to_owned(),
            temporary: Temporary(path),
            left: sizes,
            current: 0,
            padding: 0,
            written: 0,
        };
        writer.put(&header)?;
        Ok(writer)
    }

    /// The next bytes of the data section: tensors follow each other in the order of the directory, in pieces of any size
    /// that do not reach over the end of a tensor.
    ///
    /// # Errors
    /// [`EngineError::Io`], and [`EngineError::Config`] for more bytes than the tensor has.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.current == 0 {
            self.pad()?;
            self.current = self.left.pop().unwrap_or(0);
            self.padding = self.current.next_multiple_of(ALIGNMENT) - self.current;
        }
        self.current = self.current.checked_sub(bytes.len()).ok_or_else(|| self.wrong("more"))?;
        self.put(bytes)
    }

    /// Puts the file on disk and gives it its name. Returns its size.
    ///
    /// # Errors
    /// [`EngineError::Io`], and [`EngineError::Config`] when tensors are missing.
    pub(super) fn finish(mut self) -> Result<u64> {
        if self.current > 0 || !self.left.is_empty() {
            return Err(self.wrong("fewer"));
        }
        self.pad()?;
        let io = |error| EngineError::io(&self.temporary.0, error);
        self.file.flush().map_err(io)?;
        self.file.get_ref().sync_all().map_err(io)?;
        fs::rename(&self.temporary.0, &self.output).map_err(|e| EngineError::io(&self.output, e))?;
        let directory = self.output.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|d| d.sync_all()).map_err(|e| EngineError::io(directory, e))?;
        Ok(self.written)
    }

    fn pad(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.put(&[0; ALIGNMENT][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e: io::Error| EngineError::io(&self.temporary.0, e))
    }

    fn wrong(&self, what: &str) -> EngineError {
        EngineError::Config(format!("{} would get {what} bytes than its header declares", self.output.display()))
    }
}

/// The header, padded, and the bytes of each tensor.
fn header(entries: &[(String, Entry)], tensors: &[TensorInfo]) -> Result<(Vec<u8>, Vec<usize>)> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, entry) in entries {
        text(&mut out, key);
        out.extend(&entry.0);
    }
    let (mut offset, mut sizes) = (0u64, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        let bytes = tensor.bytes().ok_or_else(|| {
            EngineError::Config(format!("{} cannot be stored as {}", tensor.name, tensor.dtype.name()))
        })?;
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        out.extend(type_number(tensor.dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT) as u64;
        sizes.push(bytes);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok((out, sizes))
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

    use super::*;

    fn info(name: &str, cols: usize) -> TensorInfo {
        TensorInfo { name: name.to_owned(), shape: vec![cols], dtype: SourceDtype::F32 }
    }

    #[test]
    fn a_file_appears_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("a.gguf");
        let infos = [info("a", 3), info("b", 1)];
        let names = || fs::read_dir(directory.path()).unwrap().count();

        let mut writer = Writer::create(&output, &[], &infos).unwrap();
        writer.write(&[1; 8]).unwrap();
        assert!(!output.exists());
        assert!(writer.write(&[1; 8]).is_err(), "past the tensor's end");
        drop(writer);
        assert_eq!(names(), 0);

        let mut writer = Writer::create(&output, &[], &infos).unwrap();
        writer.write(&[1; 12]).unwrap();
        assert!(writer.finish().is_err(), "a tensor is missing");
        assert_eq!(names(), 0);

        let mut writer = Writer::create(&output, &[], &infos).unwrap();
        for bytes in [&[1; 8][..], &[2; 4], &[3; 4]] {
            writer.write(bytes).unwrap();
        }
        let size = writer.finish().unwrap();
        let file = fs::read(&output).unwrap();
        assert_eq!((names(), file.len() as u64), (1, size));
        let data = &file[file.len() - 64..];
        assert_eq!((&data[..12], &data[12..32]), (&[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2][..], &[0; 20][..]));
        assert_eq!((&data[32..36], &data[36..]), (&[3; 4][..], &[0; 28][..]));
    }
}
