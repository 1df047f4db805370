//! The packed file as it grows: aligned entries, hashed as they are written, taken up again after a kill.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Entry, EntryKind, store};
use crate::{EngineError, Result};

const TENSOR_ALIGNMENT: u64 = 64;

/// Writes aligned entries and hashes what it writes.
pub(super) struct PackedWriter {
    path: PathBuf,
    out: BufWriter<File>,
    hash: Sha256,
    position: u64,
    entries: Vec<Entry>,
}

impl PackedWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| EngineError::io(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            out: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            position: 0,
            entries: Vec::new(),
        })
    }

    /// Goes on after the first `position` bytes of a file, which hold `entries`; what follows them is cut off.
    ///
    /// # Errors
    /// The file is shorter, or cannot be read.
    pub(super) fn resume(path: &Path, position: u64, entries: Vec<Entry>) -> Result<Self> {
        let io = |e| EngineError::io(path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let mut left = position;
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact(&mut buffer[..part]).map_err(io)?;
            hash.update(&buffer[..part]);
            left -= part as u64;
        }
        file.set_len(position).map_err(io)?;
        file.seek(SeekFrom::Start(position)).map_err(io)?;
        Ok(Self { path: path.to_owned(), out: BufWriter::with_capacity(1 << 20, file), hash, position, entries })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| EngineError::io(&self.path, e))
    }

    pub(super) fn align(&mut self, alignment: u64) -> Result<()> {
        let gap = self.position.next_multiple_of(alignment) - self.position;
        self.write(&vec![0; gap as usize])
    }

    pub(super) fn entry(&mut self, name: String, kind: EntryKind, n: usize, k: usize, bytes: &[u8]) -> Result<()> {
        self.align(TENSOR_ALIGNMENT)?;
        self.entries.push(Entry { name, kind, n, k, offset: self.position, len: bytes.len() as u64 });
        self.write(bytes)
    }

    /// Bytes and entries that are safely on disk.
    pub(super) fn sync(&mut self) -> Result<(u64, &[Entry])> {
        let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        synced.map_err(|e| EngineError::io(&self.path, e))?;
        Ok((self.position, &self.entries))
    }

    /// Checksum, length and entries of the whole file, on disk.
    pub(super) fn finish(mut self) -> Result<(String, u64, Vec<Entry>)> {
        self.sync()?;
        Ok((store::hex(&self.hash.finalize()), self.position, self.entries))
    }
}
