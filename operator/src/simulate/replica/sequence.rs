//! A request on its way through a worker.

use super::BLOCK;

/// Blocks that `tokens` take.
pub(in crate::simulate) fn blocks(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK)
}

/// A request on its way through a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequence {
    /// When it arrived, in seconds of the simulation.
    pub arrived: f64,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens to generate.
    pub output: u32,
    /// Tokens generated so far; a preemption keeps them and computes their keys and values again.
    pub(super) generated: u32,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: u32,
    pub(super) blocks: u32,
    pub(super) chunk: u32,
    pub(super) first_token: f64,
}

impl Sequence {
    /// A request that arrives at `arrived`. At least one token is read and one generated.
    pub fn new(arrived: f64, prompt: u32, output: u32) -> Self {
        let (prompt, output) = (prompt.max(1), output.max(1));
        Self { arrived, prompt, output, generated: 0, computed: 0, blocks: 0, chunk: 0, first_token: 0.0 }
    }

    /// Tokens that must be in the cache before the next one can be generated.
    pub(super) fn known(&self) -> u32 {
        // The newest token enters the cache in the step that generates its successor.
        self.prompt + self.generated.saturating_sub(1)
    }

    pub(super) fn prefills(&self) -> bool {
        self.generated == 0 || self.computed < self.known()
    }
}

/// A request that has all its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Time to the first token, in seconds.
    pub time_to_first_token: f64,
    /// From arrival to the last token, in seconds.
    pub end_to_end: f64,
    /// Tokens generated.
    pub output: u32,
}
