//! Removing the weights of a fetched model once everything was made of them, and what is kept so that a later start needs none.
//!
//! ```text
//! ROOT/pruned/NAME.json        the record: what was removed, and what the checkpoint was
//! ROOT/pruned/NAME/FILE.gguf   the head of a GGUF file, in which configuration and vocabulary are
//! ROOT/.use                    held shared by whoever opens the model, exclusively while it is pruned
//! ```
//!
//! The record is on disk before the first file goes, so a kill in between leaves a model that is whole, or one that the record
//! describes; the next start removes the rest. Only what this program has fetched into its own cache has an [`Entry`].

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use modelprofile_engine::checkpoint::Remains;
use serde::{Deserialize, Serialize};

use super::{Located, Result, SourceError, digest, partial::replace, select::is_gguf};

/// A model without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// What it is called where it comes from.
    pub name: String,
    /// Identifiers of all licences that apply to it.
    pub licences: Vec<String>,
    /// The commit, of a repository.
    pub commit: Option<String>,
    /// What the checkpoint was.
    pub remains: Remains,
    /// What was removed.
    pub files: Vec<Removed>,
}

/// A weight file that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Path in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// Where a model lies in this program's own cache.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The folder that is locked.
    root: PathBuf,
    /// Its files lie below.
    base: PathBuf,
    /// The record of its pruning.
    record: PathBuf,
    /// Its weight files, relative to `base`.
    weights: Vec<String>,
    /// Keeps others from removing them.
    lease: Arc<File>,
}

impl PartialEq for Entry {
    /// By place; who holds it does not count.
    fn eq(&self, other: &Self) -> bool {
        (&self.base, &self.record, &self.weights) == (&other.base, &other.record, &other.weights)
    }
}

impl Entry {
    /// Takes the lease. The caller holds the folder's lock, which whoever prunes holds too: this waits for nobody.
    pub(super) fn new(root: &Path, base: &Path, name: &str, weights: Vec<String>) -> Result<Self> {
        let path = root.join(".use");
        let lease = open_lock(&path)?;
        lease.lock_shared().map_err(SourceError::io(&path))?;
        let (root, base) = (root.to_owned(), base.to_owned());
        Ok(Self { record: record_path(&root, name), root, base, weights, lease: Arc::new(lease) })
    }

    /// Where the head of its GGUF file is kept.
    fn head(&self) -> Option<PathBuf> {
        let [file] = &self.weights[..] else { return None };
        is_gguf(file).then(|| head_path(&self.record, file))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.base.join(file)
    }
}

/// The record of a pruned model below `root`, if there is one. A damaged one counts as none: the model is fetched again.
pub(super) fn load(root: &Path, name: &str) -> Option<Pruned> {
    serde_json::from_slice(&fs::read(record_path(root, name)).ok()?).ok()
}

/// Where the head of a pruned GGUF file is.
pub(super) fn head_of(root: &Path, name: &str, file: &str) -> PathBuf {
    head_path(&record_path(root, name), file)
}

/// Removes the weights of a model that this program has fetched, after it has recorded what they were. `remains` is asked
/// for what the checkpoint was if there is no record yet. The bytes that were freed: 0 for a model that lies elsewhere, and
/// while another process uses it.
///
/// # Errors
/// Those of the disk. What is left after one is whole, or described by the record.
pub fn prune(model: Located, remains: Option<&Remains>) -> Result<u64> {
    let Some(entry) = model.entry else { return Ok(0) };
    if model.pruned.is_none() {
        let Some(remains) = remains else { return Ok(0) };
        let removed = |file: &String| {
            let path = entry.path(file);
            let bytes = fs::metadata(&path).map_err(SourceError::io(&path))?.len();
            Ok(Removed { path: file.clone(), bytes, sha256: digest::sha256_of(&path).map_err(SourceError::io(&path))? })
        };
        let pruned = Pruned {
            name: model.label,
            licences: model.licence.claims().iter().map(|claim| claim.id.clone()).collect(),
            commit: model.commit,
            remains: remains.clone(),
            files: entry.weights.iter().map(removed).collect::<Result<_>>()?,
        };
        write(&entry, &pruned)?;
    }
    remove(entry)
}

/// Writes the head of a GGUF file, and then the record.
fn write(entry: &Entry, pruned: &Pruned) -> Result<()> {
    let folder = |path: &Path| {
        path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(SourceError::io(parent)))
    };
    if let (Some(path), [file]) = (entry.head(), &entry.weights[..]) {
        folder(&path)?;
        let (from, mut head) = (entry.path(file), Vec::new());
        let file = File::open(&from).map_err(SourceError::io(&from))?;
        file.take(pruned.remains.gguf.head as u64).read_to_end(&mut head).map_err(SourceError::io(&from))?;
        replace(&path, &head)?;
    }
    folder(&entry.record)?;
    let text = serde_json::to_vec_pretty(pruned)
        .map_err(|error| SourceError::Config(format!("{}: {error}", entry.record.display())))?;
    replace(&entry.record, &text)
}

/// Removes the weight files unless another process fetches or uses them.
fn remove(entry: Entry) -> Result<u64> {
    let Entry { root, base, weights, lease, .. } = entry;
    let lock = open_lock(&root.join(".lock"))?;
    // One's own lease would be in the way.
    drop(lease);
    let alone = open_lock(&root.join(".use"))?;
    if lock.try_lock().is_err() || alone.try_lock().is_err() {
        tracing::info!("the original is used by another process and stays until the next start");
        return Ok(0);
    }
    let inside = root.canonicalize().map_err(SourceError::io(&root))?;
    let mut freed = 0;
    for file in weights {
        let link = base.join(file);
        // The blob goes before the link to it, by which a later start finds it. Nothing outside of the cache is touched.
        if let Ok(blob) = link.canonicalize()
            && blob.starts_with(&inside)
        {
            freed += fs::metadata(&blob).map_or(0, |file| file.len());
            fs::remove_file(&blob).map_err(SourceError::io(&blob))?;
        }
        if link.is_symlink() {
            fs::remove_file(&link).map_err(SourceError::io(&link))?;
        }
    }
    Ok(freed)
}

fn record_path(root: &Path, name: &str) -> PathBuf {
    root.join("pruned").join(format!("{name}.json"))
}

fn head_path(record: &Path, file: &str) -> PathBuf {
    // The name is part of the checkpoint's revision.
    record.with_extension("").join(file.rsplit('/').next().unwrap_or(file))
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().write(true).create(true).truncate(false).open(path).map_err(SourceError::io(path))
}
