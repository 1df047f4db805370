//! A file that is not complete yet: `NAME.incomplete` with the bytes, `NAME.incomplete.json` with which of them are there
//! and whose they are.
//!
//! The file has its full length from the start and is filled in chunks, each from its own beginning, so that several
//! connections can write at once. A kill loses what came since the state was last written; the next start goes on from
//! there, unless the content has another identity meanwhile.

use std::{
    cell::{Cell, RefCell},
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Result, SourceError};

/// Bytes between two writes of the state. What the state names must be on disk before, so this is also what is synced at
/// once.
const SAVE_EVERY: u64 = 64 << 20;

/// No model is larger. It bounds the state of a file whose size a server makes up.
const MAX_SIZE: u64 = 16 << 40;

/// Which bytes are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Checksum or entity tag of the content that the bytes belong to.
    identity: String,
    size: u64,
    /// Bytes of a chunk; the last one may have fewer.
    chunk: u64,
    /// Bytes that each chunk has from its beginning.
    done: Vec<u64>,
}

impl State {
    fn new(identity: &str, size: u64, chunk: u64) -> Self {
        let chunk = chunk.max(1);
        // A file of no bytes has one chunk of none, so that it is fetched like any other.
        let count = size.div_ceil(chunk).max(1);
        Self { identity: identity.to_owned(), size, chunk, done: vec![0; count as usize] }
    }

    fn len_of(&self, index: usize) -> u64 {
        self.size.saturating_sub(self.chunk.saturating_mul(index as u64)).min(self.chunk)
    }

    /// True for a state that this program could have written.
    fn is_sound(&self) -> bool {
        self.chunk > 0
            && self.done.len() as u64 == self.size.div_ceil(self.chunk).max(1)
            && self.done.iter().enumerate().all(|(index, done)| *done <= self.len_of(index))
    }
}

/// An open partial file.
pub(super) struct Partial {
    target: PathBuf,
    file: File,
    state: RefCell<State>,
    unsaved: Cell<u64>,
    /// Some of its bytes are of an earlier start.
    pub(super) resumed: bool,
}

impl Partial {
    /// Opens or creates the partial file of `target`. Bytes that are there are kept if identity and size are the same.
    pub(super) fn open(target: &Path, identity: &str, size: u64, chunk: u64) -> Result<Self> {
        let path = beside(target, ".incomplete");
        if size > MAX_SIZE {
            return Err(SourceError::Config(format!("{}: {size} bytes are more than any model has", path.display())));
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(SourceError::io(&path))?;
        let len = file.metadata().map_err(SourceError::io(&path))?.len();
        let kept = fs::read(beside(target, ".incomplete.json")).ok();
        let kept = kept.and_then(|text| serde_json::from_slice::<State>(&text).ok());
        let kept = kept.filter(|s| s.identity == identity && s.size == size && len == size && s.is_sound());
        let resumed = kept.as_ref().is_some_and(|state| state.done.iter().any(|done| *done > 0));
        let fresh = kept.is_none();
        let state = kept.unwrap_or_else(|| State::new(identity, size, chunk));
        let partial =
            Self { target: target.to_owned(), file, state: RefCell::new(state), unsaved: Cell::new(0), resumed };
        if fresh {
            partial.clear()?;
        }
        Ok(partial)
    }

    /// Number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.state.borrow().done.len()
    }

    /// The bytes that a chunk lacks: first, and one past the last.
    pub(super) fn missing(&self, index: usize) -> (u64, u64) {
        let state = self.state.borrow();
        let start = state.chunk * index as u64;
        (start + state.done[index], start + state.len_of(index))
    }

    /// Bytes that are there.
    pub(super) fn done(&self) -> u64 {
        self.state.borrow().done.iter().sum()
    }

    /// Adds the next bytes of a chunk. The caller holds them against [`Self::missing`].
    pub(super) fn write(&self, index: usize, bytes: &[u8]) -> Result<()> {
        let (at, _) = self.missing(index);
        self.file.write_all_at(bytes, at).map_err(SourceError::io(&beside(&self.target, ".incomplete")))?;
        self.state.borrow_mut().done[index] += bytes.len() as u64;
        self.unsaved.set(self.unsaved.get() + bytes.len() as u64);
        if self.unsaved.get() >= SAVE_EVERY { self.save() } else { Ok(()) }
    }

    /// Makes what is there survive a crash.
    pub(super) fn save(&self) -> Result<()> {
        let path = beside(&self.target, ".incomplete.json");
        self.file.sync_data().map_err(SourceError::io(&self.target))?;
        let text = serde_json::to_vec(&*self.state.borrow())
            .map_err(|error| SourceError::Config(format!("{}: {error}", path.display())))?;
        replace(&path, &text)?;
        self.unsaved.set(0);
        Ok(())
    }

    /// Forgets all bytes and fetches the file as one chunk: for a server that sends no ranges, or sent something else.
    pub(super) fn restart_whole(&self) -> Result<()> {
        let state = self.state.borrow().clone();
        *self.state.borrow_mut() = State::new(&state.identity, state.size, state.size.max(1));
        self.clear()
    }

    /// Forgets the bytes of one chunk.
    pub(super) fn restart(&self, index: usize) {
        self.state.borrow_mut().done[index] = 0;
    }

    /// Removes both files: what they hold is of no use.
    pub(super) fn discard(self) {
        // What stays behind is recognised as another identity, or overwritten.
        let _ = fs::remove_file(beside(&self.target, ".incomplete.json"));
        let _ = fs::remove_file(beside(&self.target, ".incomplete"));
    }

    /// Where the bytes are, to check them.
    pub(super) fn path(&self) -> PathBuf {
        beside(&self.target, ".incomplete")
    }

    /// Gives the complete file its name.
    pub(super) fn finish(self) -> Result<()> {
        let io = SourceError::io(&self.target);
        let partial = self.path();
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&partial, &self.target));
        renamed.and_then(|()| sync_parent(&self.target)).map_err(io)?;
        // A state without a file means nothing.
        let _ = fs::remove_file(beside(&self.target, ".incomplete.json"));
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        let path = self.path();
        // The state goes first: with it left, a crash in between would make zeros count as bytes.
        let _ = fs::remove_file(beside(&self.target, ".incomplete.json"));
        let size = self.state.borrow().size;
        self.file.set_len(0).and_then(|()| self.file.set_len(size)).map_err(SourceError::io(&path))
    }
}

/// `path` with `suffix` at its end.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes a whole file: readers see the old content or the new one, never a part.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = beside(path, ".tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).and_then(|()| sync_parent(path)).map_err(SourceError::io(path))
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("blob");
        (folder, target)
    }

    #[test]
    fn chunks_are_filled_in_any_order_and_kept_over_a_restart() {
        let (_folder, target) = folder();
        let partial = Partial::open(&target, "v1", 10, 4).unwrap();
        assert_eq!((partial.chunks(), partial.missing(2), partial.resumed), (3, (8, 10), false));
        partial.write(2, b"ij").unwrap();
        partial.write(0, b"abc").unwrap();
        partial.save().unwrap();
        drop(partial);
        let partial = Partial::open(&target, "v1", 10, 1000).unwrap();
        assert_eq!(
            (partial.resumed, partial.done(), partial.missing(0), partial.missing(2)),
            (true, 5, (3, 4), (10, 10))
        );
        partial.write(0, b"d").unwrap();
        partial.write(1, b"efgh").unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcdefghij");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn another_identity_or_size_starts_over() {
        for (identity, size) in [("v2", 10), ("v1", 11)] {
            let (_folder, target) = folder();
            let partial = Partial::open(&target, "v1", 10, 4).unwrap();
            partial.write(0, b"abcd").unwrap();
            partial.save().unwrap();
            let partial = Partial::open(&target, identity, size, 4).unwrap();
            assert_eq!((partial.resumed, partial.done()), (false, 0));
        }
    }

    #[test]
    fn a_damaged_state_starts_over() {
        for state in [
            "",
            "{}",
            "null",
            r#"{"identity": "v1", "size": 10, "chunk": 0, "done": [0]}"#,
            r#"{"identity": "v1", "size": 10, "chunk": 4, "done": [4, 4]}"#,
            r#"{"identity": "v1", "size": 10, "chunk": 4, "done": [4, 4, 3]}"#,
            r#"{"identity": "v1", "size": 10, "chunk": 4, "done": [4, 4, 18446744073709551615]}"#,
        ] {
            let (_folder, target) = folder();
            fs::write(beside(&target, ".incomplete"), b"0123456789").unwrap();
            fs::write(beside(&target, ".incomplete.json"), state).unwrap();
            let partial = Partial::open(&target, "v1", 10, 4).unwrap();
            assert_eq!((partial.resumed, partial.done(), partial.chunks()), (false, 0, 3), "{state}");
        }
    }

    #[test]
    fn a_size_that_no_model_has_is_refused_before_room_is_made_for_it() {
        let (_folder, target) = folder();
        assert!(Partial::open(&target, "v1", u64::MAX, 4).is_err());
        assert!(!beside(&target, ".incomplete").exists());
    }

    #[test]
    fn an_empty_file_is_complete_at_once() {
        let (_folder, target) = folder();
        let partial = Partial::open(&target, "v1", 0, 4).unwrap();
        assert_eq!((partial.chunks(), partial.missing(0)), (1, (0, 0)));
        partial.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"");
    }
}
