//! Continuous batching: one token budget a step; decodes first, then prompts in chunks, first come first served. When
//! blocks run out, the newest running sequence is preempted: its blocks are freed and its tokens recomputed later.

mod room;
mod sequence;

use std::collections::{HashMap, VecDeque};

use modelprofile_kernels::BLOCK_TOKENS;
use sequence::Sequence;

use super::{
    blocks::{BlockPool, blocks_for},
    step::{Item, ScheduledStep},
};

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Usable blocks at the start.
    pub blocks: usize,
    /// Most tokens computed in a step.
    pub max_batched_tokens: usize,
    /// Most sequences running at once.
    pub max_running: usize,
    /// Most tokens of a sequence, prompt and output. The smallest pool that [`Scheduler::shrink`] will leave must hold
    /// them: a sequence that outgrows the whole pool would be preempted and recomputed for ever.
    pub max_tokens: usize,
}

/// Why a sequence cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// It has no tokens.
    #[error("the prompt has no tokens")]
    Empty,
    /// The id is in use.
    #[error("sequence {0} was added already; give each sequence an id of its own")]
    Known(u64),
    /// It can never fit.
    #[error("{tokens} tokens are more than a sequence may have ({limit})")]
    TooLong {
        /// Prompt and output.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
}

/// Counters of a scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub running: usize,
    pub waiting: usize,
    pub blocks_total: usize,
    pub blocks_used: usize,
    pub blocks_cached: usize,
    /// Blocks that the waiting sequences need for the tokens that they have.
    pub blocks_waiting: usize,
    /// Since the start.
    pub preemptions: u64,
}

/// Decides which tokens are computed next.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: HashMap<u64, Sequence>,
    waiting: VecDeque<u64>,
    /// Oldest first.
    running: Vec<u64>,
    held: bool,
    /// Rows of the next step, if fewer than the configuration's.
    step_limit: usize,
    preemptions: u64,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            pool: BlockPool::new(config.blocks),
            sequences: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            held: false,
            step_limit: usize::MAX,
            preemptions: 0,
        }
    }

    /// Queues a sequence. With `score_prompt`, all its prompt rows get logits.
    pub fn add(&mut self, id: u64, tokens: Vec<u32>, max_new: usize, score_prompt: bool) -> Result<(), AddError> {
        if tokens.is_empty() {
            return Err(AddError::Empty);
        }
        if self.sequences.contains_key(&id) {
            return Err(AddError::Known(id));
        }
        let total = tokens.len().saturating_add(max_new);
        let limit = self.config.max_tokens.min(self.pool.total() * BLOCK_TOKENS);
        if total > limit {
            return Err(AddError::TooLong { tokens: total, limit });
        }
        self.sequences.insert(id, Sequence::new(tokens, score_prompt));
        self.waiting.push_back(id);
        Ok(())
    }

    /// Forgets a sequence and releases its blocks.
    pub fn remove(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.release(sequence.blocks);
            // A long queue is searched only for what is in it: most sequences end while they run.
            if let Some(at) = self.running.iter().position(|r| *r == id) {
                self.running.remove(at);
            } else if let Some(at) = self.waiting.iter().position(|w| *w == id) {
                self.waiting.remove(at);
            }
        }
    }

    /// With `true` no waiting sequence begins to run: a shrinking pool drains.
    pub fn hold_admissions(&mut self, held: bool) {
        self.held = held;
    }

    /// Bounds the rows of the steps to come below the configuration's, so that prompts do not hold up running streams.
    pub fn limit_step(&mut self, rows: usize) {
        self.step_limit = rows;
    }

    /// True when a running sequence waits for its next token only: a stream that a long step would hold up.
    pub fn decoding(&self) -> bool {
        self.running.iter().any(|id| self.sequences.get(id).is_some_and(|s| s.tokens.len() > s.prompt_tokens))
    }

    /// The next step, for a model on `rung` of the ladder.
    pub fn schedule(&mut self, rung: u8) -> ScheduledStep {
        let mut step = ScheduledStep { rung, ..ScheduledStep::default() };
        // Every running sequence may get its next token, however small the limit.
        let mut budget = self.config.max_batched_tokens.min(self.step_limit.max(self.running.len()));
        // Decodes first, then unfinished prompts, each oldest first.
        let mut order = self.running.clone();
        order.sort_by_key(|id| self.remaining(*id) > 1);
        let mut scheduled: Vec<(u64, usize)> = Vec::new();
        for id in order {
            if !self.running.contains(&id) {
                continue;
            }
            if budget == 0 {
                break;
            }
            let rows = self.remaining(id).min(budget);
            if rows > 0 && self.reserve(id, rows, &mut scheduled, &mut budget) {
                scheduled.push((id, rows));
                budget -= rows;
            }
        }
        while budget > 0 && !self.held && self.running.len() < self.config.max_running {
            let Some(id) = self.waiting.front().copied() else { break };
            let prefix = self.cached_prefix(id, rung);
            if !self.admissible(id, prefix) {
                break;
            }
            let cached = self.attach(id, prefix, rung);
            let rows = self.remaining(id).min(budget);
            if !self.extend(id, rows) {
                self.detach(id);
                break;
            }
            self.waiting.pop_front();
            self.running.push(id);
            step.admitted.push((id, cached));
            scheduled.push((id, rows));
            budget -= rows;
        }
        let mut first_row = 0;
        for (id, rows) in scheduled {
            let Some(sequence) = self.sequences.get(&id) else { continue };
            let range = sequence.computed..sequence.computed + rows;
            step.items.push(Item {
                id,
                first_row,
                rows,
                first_position: range.start,
                samples: range.end == sequence.tokens.len(),
                decode: rows == 1 && range.start >= sequence.prompt_tokens && range.end == sequence.tokens.len(),
                scored: sequence.score_prompt,
                blocks: sequence.blocks[..blocks_for(range.end)].to_vec(),
                tokens: sequence.tokens[range].to_vec(),
            });
            first_row += rows;
        }
        step
    }

    fn remaining(&self, id: u64) -> usize {
        self.sequences.get(&id).map_or(0, |s| s.tokens.len() - s.computed)
    }

    /// Records that a step was computed and which tokens it gave. A sequence whose logits gave no token is damaged
    /// somewhere in its cache: none of its blocks is reused.
    pub fn commit(&mut self, step: &ScheduledStep, sampled: &[(u64, u32)]) {
        let sampled: HashMap<u64, u32> = sampled.iter().copied().collect();
        for item in &step.items {
            let Some(sequence) = self.sequences.get_mut(&item.id) else { continue };
            sequence.computed = item.first_position + item.rows;
            sequence.tag = sequence.tag.max(step.rung);
            let token = sampled.get(&item.id).filter(|_| item.samples);
            if item.samples && token.is_none() {
                for block in &sequence.blocks {
                    self.pool.forget(*block);
                }
                sequence.registered = sequence.blocks.len();
                continue;
            }
            while (sequence.registered + 1) * BLOCK_TOKENS <= sequence.computed {
                let hash = sequence.hash(sequence.registered);
                self.pool.register(sequence.blocks[sequence.registered], hash, sequence.tag);
                sequence.registered += 1;
            }
            if let Some(token) = token {
                sequence.tokens.push(*token);
                sequence.score_prompt = false;
            }
        }
    }

    /// Checks the accounting: the references to each block are the tables that name it. For tests.
    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), String> {
        let mut tables = vec![0; self.pool.total()];
        for block in self.sequences.values().flat_map(|s| &s.blocks) {
            tables[*block as usize] += 1;
        }
        self.pool.check(&tables)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_total: self.pool.total(),
            blocks_used: self.pool.used(),
            blocks_cached: self.pool.cached(),
            blocks_waiting: self
                .waiting
                .iter()
                .filter_map(|id| self.sequences.get(id))
                .map(|sequence| sequence.tokens.len().div_ceil(BLOCK_TOKENS))
                .sum(),
            preemptions: self.preemptions,
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
