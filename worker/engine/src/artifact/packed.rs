//! The packed file as it grows: aligned entries, taken up again after a kill.

use std::{path::Path, sync::Arc};

use modelprofile_kernels::Stack;

use super::{
    Entry, EntryKind,
    stream::{Piece, Stream, Synced},
};
use crate::{Result, quantize::in_order};

const TENSOR_ALIGNMENT: u64 = 64;
/// Bytes of panels that a thread packs at once.
const STRIP: usize = 1 << 20;

/// Writes aligned entries.
pub(super) struct PackedWriter {
    out: Stream,
    entries: Vec<Entry>,
}

impl PackedWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { out: Stream::create(path)?, entries: Vec::new() })
    }

    /// Goes on after the first `position` bytes of a file, which hold `entries`; what follows them is cut off.
    ///
    /// # Errors
    /// The file is shorter, or cannot be read.
    pub(super) fn resume(path: &Path, position: u64, entries: Vec<Entry>) -> Result<Self> {
        Ok(Self { out: Stream::resume(path, position, &[])?, entries })
    }

    /// Bytes and entries so far.
    pub(super) fn so_far(&self) -> (u64, &[Entry]) {
        (self.out.position(), &self.entries)
    }

    pub(super) fn align(&mut self, alignment: u64) -> Result<()> {
        let position = self.out.position();
        match position.next_multiple_of(alignment) - position {
            0 => Ok(()),
            gap => self.out.send(Piece::Owned(vec![0; gap as usize])),
        }
    }

    fn entry(&mut self, name: String, kind: EntryKind, n: usize, k: usize, len: usize) -> Result<()> {
        self.align(TENSOR_ALIGNMENT)?;
        self.entries.push(Entry { name, kind, n, k, offset: self.out.position(), len: len as u64 });
        Ok(())
    }

    pub(super) fn vector(&mut self, name: String, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.entry(name, EntryKind::F32, 1, values.len(), bytes.len())?;
        self.out.send(Piece::Owned(bytes))
    }

    /// Packs weights that stand one below the other, strip by strip: the packed copy is never in memory as a whole.
    pub(super) fn weight(&mut self, name: String, stack: &Stack<'_>, threads: usize) -> Result<()> {
        let (spec, panels) = (stack.spec(), stack.panels());
        let len = panels * stack.panel_bytes() + stack.tail_bytes();
        self.entry(name, spec.kind.into(), spec.n, spec.k, len)?;
        let of_strip = (STRIP / stack.panel_bytes()).max(1);
        let pack = |(): &mut (), strip: usize| {
            let first = strip * of_strip;
            let mut bytes = vec![0; of_strip.min(panels - first) * stack.panel_bytes()];
            stack.pack_panels(first, &mut bytes);
            Ok(bytes)
        };
        in_order(threads, 0..panels.div_ceil(of_strip), pack, |bytes| self.out.send(Piece::Owned(bytes)))?;
        let mut tail = vec![0; stack.tail_bytes()];
        stack.pack_tail(&mut tail);
        self.out.send(Piece::Owned(tail))
    }

    /// Syncs what was written so far, beside what comes then.
    pub(super) fn sync(&mut self, then: &Arc<Synced>) -> Result<()> {
        self.out.sync(then)
    }

    /// Ends early: what went wrong with the file, if something did.
    pub(super) fn end(&mut self) -> Result<()> {
        self.out.end().map(drop)
    }

    /// Checksum, length and entries of the whole file, on disk.
    pub(super) fn finish(self) -> Result<(String, u64, Vec<Entry>)> {
        let (sha256, bytes) = self.out.finish()?;
        Ok((sha256, bytes, self.entries))
    }
}
