//! A step's description on the device: tokens, positions, cache slots, sequences and their block tables.
//!
//! ```text
//! [tokens | positions | slots]  rows each      [first_row | row_count | first_position | table_start]  sequences each
//! [logit_rows]                  rows           [tables]                                                to the end
//! ```
//!
//! One copy a step, always to the same place, so that a recorded step finds the present one's numbers. A decode step that
//! is padded has rows without a slot and sequences without rows; kernels do nothing for them.

use std::sync::Arc;

use super::{graph, kernels::Ptr, launch::attention::Sequences};
use crate::{BLOCK_TOKENS, KernelError, Result, StepPlan};

/// The slot of a row that is stored nowhere.
const NO_SLOT: u32 = u32::MAX;

/// The numbers of a step, on the host.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    words: Vec<u32>,
    /// Rows and sequences, padding included.
    rows: usize,
    sequences: usize,
    pub(super) shape: Shape,
    /// Rows and first position of each sequence.
    spans: Arc<[[usize; 2]]>,
}

/// Tokens of the shortest part that attention cuts a sequence into (`kernels/attention_decode.cu`).
const SHORTEST_PART: usize = 128;

/// What a step's sequences see of the cache, through a window or without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Sequences with one row, and the tokens that these rows see together.
    pub(super) decode_rows: usize,
    pub(super) decode_tokens: usize,
    /// The most parts that these tokens are cut into.
    pub(super) decode_parts: usize,
    /// Rows of sequences with more.
    pub(super) prefill_rows: usize,
    /// Tokens that any row of such a sequence sees, together, and pairs of a row and a token that it sees.
    pub(super) prefill_tokens: usize,
    pub(super) prefill_pairs: usize,
}

impl Reach {
    /// Of sequences with rows and first positions.
    fn new(spans: &[[usize; 2]], window: Option<usize>) -> Self {
        let seen = |position: usize| window.unwrap_or(usize::MAX).min(position + 1);
        let mut reach = Self::default();
        for &[rows, first] in spans {
            if rows == 1 {
                reach.decode_rows += 1;
                reach.decode_tokens += seen(first);
                reach.decode_parts += seen(first).div_ceil(SHORTEST_PART);
            } else {
                reach.prefill_rows += rows;
                reach.prefill_tokens += (first + rows).min(seen(first) + rows - 1);
                reach.prefill_pairs += (first..first + rows).map(seen).sum::<usize>();
            }
        }
        reach
    }
}

/// What the host knows of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// Rows without padding.
    pub(super) rows: usize,
    /// The bucket that a decode step is padded to.
    pub(super) bucket: Option<usize>,
    /// Rows whose logits are wanted.
    pub(super) logit_rows: usize,
    /// Whether some sequence has one row, and the most rows of one with more.
    pub(super) decodes: bool,
    pub(super) longest: usize,
    /// Blocks that the step stores into or reads lie below this one.
    pub(super) blocks: usize,
    /// The largest token.
    pub(super) top_token: u32,
}

impl Numbers {
    /// # Errors
    /// [`KernelError::Shape`] when spans do not follow each other, do not cover the rows, or lack a block.
    pub(super) fn new(plan: &StepPlan, graphs: bool) -> Result<Self> {
        let rows = plan.rows();
        let bucket = graph::bucket_of(plan, graphs);
        let padded = bucket.unwrap_or(rows);
        let sequences = bucket.unwrap_or(plan.sequences.len());
        let mut shape = Shape {
            rows,
            bucket,
            logit_rows: plan.logit_rows.len(),
            top_token: plan.tokens.iter().copied().max().unwrap_or(0),
            ..Shape::default()
        };
        let (mut positions, mut slots) = (Vec::with_capacity(padded), Vec::with_capacity(padded));
        let mut of_sequences: [Vec<u32>; 4] = std::array::from_fn(|_| Vec::with_capacity(sequences));
        let mut tables: Vec<u32> = Vec::new();
        for span in &plan.sequences {
            if span.first_row != positions.len() {
                return Err(KernelError::Shape("the step's spans do not follow each other".into()));
            }
            let end = span.first_position + span.rows;
            let needed = end.div_ceil(BLOCK_TOKENS);
            let Some(blocks) = span.blocks.get(..needed) else {
                return Err(KernelError::Shape(format!("position {} has no block", end - 1)));
            };
            for position in span.first_position..end {
                let block = blocks[position / BLOCK_TOKENS] as usize;
                positions.push(number(position)?);
                slots.push(number(block * BLOCK_TOKENS + position % BLOCK_TOKENS)?);
            }
            shape.blocks = blocks.iter().fold(shape.blocks, |top, block| top.max(*block as usize + 1));
            shape.decodes |= span.rows == 1;
            if span.rows > 1 {
                shape.longest = shape.longest.max(span.rows);
            }
            let numbers = [span.first_row, span.rows, span.first_position, tables.len()];
            for (list, value) in of_sequences.iter_mut().zip(numbers) {
                list.push(number(value)?);
            }
            tables.extend_from_slice(blocks);
        }
        if positions.len() != rows || plan.logit_rows.iter().any(|row| *row >= rows) {
            return Err(KernelError::Shape("the step's spans do not cover its rows".into()));
        }
        let mut words = Vec::with_capacity(4 * padded + 4 * sequences + tables.len());
        let mut put = |list: &[u32], length: usize, filler: u32| {
            words.extend_from_slice(list);
            words.extend(std::iter::repeat_n(filler, length - list.len()));
        };
        put(&plan.tokens, padded, 0);
        put(&positions, padded, 0);
        put(&slots, padded, NO_SLOT);
        for list in &of_sequences {
            put(list, sequences, 0);
        }
        let logit_rows = plan.logit_rows.iter().map(|row| number(*row)).collect::<Result<Vec<u32>>>()?;
        put(&logit_rows, padded, 0);
        put(&tables, tables.len(), 0);
        let spans = plan.sequences.iter().map(|span| [span.rows, span.first_position]).collect();
        Ok(Self { words, rows: padded, sequences, shape, spans })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

fn number(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| KernelError::Shape(format!("{value} is beyond what the GPU's kernels count")))
}

/// A step's metadata on the device.
#[derive(Clone, Debug)]
pub struct CudaStep {
    /// Which call of `begin` it is of: a later one overwrites the numbers.
    pub(super) generation: u64,
    pub(super) shape: Shape,
    pub(super) tokens: Ptr<u32>,
    pub(super) positions: Ptr<u32>,
    pub(super) slots: Ptr<u32>,
    pub(super) logit_rows: Ptr<u32>,
    pub(super) sequences: Sequences,
    spans: Arc<[[usize; 2]]>,
}

impl CudaStep {
    /// What its sequences see.
    pub(super) fn reach(&self, window: Option<usize>) -> Reach {
        Reach::new(&self.spans, window)
    }

    pub(super) fn new(numbers: &Numbers, at: Ptr<u32>, generation: u64) -> Self {
        let (rows, count) = (numbers.rows, numbers.sequences);
        let behind =
            |rows_before: usize, sequences_before: usize| at.offset(rows * rows_before + count * sequences_before);
        Self {
            generation,
            shape: numbers.shape,
            spans: numbers.spans.clone(),
            tokens: at,
            positions: behind(1, 0),
            slots: behind(2, 0),
            sequences: Sequences {
                count,
                first_row: behind(3, 0),
                row_count: behind(3, 1),
                first_position: behind(3, 2),
                table_start: behind(3, 3),
                tables: behind(4, 4),
            },
            logit_rows: behind(3, 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SequenceSpan;

    fn plan(spans: &[(usize, usize, &[u32])]) -> StepPlan {
        let mut plan = StepPlan::default();
        for (first_position, rows, blocks) in spans {
            let first_row = plan.tokens.len();
            plan.tokens.extend((0..*rows).map(|i| 7 + i as u32));
            plan.sequences.push(SequenceSpan {
                first_row,
                rows: *rows,
                first_position: *first_position,
                blocks: blocks.to_vec(),
            });
            plan.logit_rows.push(plan.tokens.len() - 1);
        }
        plan
    }

    #[test]
    fn a_decode_step_is_padded_with_rows_that_do_nothing() {
        let plan = plan(&[(17, 1, &[3, 9]), (0, 1, &[5]), (31, 1, &[1, 2]), (2, 1, &[4]), (5, 1, &[8])]);
        let numbers = Numbers::new(&plan, true).unwrap();
        assert_eq!((numbers.rows, numbers.sequences, numbers.shape.bucket), (6, 6, Some(6)));
        assert_eq!(numbers.shape.blocks, 10);
        let expected: Vec<u32> = [
            [7, 7, 7, 7, 7, 0],
            [17, 0, 31, 2, 5, 0],
            [9 * 16 + 1, 5 * 16, 2 * 16 + 15, 4 * 16 + 2, 8 * 16 + 5, NO_SLOT],
            [0, 1, 2, 3, 4, 0],
            [1, 1, 1, 1, 1, 0],
            [17, 0, 31, 2, 5, 0],
            [0, 2, 3, 5, 6, 0],
            [0, 1, 2, 3, 4, 0],
        ]
        .concat();
        assert_eq!(numbers.words, [&expected[..], &[3, 9, 5, 1, 2, 4, 8]].concat());
        let step = CudaStep::new(&numbers, Ptr::new(1024), 1);
        assert_eq!(step.logit_rows.address(), 1024 + 4 * 7 * 6);
        assert_eq!(step.sequences.tables.address(), 1024 + 4 * 8 * 6);
    }

    #[test]
    fn a_step_with_a_prompt_is_not_padded() {
        let numbers = Numbers::new(&plan(&[(0, 3, &[3]), (16, 1, &[4, 6, 40])]), true).unwrap();
        assert_eq!((numbers.rows, numbers.sequences, numbers.shape.bucket), (4, 2, None));
        assert_eq!((numbers.shape.longest, numbers.shape.decodes), (3, true));
        assert_eq!(numbers.shape.blocks, 7, "blocks behind the last token are not touched");
        assert_eq!(numbers.words.last(), Some(&6));
        assert!(Numbers::new(&plan(&[(0, 1, &[3])]), false).unwrap().shape.bucket.is_none());
    }

    #[test]
    fn what_rows_see_is_counted_through_the_window() {
        let spans = [[1, 299], [3, 10], [1, 0]];
        let all = Reach {
            decode_rows: 2,
            decode_tokens: 301,
            decode_parts: 4,
            prefill_rows: 3,
            prefill_tokens: 13,
            prefill_pairs: 11 + 12 + 13,
        };
        assert_eq!(Reach::new(&spans, None), all);
        let near = Reach { decode_tokens: 5, decode_parts: 2, prefill_tokens: 6, prefill_pairs: 12, ..all };
        assert_eq!(Reach::new(&spans, Some(4)), near);
    }

    #[test]
    fn a_step_that_does_not_hold_together_is_refused() {
        let mut gap = plan(&[(0, 2, &[3])]);
        gap.sequences[0].first_row = 1;
        assert!(Numbers::new(&gap, true).is_err());
        assert!(Numbers::new(&plan(&[(16, 1, &[3])]), true).is_err(), "position 16 has no block");
        let mut rows = plan(&[(0, 2, &[3])]);
        rows.tokens.push(1);
        assert!(Numbers::new(&rows, true).is_err());
        let mut logits = plan(&[(0, 2, &[3])]);
        logits.logit_rows = vec![2];
        assert!(Numbers::new(&logits, true).is_err());
    }
}
