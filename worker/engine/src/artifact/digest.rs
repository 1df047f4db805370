//! SHA-256, as manifests have it.

use std::{fs::File, io::Read, path::Path, sync::mpsc::sync_channel};

use sha2::{Digest, Sha256};

use crate::{EngineError, Result};

/// SHA-256 of a file, read in pieces: the next one is read while one is hashed.
pub(super) fn file_sha256(path: &Path) -> Result<String> {
    const PIECE: usize = 1 << 20;
    let io = |e| EngineError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut read = |buffer: &mut Vec<u8>| {
        buffer.resize(PIECE, 0);
        let n = file.read(buffer).map_err(io)?;
        buffer.truncate(n);
        Ok::<_, EngineError>(n > 0)
    };
    let mut hash = Sha256::new();
    let mut first = Vec::new();
    // A file of one piece, as configurations are, is not worth a thread.
    if !read(&mut first)? || first.len() < PIECE {
        hash.update(&first);
        while read(&mut first)? {
            hash.update(&first);
        }
        return Ok(hex(&hash.finalize()));
    }
    let (full, empty) = (sync_channel::<Vec<u8>>(2), sync_channel::<Vec<u8>>(4));
    std::thread::scope(|scope| {
        let (hashed, back) = (full.1, empty.0);
        let hashing = move || {
            for buffer in hashed {
                hash.update(&buffer);
                // The reader is done when it wants none back.
                let _ = back.try_send(buffer);
            }
            hex(&hash.finalize())
        };
        let hasher = std::thread::Builder::new().spawn_scoped(scope, hashing).map_err(io)?;
        let full = full.0;
        let mut buffer = first;
        loop {
            let _ = full.send(buffer);
            buffer = empty.1.try_recv().unwrap_or_default();
            if !read(&mut buffer)? {
                break;
            }
        }
        drop(full);
        hasher.join().map_err(|_| io(std::io::Error::other("the thread that hashed it has panicked")))
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
