//! A safetensors file written tensor by tensor, its header last: types and lengths need not be known before.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::{EngineError, Result};

/// Header bytes of one tensor beyond its name: type, up to four dimensions and two offsets of twenty digits each.
const ENTRY: usize = 200;

/// The file.
pub(super) struct TensorFile {
    path: PathBuf,
    out: BufWriter<File>,
    header: Map<String, Value>,
    reserved: usize,
    position: usize,
}

impl TensorFile {
    /// A new file with room for the header of tensors of these names.
    pub(super) fn create(path: &Path, names: impl Iterator<Item = usize>) -> Result<Self> {
        let room = names.map(|len| len + ENTRY).sum::<usize>() + ENTRY;
        // The format wants the data to start at a multiple of 8, and allows spaces behind the header.
        let reserved = room.next_multiple_of(8);
        let io = |e| EngineError::io(path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create_new(path).map_err(io)?);
        out.write_all(&(reserved as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&vec![b' '; reserved]).map_err(io)?;
        let header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
        Ok(Self { path: path.to_owned(), out, header, reserved, position: 0 })
    }

    /// Adds a tensor.
    pub(super) fn put(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let end = self.position + bytes.len();
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [self.position, end]});
        if self.header.insert(name.to_owned(), entry).is_some() {
            return Err(self.error(format!("tensor {name} twice")));
        }
        self.position = end;
        self.out.write_all(bytes).map_err(|e| EngineError::io(&self.path, e))
    }

    /// Writes the header and flushes to disk; the file's length.
    pub(super) fn finish(mut self) -> Result<u64> {
        let mut text = Value::Object(std::mem::take(&mut self.header)).to_string().into_bytes();
        if text.len() > self.reserved {
            return Err(self.error(format!("the header takes {} of {} bytes", text.len(), self.reserved)));
        }
        text.resize(self.reserved, b' ');
        let io = |e| EngineError::io(&self.path, e);
        self.out.seek(SeekFrom::Start(8)).map_err(io)?;
        self.out.write_all(&text).map_err(io)?;
        self.out.flush().map_err(io)?;
        self.out.get_ref().sync_all().map_err(io)?;
        Ok((8 + self.reserved + self.position) as u64)
    }

    fn error(&self, message: String) -> EngineError {
        EngineError::Artifact { path: self.path.display().to_string(), message }
    }
}
