//! A sequence as the scheduler knows it.

use modelprofile_kernels::BLOCK_TOKENS;

use crate::sched::blocks::{BlockHash, chain};

/// Tokens, and where their K and V lie.
pub(super) struct Sequence {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose K and V are in the cache.
    pub(super) computed: usize,
    pub(super) blocks: Vec<u32>,
    /// Hashes of the first full blocks. They depend on the tokens alone, so they outlive a preemption.
    hashes: Vec<BlockHash>,
    /// Blocks whose content the pool knows, and the tag of that chain so far.
    pub(super) registered: usize,
    pub(super) tag: u8,
    /// Prompt rows get logits; until the first new token, which comes after all of them.
    pub(super) score_prompt: bool,
    pub(super) prompt_tokens: usize,
}

impl Sequence {
    /// One of which nothing is computed.
    pub(super) fn new(tokens: Vec<u32>, score_prompt: bool) -> Self {
        Self {
            prompt_tokens: tokens.len(),
            tokens,
            computed: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            registered: 0,
            tag: 0,
            score_prompt,
        }
    }

    /// The chained hash of full block `index`; computes the chain as far as it must.
    pub(super) fn hash(&mut self, index: usize) -> BlockHash {
        for tokens in self.tokens.chunks_exact(BLOCK_TOKENS).take(index + 1).skip(self.hashes.len()) {
            let hash = chain(self.hashes.last().copied(), tokens);
            self.hashes.push(hash);
        }
        self.hashes[index]
    }
}
