//! What the next steps do, and what came of them.

use super::run::Run;
use super::sequence::{Finished, Sequence, blocks};
use super::{BLOCK, COPY_SLOWDOWN, MAX_SEQUENCES, Replica, RungModel, SHRINK_PATIENCE, STEP_TOKENS};
use crate::simulate::Batch;

impl Replica {
    /// Chooses what the next steps do.
    pub(super) fn plan(&mut self, now: f64, rungs: &[RungModel]) -> Option<Run> {
        // Decodes first: each needs room for one token more.
        let mut place = 0;
        while place < self.running.len() {
            let sequence = &self.running[place];
            if !sequence.prefills() {
                let needed = blocks(sequence.computed + 1) - sequence.blocks;
                while self.used + needed > self.capacity && self.running.len() > place {
                    self.preempt();
                }
                if let Some(sequence) = self.running.get_mut(place) {
                    sequence.blocks += needed;
                    self.used += needed;
                }
            }
            place += 1;
        }
        let decoding = self.running.iter().filter(|sequence| !sequence.prefills()).count();
        let mut budget = STEP_TOKENS.saturating_sub(decoding as u32);
        let mut lookback = 0.0;
        for sequence in &mut self.running {
            sequence.chunk = 0;
            if sequence.prefills() {
                lookback += take_chunk(sequence, &mut budget);
            }
        }
        let admits = self.change.is_none_or(|change| self.used <= rungs[change.to].blocks);
        while admits && budget > 0 && self.running.len() < MAX_SEQUENCES {
            let Some(next) = self.waiting.front() else { break };
            let needed = blocks(next.known() + 1);
            let room = self.change.map_or(self.capacity, |change| self.capacity.min(rungs[change.to].blocks));
            if self.used + needed > room {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.blocks = needed;
            self.used += needed;
            lookback += take_chunk(&mut sequence, &mut budget);
            self.running.push(sequence);
        }
        if self.running.is_empty() {
            return None;
        }
        self.worst_use = self.worst_use.max(f64::from(self.used) / f64::from(self.capacity.max(1)));
        let prefill: u32 = self.running.iter().map(|sequence| sequence.chunk).sum();
        let context: u64 =
            self.running.iter().filter(|s| !s.prefills()).map(|sequence| u64::from(sequence.computed) + 1).sum();
        let roofline = &rungs[self.rung].roofline;
        let batch = Batch {
            decode: decoding as f64,
            decode_context: context as f64,
            prefill: prefill.into(),
            prefill_context: lookback,
        };
        let slower = if self.change.is_some_and(|change| change.copied_at.is_some()) { COPY_SLOWDOWN } else { 1.0 };
        let first = slower * roofline.step_seconds(batch);
        if prefill > 0 {
            return Some(Run { start: now, first, more: 0.0, steps: 1, mixed: true });
        }
        let longer = Batch { decode_context: batch.decode_context + batch.decode, ..batch };
        let more = slower * roofline.step_seconds(longer) - first;
        let steps = self.joinable();
        let mut run = Run { start: now, first, more: more.max(0.0), steps, mixed: false };
        if let Some(change) = self.change {
            // What a change waits for must be seen in time.
            let until = change.copied_at.unwrap_or(change.since + SHRINK_PATIENCE);
            run.steps = (run.done(until) + 1).min(steps);
        }
        Some(run)
    }

    /// Decoding steps in which no sequence ends but in the last, and for which there are blocks.
    fn joinable(&self) -> u32 {
        let least = self.running.iter().map(|sequence| sequence.output - sequence.generated).min().unwrap_or(1).max(1);
        // Each sequence takes a block at most every 16 steps, and has the one for the first step already.
        let rounds = (self.capacity - self.used) / (self.running.len() as u32).max(1);
        least.min(1 + rounds * BLOCK)
    }

    /// Takes in what `steps` of a run brought about.
    pub(super) fn apply(&mut self, run: &Run, steps: u32, done: &mut Vec<Finished>) {
        let end = run.start + run.seconds(steps);
        let (mut generated, mut computed) = (0_u64, 0_u64);
        for sequence in &mut self.running {
            if sequence.chunk > 0 {
                sequence.computed += sequence.chunk;
                computed += u64::from(sequence.chunk);
                sequence.chunk = 0;
                if sequence.computed >= sequence.known() && sequence.generated == 0 {
                    sequence.generated = 1;
                    generated += 1;
                    sequence.first_token = end;
                    self.interval.first_tokens.push(end - sequence.arrived);
                }
            } else if !sequence.prefills() {
                let needed = blocks(sequence.computed + steps).saturating_sub(sequence.blocks);
                sequence.blocks += needed;
                self.used += needed;
                sequence.computed += steps;
                sequence.generated += steps;
                generated += u64::from(steps);
                computed += u64::from(steps);
            }
        }
        let used = &mut self.used;
        self.running.retain(|sequence| {
            let ended = sequence.generated >= sequence.output;
            if ended {
                *used -= sequence.blocks;
                done.push(Finished {
                    time_to_first_token: sequence.first_token - sequence.arrived,
                    end_to_end: end - sequence.arrived,
                    output: sequence.generated,
                });
            }
            !ended
        });
        self.worst_use = self.worst_use.max(f64::from(self.used) / f64::from(self.capacity.max(1)));
        self.tokens[self.rung] += generated;
        self.interval.computed += computed;
        self.interval.steps += u64::from(steps);
        self.interval.busy += run.seconds(steps);
    }
}

/// Gives a prompt as much of the step as is left; returns the tokens that the chunk looks back at, together.
fn take_chunk(sequence: &mut Sequence, budget: &mut u32) -> f64 {
    sequence.chunk = (sequence.known() - sequence.computed).min(*budget);
    *budget -= sequence.chunk;
    f64::from(sequence.chunk) * (f64::from(sequence.computed) + f64::from(sequence.chunk) / 2.0)
}
