//! How much scratch steps need at most, set aside before they come: a step that had to find memory while weights and cache fill
//! the budget would fail, and scratch that grows leaves holes behind.
//!
//! The bounds follow `linear`, `attention`, `draw` and `step` operation by operation; a test holds them against what steps take.

use super::{
    Cuda, attention, draw, graph,
    launch::attention::Parts,
    layout::ROW_PIECE,
    linear,
    scratch::{Scratch, Slot},
    weights::SEGMENT,
};
use crate::{BLOCK_TOKENS, FP8_BLOCK, MAX_OUTLIERS, Result, Workload};

/// Chunks that are lost to rounding, at most: one at the end of the buffers, one at the end of the cache, and while two profiles
/// share the device one at each end of what each of them has there. Two to spare.
const LOST_CHUNKS: usize = 8;

impl Cuda {
    /// See [`Device::reserve`](crate::Device::reserve).
    pub(super) fn set_aside(&self, workload: &Workload) -> Result<usize> {
        self.shared.gpu.context.bind()?;
        let mut all = 0;
        for (slot, bytes) in self.needs(workload)? {
            if bytes > 0 {
                self.scratch(slot, bytes)?;
            }
            all += Scratch::size(bytes);
        }
        let segments = self.memory().budget().div_ceil(SEGMENT);
        let lost = (LOST_CHUNKS + segments) * self.memory().chunk_bytes();
        Ok(all + self.options.matmul_workspace + lost)
    }

    /// Bytes of each piece of scratch.
    fn needs(&self, workload: &Workload) -> Result<[(Slot, usize); 15]> {
        let attention = &workload.attention;
        let padded = |count: usize| graph::bucket(count).unwrap_or(count).max(count);
        let (rows, logit_rows) = (padded(workload.rows), padded(workload.logit_rows).min(padded(workload.rows)));
        let sequences = padded(workload.sequences);
        let products: Vec<_> = workload.products.iter().map(|shape| (rows, *shape)).collect();
        let products = || products.iter().copied().chain([(logit_rows, workload.output)]);
        let most = |bytes: &dyn Fn(usize, usize, usize) -> Result<usize>| {
            products().try_fold(0, |most, (rows, (n, k))| Ok(bytes(rows, n, k)?.max(most)))
        };
        let word = size_of::<f32>();

        let codes = most(&|rows, _, k| Ok(rows * k.next_multiple_of(ROW_PIECE) * 2))?;
        let scales = most(&|rows, _, k| Ok(rows * k.div_ceil(FP8_BLOCK) * word))?;
        let picked = rows * MAX_OUTLIERS.next_multiple_of(ROW_PIECE) * 2;
        let raw = most(&|rows, n, _| Ok(rows * n * word))?;
        let partial = most(&|rows, n, k| linear::partial_bytes(self, rows, n, k))?;
        let unpacked = most(&|rows, n, k| Ok(if linear::unpacks(self, rows, n, k)? { n * k * 2 } else { 0 }))?;
        let angles = rows * attention.head_dim * word;
        let [sums, states] = self.attention_parts(sequences, attention);
        let blocks = workload.tokens.div_ceil(BLOCK_TOKENS);
        let step = (4 * rows + 4 * sequences + sequences * blocks) * size_of::<u32>();
        let moves = 2 * workload.blocks * size_of::<u32>();
        let [draws, lists, parts, tokens] = draw::scratch_bytes(logit_rows, workload.output.0);
        Ok([
            (Slot::Codes, codes),
            (Slot::Scales, scales),
            (Slot::Picked, picked),
            (Slot::Raw, raw),
            (Slot::Partial, partial),
            (Slot::Unpacked, unpacked),
            (Slot::Angles, angles),
            (Slot::Sums, sums * word),
            (Slot::States, states * word),
            (Slot::Step, step),
            (Slot::Moves, moves),
            (Slot::Draws, draws),
            (Slot::Lists, lists),
            (Slot::Parts, parts),
            (Slot::Tokens, tokens),
        ])
    }

    /// The most parts of decode attention, over all numbers of sequences.
    fn attention_parts(&self, sequences: usize, attention: &crate::AttentionShape) -> [usize; 2] {
        let sizes =
            (1..=sequences).map(|count| Parts::sizes(count, attention, attention::splits(self, count, attention)));
        sizes.fold([0, 0], |most, sizes| [most[0].max(sizes[0]), most[1].max(sizes[1])])
    }
}
