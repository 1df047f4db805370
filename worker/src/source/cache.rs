//! Where fetched models lie: the layout of the hub's own clients, so that people find their way in it.
//!
//! ```text
//! CACHE/hub/models--OWNER--NAME/refs/REV               the commit that a branch or tag meant last
//! CACHE/hub/models--OWNER--NAME/blobs/CHECKSUM         the bytes of a file, once for all commits; .incomplete while it comes
//! CACHE/hub/models--OWNER--NAME/snapshots/COMMIT/PATH  a link to its blob
//! CACHE/hub/models--OWNER--NAME/complete/COMMIT.json   all of the snapshot is there: what an offline start needs to know
//! CACHE/hub/models--OWNER--NAME/pruned/COMMIT.json     its weights were removed: see `prune`
//! CACHE/hub/models--OWNER--NAME/.lock                  held by the process that fetches
//! CACHE/https/NAME-OF-URL/FILE.gguf                    a file from elsewhere
//! ```

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Result, SourceError,
    digest::name_of,
    hub::{escape, is_safe_path},
    partial::replace,
    progress::Meter,
    prune::{self, Entry, Pruned},
    select,
};
use crate::licence::Base;

/// Says that a snapshot is complete, and what cannot be learned again without network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `OWNER/NAME`.
    pub(super) repository: String,
    /// The commit.
    pub(super) commit: String,
    /// The one file of weights, when the repository was asked for one.
    pub(super) file: Option<String>,
    /// All files of the snapshot with their sizes.
    pub(super) files: Vec<(String, u64)>,
    /// The front matter of the card, as the hub read it.
    pub(super) card: serde_json::Value,
    /// The models that this one was made of, with the licences that their cards declare: without network, nobody can ask.
    pub(super) bases: Vec<Base>,
}

/// The folder of one repository.
pub(super) struct Place {
    root: PathBuf,
}

impl Place {
    /// The folder of `OWNER/NAME`; the API has checked the name.
    pub(super) fn new(cache: &Path, repository: &str) -> Self {
        Self { root: cache.join("hub").join(format!("models--{}", repository.replace('/', "--"))) }
    }

    /// Creates the folder and holds it against other processes until the file is dropped.
    pub(super) fn lock(&self, meter: &Meter<'_>) -> Result<File> {
        lock(&self.root, meter)
    }

    /// Where the bytes of a file go.
    pub(super) fn blob(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("blobs");
        fs::create_dir_all(&folder).map_err(SourceError::io(&folder))?;
        Ok(folder.join(name))
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Makes a file of a commit point to its blob.
    pub(super) fn link(&self, commit: &str, path: &str, blob: &str) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        let io = || SourceError::io(&link);
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).map_err(io())?;
        }
        // Relative, so that the cache can be moved or mounted elsewhere.
        let target = PathBuf::from("../".repeat(1 + path.split('/').count())).join("blobs").join(blob);
        if fs::read_link(&link).is_ok_and(|old| old == target) {
            return Ok(());
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io()(error)),
            _ => {}
        }
        symlink(&target, &link).map_err(io())
    }

    /// The commit that a branch or tag meant when it was fetched last.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.reference(revision)).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Remembers what a branch or tag means.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        self.below("refs")?;
        replace(&path, commit.as_bytes())
    }

    /// A commit that is in the cache: whole, or with `pruned` as what is left of it after its weights were removed.
    pub(super) fn found(&self, commit: &str, file: Option<&str>, pruned: bool) -> Option<Found> {
        if let Some(record) = self.record(commit, file) {
            return Some(Found { record, pruned: None });
        }
        let pruned = prune::load(&self.root, &record_name(commit, file)).filter(|_| pruned)?;
        let gone = |path: &str| pruned.files.iter().any(|removed| removed.path == path);
        let record = self.record_but(commit, file, gone)?;
        Some(Found { record, pruned: Some(pruned) })
    }

    /// The place of a record's files, held against whoever would remove them. The caller holds [`Self::lock`].
    pub(super) fn entry(&self, record: &Record) -> Result<Entry> {
        let weights = record.files.iter().map(|(path, _)| path).filter(|path| select::is_weights(path));
        let name = record_name(&record.commit, record.file.as_deref());
        Entry::new(&self.root, &self.snapshot(&record.commit), &name, weights.cloned().collect())
    }

    /// Where the head of a pruned GGUF file is.
    pub(super) fn head(&self, record: &Record, gguf: &str) -> PathBuf {
        prune::head_of(&self.root, &record_name(&record.commit, record.file.as_deref()), gguf)
    }

    /// The record of a commit, if every file that it names is there with its size.
    pub(super) fn record(&self, commit: &str, file: Option<&str>) -> Option<Record> {
        self.record_but(commit, file, |_| false)
    }

    /// [`Self::record`], whatever became of the files that are `gone`.
    fn record_but(&self, commit: &str, file: Option<&str>, gone: impl Fn(&str) -> bool) -> Option<Record> {
        let record: Record = serde_json::from_slice(&fs::read(self.record_path(commit, file)).ok()?).ok()?;
        let snapshot = self.snapshot(commit);
        let whole = record.files.iter().all(|(path, size)| {
            let there = || fs::metadata(snapshot.join(path)).is_ok_and(|file| file.len() == *size);
            is_safe_path(path) && (gone(path) || there())
        });
        (record.commit == commit && record.file.as_deref() == file && whole).then_some(record)
    }

    /// Writes the record of a snapshot that is complete.
    pub(super) fn complete(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.commit, record.file.as_deref());
        self.below("complete")?;
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| SourceError::Config(format!("{}: {error}", path.display())))?;
        replace(&path, &text)
    }

    fn below(&self, name: &str) -> Result<()> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).map_err(SourceError::io(&folder))
    }

    /// A revision may hold slashes (`refs/pr/1`), which become part of one name here.
    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(escape(revision, false))
    }

    fn record_path(&self, commit: &str, file: Option<&str>) -> PathBuf {
        self.root.join("complete").join(format!("{}.json", record_name(commit, file)))
    }
}

/// A snapshot, and what is known of its weights if they were removed.
pub(super) struct Found {
    pub(super) record: Record,
    pub(super) pruned: Option<Pruned>,
}

fn record_name(commit: &str, file: Option<&str>) -> String {
    file.map_or_else(|| commit.to_owned(), |file| format!("{commit}-{}", &name_of(file)[..16]))
}

/// A full commit in hex: it means the same for ever, so no network is needed to know what it is.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// Creates a folder and locks it; says so when another process holds the lock.
pub(super) fn lock(folder: &Path, meter: &Meter<'_>) -> Result<File> {
    fs::create_dir_all(folder).map_err(SourceError::io(folder))?;
    let path = folder.join(".lock");
    let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(SourceError::io(&path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            meter.say("waiting for another process that fetches this model");
            lock.lock().map_err(SourceError::io(&path))?;
        }
        Err(TryLockError::Error(error)) => return Err(SourceError::io(&path)(error)),
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_links_to_blobs_and_complete_only_with_all_of_them() {
        let cache = tempfile::tempdir().unwrap();
        let place = Place::new(cache.path(), "o/n");
        let commit = "a".repeat(40);
        fs::write(place.blob("b1").unwrap(), "12345").unwrap();
        place.link(&commit, "q/model.gguf", "b1").unwrap();
        place.link(&commit, "q/model.gguf", "b1").unwrap();
        let record = Record {
            repository: "o/n".into(),
            commit: commit.clone(),
            file: Some("q/model.gguf".into()),
            files: vec![("q/model.gguf".into(), 5)],
            card: serde_json::Value::Null,
            bases: Vec::new(),
        };
        assert_eq!(place.record(&commit, Some("q/model.gguf")), None);
        place.complete(&record).unwrap();
        assert_eq!(place.record(&commit, Some("q/model.gguf")), Some(record));
        assert_eq!(place.record(&commit, None), None);
        assert_eq!(fs::read_to_string(place.snapshot(&commit).join("q/model.gguf")).unwrap(), "12345");
        fs::remove_file(place.blob("b1").unwrap()).unwrap();
        assert_eq!(place.record(&commit, Some("q/model.gguf")), None);
    }

    #[test]
    fn branches_are_remembered_whatever_they_are_called() {
        let cache = tempfile::tempdir().unwrap();
        let place = Place::new(cache.path(), "o/n");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for revision in ["main", "refs/pr/1", "../../x"] {
            assert_eq!(place.commit_of(revision), None);
            place.remember(revision, commit).unwrap();
            assert_eq!(place.commit_of(revision).as_deref(), Some(commit));
        }
        assert_eq!(fs::read_dir(cache.path().join("hub/models--o--n/refs")).unwrap().count(), 3);
    }
}
