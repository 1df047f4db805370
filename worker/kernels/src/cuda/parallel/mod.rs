//! [`Parallel`]: several GPUs that compute one model together (tensor parallelism).
//!
//! | module | what it does |
//! |---|---|
//! | [`split`] | how weights and activations are divided: pure |
//! | [`ranks`] | one thread a device |
//! | [`agreement`], [`group`] | when the devices run a step as a graph; when they are parted for good |
//! | [`values`] | buffers, weights and pools in parts |
//! | [`device`], [`backend`], [`calibrate`] | the traits |
//!
//! ```text
//! model ──operation──> Parallel ──the same operation on its parts──> thread of GPU r ──> Cuda (queue, stream) ──┐
//!                                                                                         all-reduce over NCCL ──┘
//! ```
//!
//! # What is where
//! The residual and the norms are whole on every GPU. Q, K, V, the cache, the attention's output, gate and up and the activation
//! between them are divided: each GPU computes its heads and its intermediate columns from the whole input, and the products that
//! lead back to the residual give parts of a sum. GPU 0 adds its part to the residual, the others put theirs in its place, and one
//! sum over the GPUs, in place, makes the same residual everywhere: two a layer.
//!
//! Embedding and output are divided by the vocabulary. A GPU looks up the tokens that it has, and a third sum makes the residual
//! whole; logits are put together on the host, and tokens drawn there, since no GPU has a row of them whole (of an output layer
//! that each has whole the first GPU draws). A whole table on each GPU would save that sum, of a few microseconds a step, and the
//! host's part, and cost `vocab x hidden` values more on each: 0.5 to 1 GB of a model of 8B, which are the KV cache's.
//!
//! # How results differ from one GPU's
//! Sums are made in another order. Beyond it, where activations are rounded to INT8 or FP8 with one scale per token, a GPU's scale
//! comes from its own columns of the attention's output and of the activation: the rounding is finer, and not the same. With static
//! scales, blocks or groups codes are the same. For the same GPUs a step gives the same result every time.

mod agreement;
mod backend;
mod calibrate;
mod device;
mod group;
mod ranks;
mod split;
mod values;

use std::{cell::Cell, collections::BTreeSet, sync::Arc};

pub use self::values::{ParallelBuffer, ParallelKv, ParallelStep, ParallelWeight};
pub(super) use self::{
    agreement::{Course, Vote},
    group::Member,
};
use self::{
    group::Group,
    ranks::{Rank, Ranks},
};
use super::{CudaOptions, DeviceInfo, Origin, Physical};
use crate::{KernelError, Result};

/// Several GPUs as one device.
pub struct Parallel {
    ranks: Arc<Ranks>,
    group: Arc<Group>,
    infos: Vec<DeviceInfo>,
    memories: Vec<Arc<Physical>>,
    graphs: bool,
    /// The present step, from 1.
    number: u64,
    /// Rows of the present step, and of the bucket that it is padded to while that is sure.
    rows: usize,
    bucket: Cell<Option<usize>>,
}

impl Parallel {
    /// Opens the GPUs, each on a thread of its own, and joins them.
    ///
    /// # Errors
    /// As [`Cuda::new`](super::Cuda::new); [`KernelError::Device`] with a sentence when NCCL is missing, a GPU is named twice, or
    /// the GPUs are to compute in different ways.
    pub fn new(options: &[CudaOptions]) -> Result<Self> {
        let Some(first) = options.first() else {
            return Err(KernelError::Device("a model on several GPUs needs at least one; name their numbers".into()));
        };
        let ordinals: Vec<usize> = options.iter().map(|options| options.ordinal).collect();
        if ordinals.iter().collect::<BTreeSet<_>>().len() < ordinals.len() {
            return Err(KernelError::Device(format!("GPUs {ordinals:?}: each can be named once")));
        }
        if options.iter().any(|o| (o.graphs, o.deterministic) != (first.graphs, first.deterministic)) {
            return Err(KernelError::Device(
                "the GPUs of one model compute in the same way: give all the same `graphs` and `deterministic`".into(),
            ));
        }
        let ranks = Ranks::open(options)?;
        let about = ranks.ask(|rank| Ok((rank.cuda.info().clone(), rank.cuda.physical())))?;
        let (infos, memories) = about.into_iter().unzip();
        // After the devices' contexts, which the communicators are made in.
        let group = Group::new(&ordinals)?;
        ranks.join(&group, &ordinals)?;
        Ok(Self {
            ranks: Arc::new(ranks),
            group,
            infos,
            memories,
            graphs: first.graphs,
            number: 0,
            rows: 0,
            bucket: Cell::new(None),
        })
    }

    /// The GPUs, in the order of their parts.
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.infos
    }

    /// Physical memory of each GPU: budget, use.
    pub fn memories(&self) -> &[Arc<Physical>] {
        &self.memories
    }

    /// Bytes that the GPU with the smallest budget has for its part of a model.
    pub fn budget(&self) -> usize {
        self.memories.iter().map(|memory| memory.budget()).min().unwrap_or(0)
    }

    /// Sentences for the log that came up since the last call, each once for each GPU.
    pub fn take_notes(&self) -> Vec<String> {
        let notes = self.ask(|rank| Ok(rank.cuda.take_notes())).unwrap_or_default();
        let of = |(index, notes): (usize, Vec<String>)| {
            notes.into_iter().map(move |note| format!("GPU {index} of the model: {note}"))
        };
        notes.into_iter().enumerate().flat_map(of).collect()
    }

    /// Decode steps that ran as a recorded graph, on each GPU.
    pub fn replays(&self) -> Vec<u64> {
        self.ask(|rank| Ok(rank.cuda.replays())).unwrap_or_default()
    }

    /// Where the first GPU's units of kernels came from.
    pub fn kernel_origins(&self) -> Vec<(&'static str, Origin)> {
        self.ask(|rank| Ok(rank.cuda.kernel_origins())).unwrap_or_default().into_iter().next().unwrap_or_default()
    }

    /// GPUs.
    fn count(&self) -> usize {
        self.ranks.len()
    }

    /// Has all GPUs do something at the end of the step, and waits for what they say.
    fn ask<T: Send + 'static>(&self, work: impl Fn(&mut Rank) -> Result<T> + Send + Sync + 'static) -> Result<Vec<T>> {
        self.bucket.set(None);
        // Where they were parted, why they were says more than what came of it.
        self.ranks.ask(work).or_else(|error| self.group.check().and(Err(error)))
    }

    /// Gives all GPUs an operation of the present step.
    ///
    /// # Errors
    /// Once they are parted.
    fn submit(&self, work: impl Fn(&mut Rank) -> Result<()> + Send + Sync + 'static) -> Result<()> {
        self.group.check()?;
        self.ranks.submit(work);
        Ok(())
    }

    /// Rows that a sum over the GPUs takes of a buffer with `all` rows: the same on each, and the bucket's where the step is padded
    /// to one, so that a recorded step has them whatever its rows are.
    fn summed_rows(&self, rows: usize, all: usize) -> usize {
        self.bucket.get().filter(|bucket| rows == self.rows && all >= *bucket).unwrap_or(rows)
    }
}

impl Drop for Parallel {
    fn drop(&mut self) {
        // Graphs hold operations of the communicators.
        let forgotten = self.ask(|rank| rank.cuda.forget_steps());
        match forgotten {
            Ok(_) => self.group.disband(),
            Err(error) => self.group.part(format!("{error}, when the model was closed")),
        }
    }
}
