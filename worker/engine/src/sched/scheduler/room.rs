//! Room in the cache: who gets blocks, who gives them back, and how the pool becomes another one.

use std::collections::HashMap;

use modelprofile_kernels::{BLOCK_TOKENS, BlockMove};

use super::Scheduler;
use crate::sched::blocks::{blocks_for, retagged, tags};

/// The part of a sequence's beginning that the cache holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prefix {
    blocks: usize,
    /// Those that nobody uses: taking them makes as many less available.
    idle: usize,
}

impl Scheduler {
    pub(super) fn release(&mut self, blocks: Vec<u32>) {
        // The end of a chain is useless without its start, so it gets old first.
        for block in blocks.into_iter().rev() {
            self.pool.release(block);
        }
    }

    /// The cached blocks of a waiting sequence's beginning. At least its last token stays to be computed. Takes nothing:
    /// a sequence that waits for room asks at every step.
    pub(super) fn cached_prefix(&mut self, id: u64, rung: u8) -> Prefix {
        let mut prefix = Prefix::default();
        let Some(sequence) = self.sequences.get_mut(&id) else { return prefix };
        if sequence.score_prompt {
            return prefix;
        }
        let reusable = (sequence.tokens.len() - 1) / BLOCK_TOKENS;
        while prefix.blocks < reusable
            && let Some(idle) = self.pool.peek(sequence.hash(prefix.blocks), rung)
        {
            prefix.blocks += 1;
            prefix.idle += usize::from(idle);
        }
        prefix
    }

    /// A sequence begins to run only when all its present tokens fit, with a block to spare for each running sequence:
    /// one that begins just to be preempted helps nobody. Alone it may always begin.
    pub(super) fn admissible(&self, id: u64, prefix: Prefix) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let needed = blocks_for(sequence.tokens.len() + 1).saturating_sub(prefix.blocks) + prefix.idle;
        self.running.is_empty() || needed + self.running.len() <= self.pool.available()
    }

    /// Takes over a prefix. Returns its tokens.
    pub(super) fn attach(&mut self, id: u64, prefix: Prefix, rung: u8) -> usize {
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        for index in 0..prefix.blocks {
            let Some((block, tag)) = self.pool.lookup(sequence.hash(index), rung) else { break };
            sequence.blocks.push(block);
            sequence.tag = sequence.tag.max(tag);
        }
        sequence.registered = sequence.blocks.len();
        sequence.computed = sequence.blocks.len() * BLOCK_TOKENS;
        sequence.computed
    }

    /// Blocks for `rows` more tokens; preempts newer sequences while there are none. False when `id` itself had to go.
    pub(super) fn reserve(
        &mut self,
        id: u64,
        rows: usize,
        scheduled: &mut Vec<(u64, usize)>,
        budget: &mut usize,
    ) -> bool {
        while !self.extend(id, rows) {
            let Some(newest) = self.running.last().copied() else { return false };
            self.preempt(newest);
            if let Some(at) = scheduled.iter().position(|(s, _)| *s == newest) {
                *budget += scheduled.remove(at).1;
            }
            if newest == id {
                return false;
            }
        }
        true
    }

    /// Makes room for `rows` more tokens of a sequence; all or nothing.
    pub(super) fn extend(&mut self, id: u64, rows: usize) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let wanted = blocks_for(sequence.computed + rows);
        if wanted.saturating_sub(sequence.blocks.len()) > self.pool.available() {
            return false;
        }
        while sequence.blocks.len() < wanted {
            let Some(block) = self.pool.allocate() else { return false };
            sequence.blocks.push(block);
        }
        true
    }

    /// Gives all blocks of a sequence back; its tokens stay.
    pub(super) fn detach(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed = 0;
            sequence.tag = 0;
            sequence.registered = 0;
            let blocks = std::mem::take(&mut sequence.blocks);
            self.release(blocks);
        }
    }

    fn preempt(&mut self, id: u64) {
        self.detach(id);
        self.running.retain(|r| *r != id);
        self.waiting.push_front(id);
        self.preemptions += 1;
    }

    /// Preempts the newest running sequence; false when none runs.
    pub fn preempt_newest(&mut self) -> bool {
        let newest = self.running.last().copied();
        if let Some(id) = newest {
            self.preempt(id);
        }
        newest.is_some()
    }

    /// Removes blocks at the upper end; the moves must be carried out on the device before the next step.
    ///
    /// # Errors
    /// The number of blocks that running sequences must give up first.
    pub fn shrink(&mut self, blocks: usize) -> Result<Vec<BlockMove>, usize> {
        let moves = self.pool.shrink(blocks)?;
        let to: HashMap<u32, u32> = moves.iter().map(|m| (m.from, m.to)).collect();
        for sequence in self.sequences.values_mut() {
            for block in &mut sequence.blocks {
                if let Some(moved) = to.get(block) {
                    *block = *moved;
                }
            }
        }
        Ok(moves)
    }

    /// The ladder becomes another one: `places` says where each rung of the present one is then, `None` that it has left.
    pub fn rearrange(&mut self, places: &[Option<usize>]) {
        let tags = tags(places);
        self.pool.retag(&tags);
        // One of which nothing is computed has no part of any rung.
        for sequence in self.sequences.values_mut().filter(|sequence| sequence.computed > 0) {
            sequence.tag = retagged(sequence.tag, &tags);
        }
    }

    /// Adds blocks at the upper end.
    pub fn grow(&mut self, blocks: usize) {
        self.pool.grow(blocks);
    }
}
