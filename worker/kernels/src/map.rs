//! Read-only memory maps of files.

use std::{fs::File, ops::Deref, path::Path, time::SystemTime};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::{KernelError, Result};

/// A file mapped read-only.
///
/// # Caveats
/// A file that is truncated by another process while mapped makes reads fail with SIGBUS, as with every memory map.
/// Artifacts are written under a temporary name and renamed, never changed in place, so ours are not.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<Mmap>,
    file: File,
    /// Length and time of change when it was mapped.
    stamp: (u64, SystemTime),
}

impl MappedFile {
    /// Maps a whole file. An empty file maps to no bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| KernelError::Io { path: path.display().to_string(), source };
        let file = File::open(path).map_err(io)?;
        let stamp = stamp(&file).map_err(io)?;
        if stamp.0 == 0 {
            return Ok(Self { map: None, file, stamp });
        }
        // SAFETY: the map is read-only; the caveat above names what a concurrent truncation would do.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { map: Some(map), file, stamp })
    }

    /// True while nobody has changed or truncated the mapped file. One that was removed or replaced by another of its name
    /// is intact: the map keeps it.
    pub fn is_intact(&self) -> bool {
        stamp(&self.file).is_ok_and(|now| now == self.stamp)
    }

    /// Starts reading a range into the page cache; maps nothing, so resident memory does not grow. Best effort.
    pub fn prefetch(&self, offset: usize, len: usize) {
        if let Some(map) = &self.map {
            let _ = map.advise_range(Advice::WillNeed, offset, len);
        }
    }

    /// Drops the resident pages of a range. Best effort.
    pub fn release(&self, offset: usize, len: usize) {
        if let Some(map) = &self.map {
            // SAFETY: the map is private to reading and backed by the file: dropped pages are read again unchanged.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
        }
    }
}

fn stamp(file: &File) -> std::io::Result<(u64, SystemTime)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
