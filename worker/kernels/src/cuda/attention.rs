//! Paged attention of a step: decode and prefill launches over its sequences, and how finely a sequence is cut.

use super::{
    Cuda,
    graph::Command,
    kernels::Ptr,
    kv::CudaKv,
    launch::attention::{Attention, Parts},
    scratch::Slot,
    step::CudaStep,
};
use crate::{AttentionShape, Result};

/// Most parts of a sequence: a part has at least 128 tokens (`kernels/attention_decode.cu`).
const MOST_SPLITS: usize = 32;
/// Parts with `deterministic`: one number for every batch.
const FIXED_SPLITS: u32 = 16;

impl Cuda {
    pub(super) fn attend(
        &self,
        step: &CudaStep,
        qkv: Ptr<f32>,
        shape: &AttentionShape,
        kv: &CudaKv,
        layer: usize,
        out: Ptr<f32>,
    ) -> Result<()> {
        let splits = self.parts(step.sequences.count, shape);
        let (sums, states) = if step.shape.decodes {
            let [sums, states] = Parts::sizes(step.sequences.count, shape, splits);
            (
                Ptr::new(self.scratch(Slot::Sums, sums * size_of::<f32>())?),
                Ptr::new(self.scratch(Slot::States, states * size_of::<f32>())?),
            )
        } else {
            (Ptr::NULL, Ptr::NULL)
        };
        let parts = Parts { sums, states, splits };
        let attention = Attention::new(qkv, shape, kv, layer, &step.sequences, parts, out)?;
        // Each kernel passes over the sequences that are the other's.
        if step.shape.decodes {
            self.submit(Command::Launch(attention.decode()?))?;
            self.submit(Command::Launch(attention.reduce()?))?;
        }
        if step.shape.longest > 0 {
            self.submit(Command::Launch(attention.prefill(step.shape.longest)?))?;
        }
        Ok(())
    }

    /// Most parts of a sequence: so many that there are two blocks for each multiprocessor, whatever the lengths are, which
    /// a recorded step does not know.
    fn parts(&self, sequences: usize, shape: &AttentionShape) -> u32 {
        if self.options.deterministic {
            return FIXED_SPLITS;
        }
        let blocks = sequences * shape.kv_heads;
        let wanted = (2 * self.shared.gpu.info.processors as usize).div_ceil(blocks.max(1));
        wanted.clamp(1, MOST_SPLITS) as u32
    }
}
