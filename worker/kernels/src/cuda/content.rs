//! What buffers hold: values, or the promise of a norm or a gated activation.
//!
//! A decoder layer norms rows only to multiply the result with a weight, and a product takes its inputs quantized. So
//! `rms_norm` and `gated_silu` launch nothing: they note what the buffer is to hold, and the product quantizes straight from
//! the source, with one kernel where there were two, and without the FP32 rows in between.
//!
//! ```text
//! promised --a product reads it--> promised, used
//!     |  \--anything else reads it, or the source is written--> plain (one kernel)
//!     v                                        promised, used --the source is written--> lapsed
//!   plain <--written anew-- from every state
//! ```
//!
//! A promise that a product has used and whose source is then written lapses without a kernel: in a layer nobody reads it
//! again, and computing it would cost two launches a layer. Reading a lapsed buffer is an error value: never stale data.

use std::sync::{Arc, Weak};

use super::{
    kernels::{Launch, Ptr, Rows, Side},
    launch::rows::{self, Source},
    memory::Block,
};
use crate::{KernelError, Result};

/// An FP32 matrix `[rows, width]` on the device.
#[derive(Debug)]
pub struct CudaBuffer {
    pub(super) id: u64,
    pub(super) block: Arc<Block>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl CudaBuffer {
    pub(super) fn at(&self) -> Ptr<f32> {
        Ptr::new(self.block.address())
    }

    /// The same buffer under another name: not a copy.
    pub(super) fn alias(&self) -> Self {
        Self { id: self.id, block: self.block.clone(), rows: self.rows, width: self.width }
    }
}

/// What a promise keeps alive: memory, or what stands for it in a plan.
pub(super) type Kept = Arc<dyn std::fmt::Debug + Send + Sync>;

/// A buffer, as operations and promises see it.
pub(super) trait Held {
    /// Which it is.
    fn id(&self) -> u64;
    /// Where its values are.
    fn at(&self) -> Ptr<f32>;
    /// Its sides.
    fn rows(&self) -> usize;
    fn width(&self) -> usize;
    /// What lives as long as it does.
    fn kept(&self) -> Kept;
}

impl Held for CudaBuffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn at(&self) -> Ptr<f32> {
        Self::at(self)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn kept(&self) -> Kept {
        self.block.clone()
    }
}

/// A buffer whose values are not there yet.
#[derive(Debug)]
struct Promise {
    target: u64,
    /// Dead when the buffer is gone; then nobody asks for the promise.
    block: Weak<dyn std::fmt::Debug + Send + Sync>,
    at: Ptr<f32>,
    rows: Rows,
    width: Side,
    source: Source,
    /// Buffers that `source` points into; kept alive.
    inputs: Vec<(u64, Kept)>,
    used: bool,
    lapsed: bool,
}

/// The promises of a device: few at a time.
#[derive(Debug, Default)]
pub(super) struct Contents {
    promises: Vec<Promise>,
}

impl Contents {
    /// `target` is to hold `rows` rows made of `source`, which reads `inputs`.
    pub(super) fn promise<B: Held>(&mut self, target: &B, rows: Rows, width: Side, source: Source, inputs: &[&B]) {
        self.promises.retain(|p| p.target != target.id() && p.block.strong_count() > 0);
        self.promises.push(Promise {
            target: target.id(),
            block: Arc::downgrade(&target.kept()),
            at: target.at(),
            rows,
            width,
            source,
            inputs: inputs.iter().map(|b| (b.id(), b.kept())).collect(),
            used: false,
            lapsed: false,
        });
    }

    /// What a product reads `rows` rows of a buffer from. A promise of fewer rows has to be made plain first: then none.
    pub(super) fn source(&mut self, buffer: &impl Held, rows: usize) -> Result<Option<Source>> {
        let Some(promise) = self.promises.iter_mut().find(|p| p.target == buffer.id()) else {
            return Ok(Some(Source::Plain(buffer.at())));
        };
        if promise.lapsed {
            return Err(lapsed());
        }
        if rows > promise.rows.get() {
            return Ok(None);
        }
        promise.used = true;
        Ok(Some(promise.source))
    }

    /// What makes a buffer's values be there; none when they are.
    pub(super) fn make_plain(&mut self, buffer: &impl Held) -> Result<Option<Launch>> {
        let Some(index) = self.promises.iter().position(|p| p.target == buffer.id()) else { return Ok(None) };
        if self.promises[index].lapsed {
            return Err(lapsed());
        }
        Ok(self.promises.swap_remove(index).launch())
    }

    /// A buffer is about to be written as a whole or in part: what must be launched before. What it was promised to hold is
    /// forgotten.
    pub(super) fn before_write(&mut self, buffer: &impl Held) -> Vec<Launch> {
        let mut launches = Vec::new();
        self.promises.retain_mut(|promise| {
            if promise.target == buffer.id() || promise.block.strong_count() == 0 {
                return false;
            }
            if promise.lapsed || promise.inputs.iter().all(|(id, _)| *id != buffer.id()) {
                return true;
            }
            if promise.used {
                promise.lapsed = true;
                promise.inputs.clear();
                return true;
            }
            launches.extend(promise.launch());
            false
        });
        launches
    }
}

impl Promise {
    fn launch(&self) -> Option<Launch> {
        rows::plain(self.rows, self.source, self.width, self.at)
    }
}

fn lapsed() -> KernelError {
    KernelError::Device(
        "a norm or gated activation is read after its input was written again; read it before, or compute it anew"
            .into(),
    )
}
