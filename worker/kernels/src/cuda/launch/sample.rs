//! Launches of the sampler's kernels. The contracts are in `kernels/sample.cuh` and the files behind it.

use bytemuck::{Pod, Zeroable};

use super::{blocks, per_row};
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

/// As `kernels/sample.cuh` has them: tokens of a part of a row, bins of a histogram, candidates that a list has room for.
const PART_TOKENS: usize = 4096;
const BINS: usize = 1024;
const LISTED: usize = 4096;
const WORD: usize = size_of::<u64>();

/// Words that the kernels keep of a row of so many tokens (`SampleWork`), with or without what truncated rows need.
const fn row_words(vocab: usize, truncated: bool) -> usize {
    2 * vocab.div_ceil(PART_TOKENS) + if truncated { 1 + BINS + LISTED } else { 0 }
}

/// Draws from rows of logits.
#[derive(Clone, Copy, Debug)]
pub(in crate::cuda) struct Drawn {
    pub(in crate::cuda) rows: Rows,
    pub(in crate::cuda) logits: Ptr<f32>,
    pub(in crate::cuda) how: Ptr<SampleRow>,
    pub(in crate::cuda) vocab: Side,
    /// Rows that are greedy, and those that top-k or top-p truncates.
    pub(in crate::cuda) greedy: usize,
    pub(in crate::cuda) truncated: usize,
}

impl Drawn {
    /// Bytes of what kernels leave to those behind them.
    pub(in crate::cuda) fn work_bytes(&self) -> usize {
        work_bytes(self.rows.get(), self.vocab.get(), self.truncated > 0)
    }

    /// `out[r]`: the token of each row.
    pub(in crate::cuda) fn launches(&self, work: Ptr<u64>, out: Ptr<u32>) -> Vec<Launch> {
        let (rows, vocab) = (self.rows.get(), self.vocab.get());
        let (row, part) = (floats(vocab), floats(vocab.min(PART_TOKENS)));
        let words = vocab.div_ceil(PART_TOKENS) * WORD;
        let bins = BINS * WORD;
        let drawn = rows - self.greedy;
        let how = rows * size_of::<SampleRow>();

        let best = Work::bytes(how + rows * row, rows * words + self.truncated * (bins + WORD));
        let mass = Work::bytes(how + drawn * (words + row), drawn * words + self.truncated * bins);
        // How much is listed only the logits know; it is little.
        let list = Work::bytes(how + self.truncated * (words + bins + row), 0);
        let tokens = Work::bytes(how + rows * words + drawn * (words + part), floats(rows));

        let mut launches = vec![self.over_parts(Kernel::SampleBest, work, best)];
        if drawn > 0 {
            launches.push(self.over_parts(Kernel::SampleMass, work, mass));
        }
        if self.truncated > 0 {
            launches.push(self.over_parts(Kernel::SampleList, work, list));
        }
        let parameters = self.parameters(Parameters::new().ptr(out), work);
        launches.push(Launch::new(Kernel::SampleTokens, per_row(self.rows), parameters).with_work(tokens));
        launches
    }

    fn over_parts(&self, kernel: Kernel, left: Ptr<u64>, work: Work) -> Launch {
        let grid = [self.rows.get() as u32, blocks(self.vocab.get(), PART_TOKENS), 1];
        Launch::new(kernel, grid, self.parameters(Parameters::new(), left)).with_work(work)
    }

    #[allow(clippy::large_types_passed_by_value, reason = "moved into its place")]
    fn parameters(&self, parameters: Parameters, work: Ptr<u64>) -> Parameters {
        let words = row_words(self.vocab.get(), self.truncated > 0) as u32;
        parameters.ptr(work).ptr(self.logits).ptr(self.how).side(self.vocab).side(self.vocab).with(words)
    }
}

/// Bytes of what the kernels keep of rows.
pub(in crate::cuda) fn work_bytes(rows: usize, vocab: usize, truncated: bool) -> usize {
    rows * row_words(vocab, truncated) * WORD
}
