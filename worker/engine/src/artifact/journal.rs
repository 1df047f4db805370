//! How far a build has come, so that one that was killed goes on where it stopped.
//!
//! After each group of tensors (the ends of the model, then layer after layer) what was written is synced, then the journal is
//! replaced as a whole. What lies in the files beyond it is cut off by the build that goes on.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Entry, hex};
use crate::{EngineError, Result};

/// Name of the journal in the temporary directory.
const JOURNAL: &str = "build.json";

/// Contents of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    /// Key of the artifact.
    pub(super) key: String,
    /// Groups that are whole.
    pub(super) groups: usize,
    /// Bytes of the packed file, and what they hold.
    pub(super) packed: u64,
    pub(super) entries: Vec<Entry>,
    /// Tensors in the interchange file.
    pub(super) tensors: usize,
    /// SHA-256 of the calibration's state, if there is one.
    pub(super) state: Option<String>,
    /// SHA-256 of the journal itself, computed with this field empty: a journal that was changed would be gone on from to
    /// an artifact that is not whole.
    pub(super) sha256: String,
}

impl Journal {
    /// The journal of a killed build of this artifact, with the calibration's state; `None` when there is none to go on
    /// from.
    pub(super) fn read(directory: &Path, key: &str) -> Option<(Self, Option<Vec<f32>>)> {
        let journal: Self = serde_json::from_str(&fs::read_to_string(directory.join(JOURNAL)).ok()?).ok()?;
        if journal.key != key || journal.digest()? != journal.sha256 {
            return None;
        }
        let state = match &journal.state {
            None => None,
            Some(digest) => {
                let bytes = fs::read(journal.state_path(directory)).ok()?;
                if hex(&Sha256::digest(&bytes)) != *digest || bytes.len() % 4 != 0 {
                    return None;
                }
                Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
        };
        Some((journal, state))
    }

    /// Writes the journal, and the state before it. Files of the step before are removed after it.
    pub(super) fn write(mut self, directory: &Path, state: Option<&[f32]>) -> Result<()> {
        if let Some(state) = state {
            let bytes: &[u8] = bytemuck::cast_slice(state);
            self.state = Some(hex(&Sha256::digest(bytes)));
            write_synced(&self.state_path(directory), bytes)?;
        }
        self.sha256 = self.digest().unwrap_or_default();
        let text = serde_json::to_vec(&self)
            .map_err(|e| EngineError::Artifact { path: directory.display().to_string(), message: e.to_string() })?;
        let (next, path) = (directory.join("build.next"), directory.join(JOURNAL));
        write_synced(&next, &text)?;
        fs::rename(&next, &path).map_err(|e| EngineError::io(&path, e))?;
        if let Some(before) = self.groups.checked_sub(1) {
            let _ = fs::remove_file(Self { groups: before, ..self }.state_path(directory));
        }
        Ok(())
    }

    /// Removes what only a build that goes on would need.
    pub(super) fn remove(directory: &Path, groups: usize) -> Result<()> {
        for name in [JOURNAL.to_owned(), format!("state-{groups}.bin")] {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(EngineError::io(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn digest(&self) -> Option<String> {
        let text = serde_json::to_vec(&Self { sha256: String::new(), ..self.clone() }).ok()?;
        Some(hex(&Sha256::digest(text)))
    }

    fn state_path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("state-{}.bin", self.groups))
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|e| EngineError::io(path, e))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(|e| EngineError::io(path, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use super::*;

    fn journal(groups: usize) -> Journal {
        Journal {
            key: "k".into(),
            groups,
            packed: 4096,
            entries: Vec::new(),
            tensors: 3,
            state: None,
            sha256: String::new(),
        }
    }

    #[test]
    fn the_newest_step_is_read_with_its_state_and_the_one_before_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        journal(1).write(directory.path(), Some(&[1.0, 2.0])).unwrap();
        journal(2).write(directory.path(), Some(&[3.0, 4.0])).unwrap();
        let (read, state) = Journal::read(directory.path(), "k").unwrap();
        assert_eq!((read.groups, read.tensors, state), (2, 3, Some(vec![3.0, 4.0])));
        assert!(!directory.path().join("state-1.bin").exists());
        assert_eq!(Journal::read(directory.path(), "another key"), None);
    }

    /// Found by fuzzing: other groups or entries gave an artifact without some of its tensors.
    #[test]
    fn a_journal_that_was_changed_is_not_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        journal(1).write(directory.path(), None).unwrap();
        assert!(Journal::read(directory.path(), "k").is_some());
        let path = directory.path().join(JOURNAL);
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replace("\"groups\":1", "\"groups\":9");
        assert_ne!(text, changed);
        fs::write(&path, changed).unwrap();
        assert_eq!(Journal::read(directory.path(), "k"), None);
    }

    #[test]
    fn a_state_that_was_changed_is_not_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        journal(1).write(directory.path(), Some(&[1.0, 2.0])).unwrap();
        fs::write(directory.path().join("state-1.bin"), [0; 8]).unwrap();
        assert_eq!(Journal::read(directory.path(), "k"), None);
    }
}
