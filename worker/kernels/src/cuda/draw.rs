//! Tokens drawn from logits: what the kernels are told of each row, and which rows' lists are on the device at once.
//!
//! ```text
//! rows of parameters -> device;   for each group of rows: lists of bias and seen tokens -> device, penalize;
//! sample_best;   sample_mass where a row is not greedy;   sample_list where one has top-k or top-p;   sample_tokens
//! ```

use std::ops::Range;

use super::{
    content::Held,
    executor::Executor,
    graph::Command,
    kernels::{Ptr, Rows, Side},
    launch::sample::{self as launch, Drawn, Lists, SampleRow},
    operations::{fits, number, read, write},
    scratch::Slot,
};
use crate::{Draw, Result};

/// Most entries of lists that are on the device at once, unless one row alone has more: what a batch of some thousand tokens each
/// needs, in 512 KiB.
pub(super) const MOST_LISTED: usize = 1 << 16;

/// Most tokens of a vocabulary (`kernels/sample.cu`).
const MOST_TOKENS: usize = 1 << 20;

/// What the kernel gives where a logit is NaN or nothing can be drawn.
const NO_TOKEN: u32 = u32::MAX;

/// The parameters of rows, and their lists.
#[derive(Debug, Default)]
struct Told {
    rows: Vec<SampleRow>,
    groups: Vec<Group>,
}

/// Lists of consecutive rows.
#[derive(Debug)]
struct Group {
    rows: Range<usize>,
    bias: Vec<(u32, f32)>,
    seen: Vec<(u32, u32)>,
}

impl Told {
    fn new(draws: &[Draw]) -> Self {
        let mut told = Self::default();
        for (index, draw) in draws.iter().enumerate() {
            let more = draw.bias.len() + draw.seen.len();
            let mut row = SampleRow::new(draw);
            if more > 0 {
                let room = |group: &Group| group.bias.len() + group.seen.len() + more <= MOST_LISTED;
                if !told.groups.last().is_some_and(room) {
                    told.groups.push(Group { rows: index..index, bias: Vec::new(), seen: Vec::new() });
                }
                if let Some(group) = told.groups.last_mut() {
                    row.bias_start = number(group.bias.len());
                    row.seen_start = number(group.seen.len());
                    group.rows.end = index + 1;
                    group.bias.extend_from_slice(&draw.bias);
                    group.seen.extend_from_slice(&draw.seen);
                }
            }
            told.rows.push(row);
        }
        told
    }
}

impl Group {
    /// Tokens and values of biases, then tokens and counts of what was seen.
    fn words(&self) -> Vec<u32> {
        let bias = self.bias.iter().map(|(token, _)| *token).chain(self.bias.iter().map(|(_, value)| value.to_bits()));
        let seen = self.seen.iter().map(|(token, _)| *token).chain(self.seen.iter().map(|(_, count)| *count));
        bias.chain(seen).collect()
    }

    fn at(&self, words: Ptr<u32>) -> Lists {
        let seen = words.offset(2 * self.bias.len());
        Lists {
            bias_tokens: words,
            bias_values: Ptr::new(words.offset(self.bias.len()).address()),
            seen_tokens: seen,
            seen_counts: seen.offset(self.seen.len()),
        }
    }
}

/// Bytes of the scratch that draws of so many rows at once take: parameters, lists, parts, tokens.
pub(super) fn scratch_bytes(rows: usize, vocab: usize) -> [usize; 4] {
    let listed = MOST_LISTED.max(2 * vocab);
    let parts = launch::work_bytes(rows, vocab, true);
    [rows * size_of::<SampleRow>(), listed * 2 * size_of::<u32>(), parts, rows * size_of::<u32>()]
}

/// Whether top-k or top-p may leave out some of so many tokens; as `is_truncated` of `kernels/sample.cuh`.
fn is_truncated(draw: &Draw, vocab: usize) -> bool {
    let top_k = draw.top_k > 0 && (draw.top_k as usize) < vocab;
    !draw.is_greedy() && (top_k || draw.top_p < 1.0)
}

/// Draws tokens of rows from `first` on; gives where they will be, none where the kernels do not take such a vocabulary.
pub(super) fn tokens<E: Executor>(
    on: &E,
    logits: &E::Buffer,
    first: usize,
    draws: &[Draw],
) -> Result<Option<Ptr<u32>>> {
    let width = logits.width();
    fits("the logits", logits, first + draws.len(), width)?;
    let Some(vocab) = Side::new("the logits", width).ok().filter(|_| width <= MOST_TOKENS) else { return Ok(None) };
    let Some(rows) = Rows::new(draws.len())? else { return Ok(Some(Ptr::NULL)) };
    read(on, logits)?;
    write(on, logits)?;
    let told = Told::new(draws);
    let parameters = Ptr::<SampleRow>::new(on.send(Slot::Draws, bytemuck::cast_slice(&told.rows))?);
    let row = |index: usize| logits.at().offset((first + index) * width);
    for group in &told.groups {
        let Some(count) = Rows::new(group.rows.len())? else { continue };
        let lists = group.at(Ptr::new(on.send(Slot::Lists, bytemuck::cast_slice(&group.words()))?));
        let entries = group.bias.len() + group.seen.len();
        let start = group.rows.start;
        let launch = launch::penalize(count, row(start), parameters.offset(start), &lists, entries, vocab);
        on.submit(Command::Launch(launch))?;
    }
    let drawn = Drawn {
        rows,
        logits: row(0),
        how: parameters,
        vocab,
        greedy: draws.iter().filter(|draw| draw.is_greedy()).count(),
        truncated: draws.iter().filter(|draw| is_truncated(draw, width)).count(),
    };
    let parts = Ptr::new(on.scratch(Slot::Parts, drawn.work_bytes())?);
    let tokens = Ptr::new(on.scratch(Slot::Tokens, rows.get() * size_of::<u32>())?);
    for launch in drawn.launches(parts, tokens) {
        on.submit(Command::Launch(launch))?;
    }
    Ok(Some(tokens))
}

/// Tokens as the kernel left them.
pub(super) fn found(tokens: Vec<u32>) -> Vec<Option<u32>> {
    tokens.into_iter().map(|token| (token != NO_TOKEN).then_some(token)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_lists_as_long_as_these_have_room() {
        let with =
            |bias: usize, seen: usize| Draw { bias: vec![(1, 0.5); bias], seen: vec![(2, 3); seen], ..Draw::default() };
        let half = MOST_LISTED / 2;
        let draws = [with(0, 0), with(2, half), with(0, 0), with(1, 5), with(0, half), with(0, 2 * MOST_LISTED)];
        let told = Told::new(&draws);
        let groups: Vec<_> = told.groups.iter().map(|g| (g.rows.clone(), g.bias.len(), g.seen.len())).collect();
        assert_eq!(groups, [(1..4, 3, half + 5), (4..5, 0, half), (5..6, 0, 2 * MOST_LISTED)]);
        let starts: Vec<_> =
            told.rows.iter().map(|r| [r.bias_start, r.bias_count, r.seen_start, r.seen_count]).collect();
        let half = half as u32;
        assert_eq!(starts[..4], [[0; 4], [0, 2, 0, half], [0; 4], [2, 1, half, 5]]);
    }

    #[test]
    fn lists_lie_behind_each_other() {
        let told = Told::new(&[Draw { bias: vec![(7, 1.0), (9, -1.0)], seen: vec![(4, 0)], ..Draw::default() }]);
        let group = &told.groups[0];
        assert_eq!(group.words(), [7, 9, 1f32.to_bits(), (-1f32).to_bits(), 4, 0]);
        let lists = group.at(Ptr::new(64));
        assert_eq!(
            (lists.bias_values.address(), lists.seen_tokens.address(), lists.seen_counts.address()),
            (72, 80, 84)
        );
    }
}
