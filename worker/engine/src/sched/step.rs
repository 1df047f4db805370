//! What the scheduler decided for one step, and the backend's plan of it.

use modelprofile_kernels::{SequenceSpan, StepPlan};

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The sequence.
    pub id: u64,
    /// First row in the step.
    pub first_row: usize,
    /// Rows.
    pub rows: usize,
    /// Position of the first row.
    pub first_position: usize,
    /// The step computes the sequence's last token, so it gets a new one.
    pub samples: bool,
    /// Its only row is that of a generated token.
    pub(super) decode: bool,
    /// All rows want logits.
    pub(super) scored: bool,
    pub(super) tokens: Vec<u32>,
    pub(super) blocks: Vec<u32>,
}

/// What a step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduledStep {
    pub(super) items: Vec<Item>,
    /// Sequences that began to run: id, tokens found in the prefix cache.
    pub(super) admitted: Vec<(u64, usize)>,
    pub(super) rung: u8,
}

impl ScheduledStep {
    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The parts, in row order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Sequences that began to run in this step, with the tokens they found in the prefix cache.
    pub fn admitted(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.admitted.iter().copied()
    }

    /// Rows of prompts and of tokens computed again after a preemption.
    pub fn prefill_tokens(&self) -> usize {
        self.items.iter().filter(|i| !i.decode).map(|i| i.rows).sum()
    }

    /// The sequence, position and "gets a new token" of a row.
    pub fn row(&self, row: usize) -> Option<(u64, usize, bool)> {
        let index = self.items.partition_point(|i| i.first_row + i.rows <= row);
        let item = self.items.get(index)?;
        let offset = row.checked_sub(item.first_row)?;
        Some((item.id, item.first_position + offset, item.samples && offset + 1 == item.rows))
    }

    /// The step for a backend.
    pub fn plan(&self) -> StepPlan {
        let mut plan = StepPlan::default();
        for item in &self.items {
            plan.tokens.extend_from_slice(&item.tokens);
            plan.sequences.push(SequenceSpan {
                first_row: item.first_row,
                rows: item.rows,
                first_position: item.first_position,
                blocks: item.blocks.clone(),
            });
            let end = item.first_row + item.rows;
            if item.scored {
                plan.logit_rows.extend(item.first_row..end);
            } else if item.samples {
                plan.logit_rows.push(end - 1);
            }
        }
        plan
    }
}
