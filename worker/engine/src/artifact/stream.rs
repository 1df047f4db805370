//! A file that is written and hashed beside the work that makes its bytes.
//!
//! ```text
//! send ── at most BEHIND bytes, or one piece ──┬── writes ── syncs, notes what is on disk
//!                                              └── SHA-256
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use modelprofile_kernels::HostWeight;
use sha2::{Digest, Sha256};

use super::digest::hex;
use crate::{EngineError, Result};

/// Bytes that may wait to be written and hashed, so that memory is bounded by what makes them. What was written waits for the
/// disk in the page cache, which the kernel bounds.
const BEHIND: usize = 16 << 20;
/// Pieces that may wait, however small.
const PIECES: usize = 256;

/// Bytes of a file.
pub(super) enum Piece {
    Owned(Vec<u8>),
    /// The codes, or the values, of a weight that others look at meanwhile.
    Codes(Arc<HostWeight>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Codes(weight) => codes(weight),
        }
    }
}

/// The codes of a weight, or its values if it has none.
pub(super) fn codes(weight: &HostWeight) -> &[u8] {
    match weight {
        HostWeight::Bf16 { values, .. } => bytemuck::cast_slice(values),
        HostWeight::Fp8 { codes, .. }
        | HostWeight::Fp8Static { codes, .. }
        | HostWeight::Fp8Block { codes, .. }
        | HostWeight::Grouped { codes, .. } => codes,
        HostWeight::Int8 { codes, .. } | HostWeight::Int8Outliers { codes, .. } => bytemuck::cast_slice(codes),
    }
}

/// What is done when several files are on disk as far as they were written when it was made.
pub(super) struct Synced {
    left: Mutex<Left>,
}

struct Left {
    files: usize,
    then: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl Synced {
    /// Does `then` when each of this many [`Stream`]s has been given it and has come to it. Those that are given to the same
    /// streams are done in the order in which they are given.
    pub(super) fn all(files: usize, then: impl FnOnce() -> Result<()> + Send + 'static) -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(Left { files, then: Some(Box::new(then)) }) })
    }

    fn one(&self) -> Result<()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.files -= 1;
        match left.files {
            0 => left.then.take().map_or(Ok(()), |then| then()),
            _ => Ok(()),
        }
    }
}

/// A file under construction, with a thread that writes it, one that syncs it, for which nobody waits, and one that hashes it.
pub(super) struct Stream {
    path: PathBuf,
    position: u64,
    room: Arc<Room>,
    orders: Option<SyncSender<Order>>,
    pieces: Option<SyncSender<Arc<Counted>>>,
    writer: Option<JoinHandle<Result<()>>>,
    syncer: Option<JoinHandle<Result<()>>>,
    hasher: Option<JoinHandle<String>>,
}

enum Order {
    Write(Arc<Counted>),
    Sync(Arc<Synced>),
}

impl Stream {
    /// A new file.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| EngineError::io(path, e))?;
        Self::of(path, file, 0, Sha256::new())
    }

    /// Goes on after the first `position` bytes of a file, which begins with `head`; what follows them is cut off.
    ///
    /// # Errors
    /// The file is shorter, begins otherwise, or cannot be read.
    pub(super) fn resume(path: &Path, position: u64, head: &[u8]) -> Result<Self> {
        let io = |e| EngineError::io(path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let mut found = vec![0; head.len()];
        file.read_exact(&mut found).map_err(io)?;
        if found != head || file.metadata().map_err(io)?.len() < position {
            let message = "is not what the interrupted build had written, and is removed: start again".to_owned();
            return Err(EngineError::Artifact { path: path.display().to_string(), message });
        }
        file.seek(SeekFrom::Start(0)).map_err(io)?;
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
        Self::of(path, file, position, hash)
    }

    fn of(path: &Path, file: File, position: u64, mut hash: Sha256) -> Result<Self> {
        let spawning = |e| EngineError::io(path, e);
        let (orders, queue) = sync_channel(PIECES);
        let (pieces, hashed) = sync_channel::<Arc<Counted>>(PIECES);
        let (named, thread) = (path.to_owned(), || std::thread::Builder::new().stack_size(512 << 10));
        let (syncs, synced) = sync_channel(PIECES);
        let same = file.try_clone().map_err(spawning)?;
        let writer = thread().spawn(move || write(&named, file, &queue, &syncs)).map_err(spawning)?;
        let named = path.to_owned();
        let syncer = thread().spawn(move || sync(&named, &same, &synced)).map_err(spawning)?;
        let hasher = thread()
            .spawn(move || {
                for piece in &hashed {
                    hash.update(piece.piece.bytes());
                }
                hex(&hash.finalize())
            })
            .map_err(spawning)?;
        Ok(Self {
            path: path.to_owned(),
            position,
            room: Arc::default(),
            orders: Some(orders),
            pieces: Some(pieces),
            writer: Some(writer),
            syncer: Some(syncer),
            hasher: Some(hasher),
        })
    }

    /// Bytes so far, those that wait included.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes. Waits while too many of them wait.
    ///
    /// # Errors
    /// What went wrong with earlier ones.
    pub(super) fn send(&mut self, piece: Piece) -> Result<()> {
        let len = piece.bytes().len();
        self.position += len as u64;
        let counted = Arc::new(Room::wait(&self.room, piece, len));
        let hashing = self.pieces.as_ref().is_some_and(|pieces| pieces.send(counted.clone()).is_ok());
        let writing = self.orders.as_ref().is_some_and(|orders| orders.send(Order::Write(counted)).is_ok());
        if hashing && writing { Ok(()) } else { Err(self.failure()) }
    }

    /// Syncs what was sent so far, beside what is sent then. An error of it is told by the next call, or the end.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn sync(&mut self, then: &Arc<Synced>) -> Result<()> {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(Order::Sync(then.clone())).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    /// Why the threads have ended early.
    fn failure(&mut self) -> EngineError {
        match self.end() {
            Err(error) => error,
            Ok(_) => EngineError::io(&self.path, std::io::Error::other("the thread that wrote it has ended")),
        }
    }

    /// Writes all that waits and syncs it: SHA-256 and length of the file.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn finish(mut self) -> Result<(String, u64)> {
        self.sync(&Synced::all(1, || Ok(())))?;
        Ok((self.end()?, self.position))
    }

    /// Writes all that waits and ends: what went wrong, if something did.
    pub(super) fn end(&mut self) -> Result<String> {
        (self.orders, self.pieces) = (None, None);
        let ended = || EngineError::io(&self.path, std::io::Error::other("a thread that wrote it has panicked"));
        let written = self.writer.take().map_or(Ok(Ok(())), JoinHandle::join);
        let synced = self.syncer.take().map_or(Ok(Ok(())), JoinHandle::join);
        let hash = self.hasher.take().map_or(Ok(String::new()), JoinHandle::join);
        written.map_err(|_| ended())??;
        synced.map_err(|_| ended())??;
        hash.map_err(|_| ended())
    }
}

/// Whoever gives a build up has its files as they were last synced: no thread writes to them after it.
impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn write(path: &Path, file: File, orders: &Receiver<Order>, syncs: &SyncSender<Arc<Synced>>) -> Result<()> {
    let io = |e| EngineError::io(path, e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    for order in orders {
        match order {
            Order::Write(piece) => out.write_all(piece.piece.bytes()).map_err(io)?,
            Order::Sync(synced) => {
                out.flush().map_err(io)?;
                // The thread that syncs tells itself why it has ended.
                if syncs.send(synced).is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn sync(path: &Path, file: &File, syncs: &Receiver<Arc<Synced>>) -> Result<()> {
    for synced in syncs {
        // Those that came meanwhile were written before now, too: once for all of them.
        let waiting: Vec<_> = std::iter::once(synced).chain(syncs.try_iter()).collect();
        file.sync_data().map_err(|e| EngineError::io(path, e))?;
        waiting.iter().try_for_each(|synced| synced.one())?;
    }
    Ok(())
}

/// How many bytes wait.
#[derive(Default)]
struct Room {
    bytes: Mutex<usize>,
    less: Condvar,
}

/// Bytes that wait until nobody needs them any more.
struct Counted {
    piece: Piece,
    len: usize,
    room: Arc<Room>,
}

impl Room {
    /// Waits until there is room for a piece, or no other one waits.
    fn wait(self: &Arc<Self>, piece: Piece, len: usize) -> Counted {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |bytes: &mut usize| *bytes > 0 && *bytes + len > BEHIND;
        *self.less.wait_while(bytes, full).unwrap_or_else(PoisonError::into_inner) += len;
        Counted { piece, len, room: self.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.room.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.len;
        self.room.less.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use std::sync::mpsc::channel;

    use super::*;

    fn digest(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    #[test]
    fn a_file_that_is_gone_on_with_has_the_hash_of_all_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut stream = Stream::create(&path).unwrap();
        stream.send(Piece::Owned(b"kept, ".to_vec())).unwrap();
        stream.send(Piece::Owned(b"cut off".to_vec())).unwrap();
        assert_eq!(stream.finish().unwrap(), (digest(b"kept, cut off"), 13));
        let mut stream = Stream::resume(&path, 6, b"kept").unwrap();
        assert_eq!(stream.position(), 6);
        let weight = HostWeight::Int8 { n: 1, k: 2, codes: vec![1, -1], scales: vec![1.0] };
        stream.send(Piece::Codes(Arc::new(weight))).unwrap();
        assert_eq!(stream.finish().unwrap(), (digest(b"kept, \x01\xff"), 8));
        assert_eq!(std::fs::read(&path).unwrap(), b"kept, \x01\xff");
        assert!(Stream::resume(&path, 6, b"else").is_err_and(|e| e.to_string().contains("interrupted build")));
        assert!(Stream::resume(&path, 9, b"kept").is_err());
    }

    #[test]
    fn what_follows_a_sync_is_done_when_the_last_file_has_come_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (mut first, mut second) = (Stream::create(&path("a")).unwrap(), Stream::create(&path("b")).unwrap());
        let (told, hears) = channel();
        let read = path("a");
        let synced = Synced::all(2, move || {
            told.send(std::fs::read(read).unwrap()).unwrap();
            Ok(())
        });
        first.send(Piece::Owned(b"1".to_vec())).unwrap();
        first.sync(&synced).unwrap();
        assert!(hears.try_recv().is_err());
        second.sync(&synced).unwrap();
        assert_eq!(hears.recv().unwrap(), b"1");
    }

    #[test]
    fn an_error_is_told_by_what_comes_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut stream = Stream::create(&directory.path().join("x")).unwrap();
        stream.sync(&Synced::all(1, || Err(EngineError::Unsupported("this".into())))).unwrap();
        let next = || stream.sync(&Synced::all(1, || Ok(()))).and_then(|()| stream.send(Piece::Owned(vec![0])));
        let error = std::iter::repeat_with(next).find_map(Result::err);
        assert!(error.unwrap().to_string().contains("this"));

        let mut stream = Stream::create(&directory.path().join("x")).unwrap();
        stream.sync(&Synced::all(1, || Err(EngineError::Unsupported("that".into())))).unwrap();
        stream.send(Piece::Owned(vec![0])).unwrap();
        assert!(stream.finish().unwrap_err().to_string().contains("that"));
    }

    #[test]
    fn no_more_waits_than_the_bound() {
        let room = Arc::new(Room::default());
        let hold = |len: usize| room.wait(Piece::Owned(Vec::new()), len);
        // One piece of any size.
        drop(hold(10 * BEHIND));
        let first = hold(BEHIND / 2);
        let _second = hold(BEHIND / 2);
        std::thread::scope(|scope| {
            let third = scope.spawn(|| drop(hold(1)));
            assert!(!third.is_finished());
            drop(first);
        });
    }
}
