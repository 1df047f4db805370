//! Continuous batching: one token budget a step; decodes first, then prompts in chunks, first come first served. When
//! blocks run out, the newest running sequence is preempted: its blocks are freed and its tokens recomputed later.

use std::collections::{HashMap, VecDeque};

use modelprofile_kernels::{BLOCK_TOKENS, BlockMove, SequenceSpan, StepPlan};

use super::blocks::{BlockHash, BlockPool, blocks_for, chain};

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Usable blocks at the start.
    pub blocks: usize,
    /// Most tokens computed in a step.
    pub max_batched_tokens: usize,
    /// Most sequences running at once.
    pub max_running: usize,
    /// Most tokens of a sequence.
    pub max_tokens: usize,
}

/// Why a sequence cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// It has no tokens.
    #[error("the prompt has no tokens")]
    Empty,
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
    /// Since the start.
    pub preemptions: u64,
}

struct Sequence {
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// Tokens whose K and V are in the cache.
    computed: usize,
    blocks: Vec<u32>,
    /// Hashes of the full blocks that are registered, and the tag of the chain so far.
    hashes: Vec<BlockHash>,
    tag: u8,
    score_prompt: bool,
}

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
    /// All rows want logits.
    scored: bool,
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

/// What a step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduledStep {
    items: Vec<Item>,
    /// Sequences that began to run: id, tokens found in the prefix cache.
    admitted: Vec<(u64, usize)>,
    rung: u8,
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

    /// Rows that are not the only row of a decode.
    pub fn prefill_tokens(&self) -> usize {
        self.items.iter().filter(|i| i.rows > 1 || !i.samples).map(|i| i.rows).sum()
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

/// Decides which tokens are computed next.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: HashMap<u64, Sequence>,
    waiting: VecDeque<u64>,
    /// Oldest first.
    running: Vec<u64>,
    held: bool,
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
            preemptions: 0,
        }
    }

    /// Queues a sequence. With `score_prompt`, all its prompt rows get logits.
    pub fn add(&mut self, id: u64, tokens: Vec<u32>, max_new: usize, score_prompt: bool) -> Result<(), AddError> {
        if tokens.is_empty() {
            return Err(AddError::Empty);
        }
        // The last generated token is never computed.
        let total = tokens.len() + max_new;
        if total > self.config.max_tokens {
            return Err(AddError::TooLong { tokens: total, limit: self.config.max_tokens });
        }
        let sequence = Sequence { tokens, computed: 0, blocks: Vec::new(), hashes: Vec::new(), tag: 0, score_prompt };
        self.sequences.insert(id, sequence);
        self.waiting.push_back(id);
        Ok(())
    }

    /// Forgets a sequence and releases its blocks.
    pub fn remove(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.release(sequence.blocks);
            self.waiting.retain(|w| *w != id);
            self.running.retain(|r| *r != id);
        }
    }

    fn release(&mut self, blocks: Vec<u32>) {
        // The end of a chain is useless without its start, so it gets old first.
        for block in blocks.into_iter().rev() {
            self.pool.release(block);
        }
    }

    /// With `true` no waiting sequence begins to run: a shrinking pool drains.
    pub fn hold_admissions(&mut self, held: bool) {
        self.held = held;
    }

    /// The next step, for a model on `rung` of the ladder.
    pub fn schedule(&mut self, rung: u8) -> ScheduledStep {
        let mut step = ScheduledStep { rung, ..ScheduledStep::default() };
        let mut budget = self.config.max_batched_tokens;
        // Decodes first, then unfinished prompts, each oldest first.
        let mut order = self.running.clone();
        order.sort_by_key(|id| self.remaining(*id) > 1);
        let mut scheduled: Vec<(u64, usize)> = Vec::new();
        for id in order {
            if !self.running.contains(&id) {
                continue;
            }
            let rows = self.remaining(id).min(budget);
            if rows == 0 {
                break;
            }
            if self.reserve(id, rows, &mut scheduled, &mut budget) {
                scheduled.push((id, rows));
                budget -= rows;
            }
        }
        while budget > 0 && !self.held && self.running.len() < self.config.max_running {
            let Some(id) = self.waiting.front().copied() else { break };
            let cached = self.attach_prefix(id, rung);
            let rows = self.remaining(id).min(budget);
            if !self.admissible(id) || !self.extend(id, rows) {
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

    /// A sequence begins to run only when all its present tokens fit, with a block to spare for each running sequence:
    /// one that begins just to be preempted helps nobody. Alone it may always begin.
    fn admissible(&self, id: u64) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let needed = blocks_for(sequence.tokens.len() + 1).saturating_sub(sequence.blocks.len());
        self.running.is_empty() || needed + self.running.len() <= self.pool.available()
    }

    /// Blocks for `rows` more tokens; preempts newer sequences while there are none. False when `id` itself had to go.
    fn reserve(&mut self, id: u64, rows: usize, scheduled: &mut Vec<(u64, usize)>, budget: &mut usize) -> bool {
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
    fn extend(&mut self, id: u64, rows: usize) -> bool {
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

    /// Takes over cached blocks of the sequence's beginning; at least its last token stays to be computed. Returns the
    /// tokens found.
    fn attach_prefix(&mut self, id: u64, rung: u8) -> usize {
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        if sequence.score_prompt || !sequence.blocks.is_empty() {
            return 0;
        }
        let reusable = (sequence.tokens.len() - 1) / BLOCK_TOKENS;
        for tokens in sequence.tokens.chunks_exact(BLOCK_TOKENS).take(reusable) {
            let hash = chain(sequence.hashes.last().copied(), tokens);
            let Some((block, tag)) = self.pool.lookup(hash, rung) else { break };
            sequence.blocks.push(block);
            sequence.hashes.push(hash);
            sequence.tag = sequence.tag.max(tag);
        }
        sequence.computed = sequence.blocks.len() * BLOCK_TOKENS;
        sequence.computed
    }

    /// Gives all blocks of a sequence back; its tokens stay.
    fn detach(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed = 0;
            sequence.tag = 0;
            sequence.hashes.clear();
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

    /// Records that a step was computed and which tokens it gave.
    pub fn commit(&mut self, step: &ScheduledStep, sampled: &[(u64, u32)]) {
        for item in &step.items {
            let Some(sequence) = self.sequences.get_mut(&item.id) else { continue };
            sequence.computed = item.first_position + item.rows;
            sequence.tag = sequence.tag.max(step.rung);
            while (sequence.hashes.len() + 1) * BLOCK_TOKENS <= sequence.computed {
                let index = sequence.hashes.len();
                let tokens = &sequence.tokens[index * BLOCK_TOKENS..(index + 1) * BLOCK_TOKENS];
                let hash = chain(sequence.hashes.last().copied(), tokens);
                sequence.hashes.push(hash);
                self.pool.register(sequence.blocks[index], hash, sequence.tag);
            }
        }
        for (id, token) in sampled {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.tokens.push(*token);
            }
        }
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

    /// Adds blocks at the upper end.
    pub fn grow(&mut self, blocks: usize) {
        self.pool.grow(blocks);
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_total: self.pool.total(),
            blocks_used: self.pool.used(),
            blocks_cached: self.pool.cached(),
            preemptions: self.preemptions,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scheduler(blocks: usize) -> Scheduler {
        Scheduler::new(SchedulerConfig { blocks, max_batched_tokens: 32, max_running: 8, max_tokens: blocks * 16 })
    }

    /// Runs a step; every sequence that gets a token gets 7. Returns the step.
    fn run(scheduler: &mut Scheduler, rung: u8) -> ScheduledStep {
        let step = scheduler.schedule(rung);
        let sampled: Vec<(u64, u32)> = step.items().iter().filter(|i| i.samples).map(|i| (i.id, 7)).collect();
        scheduler.commit(&step, &sampled);
        step
    }

    #[test]
    fn decodes_come_before_prompts_and_prompts_are_cut_to_the_budget() {
        let mut s = scheduler(64);
        s.add(1, vec![1; 4], 10, false).unwrap();
        run(&mut s, 0);
        s.add(2, vec![2; 100], 10, false).unwrap();
        let step = run(&mut s, 0);
        let rows: Vec<(u64, usize)> = step.items().iter().map(|i| (i.id, i.rows)).collect();
        assert_eq!(rows, [(1, 1), (2, 31)]);
        assert_eq!(step.row(0), Some((1, 4, true)));
        assert_eq!(step.row(31), Some((2, 30, false)));
        assert_eq!(step.row(32), None);
    }

    #[test]
    fn a_second_equal_prompt_reuses_blocks_but_not_those_of_a_denser_rung() {
        let prompt: Vec<u32> = (0..40).collect();
        let mut s = scheduler(64);
        s.add(1, prompt.clone(), 4, false).unwrap();
        run(&mut s, 1);
        run(&mut s, 1);
        s.add(2, prompt.clone(), 4, false).unwrap();
        assert_eq!(run(&mut s, 0).admitted().collect::<Vec<_>>(), [(2, 0)]);
        s.add(3, prompt, 4, false).unwrap();
        let step = loop {
            let step = run(&mut s, 1);
            if step.admitted().next().is_some() {
                break step;
            }
        };
        assert_eq!(step.admitted().collect::<Vec<_>>(), [(3, 32)]);
    }

    #[test]
    fn held_admissions_let_running_sequences_go_on() {
        let mut s = scheduler(64);
        s.add(1, vec![1; 4], 10, false).unwrap();
        run(&mut s, 0);
        s.hold_admissions(true);
        s.add(2, vec![2; 4], 10, false).unwrap();
        assert_eq!(run(&mut s, 0).items().len(), 1);
        s.hold_admissions(false);
        assert_eq!(run(&mut s, 0).items().len(), 2);
    }

    #[test]
    fn what_can_never_fit_is_refused() {
        let mut s = scheduler(4);
        assert_eq!(s.add(1, vec![1; 60], 5, false), Err(AddError::TooLong { tokens: 65, limit: 64 }));
        assert_eq!(s.add(1, vec![], 5, false), Err(AddError::Empty));
    }

    proptest! {
        #[test]
        fn every_sequence_ends_whatever_the_load_and_the_switches(
            loads in proptest::collection::vec((1usize..70, 1usize..50, 0u32..3), 1..24),
            resizes in proptest::collection::vec((0usize..400, 8usize..20), 0..8),
        ) {
            let mut s = scheduler(8);
            s.config.max_tokens = 128;
            let mut left: HashMap<u64, usize> = HashMap::new();
            for (id, (prompt, new, content)) in loads.iter().enumerate() {
                let prompt = vec![*content; *prompt];
                s.add(id as u64, prompt, *new, false).unwrap();
                left.insert(id as u64, *new);
            }
            for round in 0..20_000 {
                if left.is_empty() {
                    break;
                }
                for (at, blocks) in &resizes {
                    if *at == round {
                        if *blocks > s.stats().blocks_total {
                            s.grow(*blocks);
                        } else {
                            while s.shrink(*blocks).is_err() {
                                prop_assert!(s.preempt_newest());
                            }
                        }
                    }
                }
                let step = s.schedule((round % 2) as u8);
                prop_assert!(step.items().iter().map(|i| i.rows).sum::<usize>() <= 32);
                prop_assert!(step.items().len() <= 8);
                for item in step.items() {
                    prop_assert!(item.blocks.iter().all(|b| (*b as usize) < s.stats().blocks_total));
                }
                let mut done = Vec::new();
                let mut sampled = Vec::new();
                for item in step.items().iter().filter(|i| i.samples) {
                    sampled.push((item.id, 7));
                    let left = left.get_mut(&item.id).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        done.push(item.id);
                    }
                }
                s.commit(&step, &sampled);
                for id in done {
                    s.remove(id);
                    left.remove(&id);
                }
                s.pool.check().map_err(TestCaseError::fail)?;
            }
            prop_assert!(left.is_empty(), "{} sequences starved", left.len());
            prop_assert_eq!(s.stats().blocks_used, 0);
        }
    }
}
