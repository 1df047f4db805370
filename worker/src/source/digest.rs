//! Checksums that the hub names: SHA-256 of large files (LFS), the git blob SHA-1 of small ones.

use std::{fs::File, io::Read, path::Path};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::{Result, SourceError};
use crate::hex::hex;

/// What a file's bytes must hash to; lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// SHA-256 of the content.
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content, as git names a blob. Against damage, not against forgery.
    GitBlob(String),
}

impl Digest {
    /// From 64 hex digits.
    pub(super) fn sha256(hex: &str) -> Option<Self> {
        hex_of(hex, 64).map(Self::Sha256)
    }

    /// From 40 hex digits.
    pub(super) fn git_blob(hex: &str) -> Option<Self> {
        hex_of(hex, 40).map(Self::GitBlob)
    }

    /// From the entity tag of a file on the hub, which is one of both.
    pub(super) fn from_etag(etag: &str) -> Option<Self> {
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        Self::sha256(etag).or_else(|| Self::git_blob(etag))
    }

    /// The hex digits: the name of the file in the cache.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Reads the file once; `Err` of the inner result is the checksum that it has instead.
    pub(super) fn check(&self, path: &Path) -> Result<std::result::Result<(), String>> {
        let io = SourceError::io(path);
        let found = self.of(path).map_err(io)?;
        Ok(if found == self.hex() { Ok(()) } else { Err(found) })
    }

    fn of(&self, path: &Path) -> std::io::Result<String> {
        let file = File::open(path)?;
        let context = match self {
            Self::Sha256(_) => Context::new(&SHA256),
            Self::GitBlob(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                context
            }
        };
        read_all(file, context)
    }
}

/// SHA-256 of a file's bytes, in hex.
pub(super) fn sha256_of(path: &Path) -> std::io::Result<String> {
    read_all(File::open(path)?, Context::new(&SHA256))
}

fn read_all(mut file: File, mut context: Context) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(context.finish().as_ref())),
            n => context.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of a text, in hex: for names of cache entries.
pub(super) fn name_of(text: &str) -> String {
    hex(ring::digest::digest(&SHA256, text.as_bytes()).as_ref())
}

fn hex_of(text: &str, len: usize) -> Option<String> {
    (text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `git hash-object` and `sha256sum` of the six bytes `hello\n`.
    const GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn both_checksums_are_those_of_git_and_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        for digest in [Digest::git_blob(GIT).unwrap(), Digest::sha256(SHA).unwrap()] {
            assert_eq!(digest.check(&path).unwrap(), Ok(()));
        }
        assert_eq!(Digest::sha256(&"0".repeat(64)).unwrap().check(&path).unwrap(), Err(SHA.to_owned()));
    }

    #[test]
    fn an_entity_tag_tells_its_kind_by_its_length() {
        assert_eq!(Digest::from_etag(&format!("\"{GIT}\"")), Digest::git_blob(GIT));
        assert_eq!(Digest::from_etag(&format!("W/\"{SHA}\"")), Digest::sha256(SHA));
        assert_eq!(Digest::from_etag("\"5d3-62a\""), None);
    }
}
