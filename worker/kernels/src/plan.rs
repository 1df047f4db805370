//! One engine step, described for a backend.

/// The rows of one sequence within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceSpan {
    /// First row of the sequence in the step's matrices.
    pub first_row: usize,
    /// Rows (tokens computed for it in this step): 1 for decode, up to the chunk size for prefill.
    pub rows: usize,
    /// Position of the first of these rows; `first_position + rows` tokens are in the cache after the step.
    pub first_position: usize,
    /// Blocks of the sequence in order; covers at least `first_position + rows` tokens.
    pub blocks: Vec<u32>,
}

/// All rows of one step. Rows of a sequence are consecutive, sequences in order.
///
/// # Guarantees
/// A backend computes each row as if it were alone: the result of a row does not depend on the other rows of the step
/// nor on how a prompt was cut into chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Spans that cover the rows exactly once, in order.
    pub sequences: Vec<SequenceSpan>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<usize>,
}

impl StepPlan {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
