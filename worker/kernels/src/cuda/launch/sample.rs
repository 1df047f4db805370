//! Launches of the sampler's kernels. The contracts are in `kernels/sample.cuh` and the files behind it.

use bytemuck::{Pod, Zeroable};

use super::per_row;
use crate::{
    Draw,
    cuda::{
        driver::Parameters,
        kernels::{Kernel, Launch, Ptr, Rows, Side},
        work::{Work, floats},
    },
};

/// The parameters of a row, as the kernels declare them.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cuda) struct SampleRow {
    random: f64,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    top_k: u32,
    /// The row's ranges of the lists.
    pub(in crate::cuda) bias_start: u32,
    pub(in crate::cuda) bias_count: u32,
    pub(in crate::cuda) seen_start: u32,
    pub(in crate::cuda) seen_count: u32,
    unused: u32,
}

const _: () = assert!(size_of::<SampleRow>() == 56);

impl SampleRow {
    /// With lists that begin at 0.
    pub(in crate::cuda) fn new(draw: &Draw) -> Self {
        Self {
            random: draw.random,
            temperature: draw.temperature,
            top_p: draw.top_p,
            min_p: draw.min_p,
            repetition: draw.repetition,
            presence: draw.presence,
            frequency: draw.frequency,
            top_k: draw.top_k,
            bias_start: 0,
            bias_count: draw.bias.len() as u32,
            seen_start: 0,
            seen_count: draw.seen.len() as u32,
            unused: 0,
        }
    }
}

/// Lists of some rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Lists {
    pub(in crate::cuda) bias_tokens: Ptr<u32>,
    pub(in crate::cuda) bias_values: Ptr<f32>,
    pub(in crate::cuda) seen_tokens: Ptr<u32>,
    pub(in crate::cuda) seen_counts: Ptr<u32>,
}

/// Bias and penalties, in place; `entries` of the lists are those of all rows.
pub(in crate::cuda) fn penalize(
    rows: Rows,
    logits: Ptr<f32>,
    how: Ptr<SampleRow>,
    lists: &Lists,
    entries: usize,
    vocab: Side,
) -> Launch {
    let parameters = Parameters::new()
        .ptr(logits)
        .ptr(how)
        .ptr(lists.bias_tokens)
        .ptr(lists.bias_values)
        .ptr(lists.seen_tokens)
        .ptr(lists.seen_counts)
        .side(vocab)
        .side(vocab);
    // An entry is a token and a number; its logit is read and written.
    let read = rows.get() * size_of::<SampleRow>() + floats(3 * entries);
    Launch::new(Kernel::Penalize, per_row(rows), parameters).with_work(Work::bytes(read, floats(entries)))
}

/// `out[r]`: the token of each row. The rows are changed, but for the `greedy` ones among them.
pub(in crate::cuda) fn tokens(
    rows: Rows,
    out: Ptr<u32>,
    logits: Ptr<f32>,
    how: Ptr<SampleRow>,
    greedy: usize,
    vocab: Side,
) -> Launch {
    let parameters = Parameters::new().ptr(out).ptr(logits).ptr(how).side(vocab).side(vocab);
    let row = floats(vocab.get());
    // Keys take the logits' place; a row is then in the L2 cache, however often it is walked.
    let read = rows.get() * (size_of::<SampleRow>() + row);
    let work = Work::bytes(read, (rows.get() - greedy) * row + floats(rows.get()));
    Launch::new(Kernel::SampleTokens, per_row(rows), parameters).with_work(work)
}
