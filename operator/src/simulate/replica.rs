//! One worker: continuous batching over a paged KV cache, as the real scheduler does it.
//!
//! A step has one token budget: sequences that decode come first, then prompts in chunks, first come first served. When
//! no block is free the newest sequence gives its blocks back and is computed again later. Steps in which nothing but
//! decoding happens are joined into one [`Run`], which ends when something changes: a sequence ends, blocks become scarce,
//! a request arrives.

use std::collections::VecDeque;

use super::roofline::{Batch, Roofline};

/// Tokens of a block.
const BLOCK: u32 = 16;
/// Tokens of a step.
const STEP_TOKENS: u32 = 8192;
/// Sequences of a step.
const MAX_SEQUENCES: usize = 1024;
/// While weights are copied beside them, steps take this much longer.
const COPY_SLOWDOWN: f64 = 1.1;
/// How long a cache that must shrink waits for sequences to end before it takes blocks from the newest, in seconds.
const SHRINK_PATIENCE: f64 = 10.0;

/// One rung as a worker sees it.
#[derive(Clone, Copy, Debug)]
pub struct RungModel {
    /// Step times.
    pub roofline: Roofline,
    /// Blocks of the KV cache.
    pub blocks: u32,
    /// Time to copy the packed weights from host memory, in seconds.
    pub copy_seconds: f64,
}

impl RungModel {
    /// A rung whose cache holds `tokens`.
    pub fn new(roofline: Roofline, tokens: u64, host_link: f64) -> Self {
        let bytes = roofline.weight_bytes() as f64 / f64::from(roofline.accelerators());
        Self { roofline, blocks: (tokens / u64::from(BLOCK)) as u32, copy_seconds: bytes / host_link }
    }
}

/// Blocks that `tokens` take.
pub(super) fn blocks(tokens: u32) -> u32 {
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
    generated: u32,
    /// Tokens whose keys and values are in the cache.
    computed: u32,
    blocks: u32,
    chunk: u32,
    first_token: f64,
}

impl Sequence {
    /// A request that arrives at `arrived`. At least one token is read and one generated.
    pub fn new(arrived: f64, prompt: u32, output: u32) -> Self {
        let (prompt, output) = (prompt.max(1), output.max(1));
        Self { arrived, prompt, output, generated: 0, computed: 0, blocks: 0, chunk: 0, first_token: 0.0 }
    }

    /// Tokens that must be in the cache before the next one can be generated.
    fn known(&self) -> u32 {
        // The newest token enters the cache in the step that generates its successor.
        self.prompt + self.generated.saturating_sub(1)
    }

    fn prefills(&self) -> bool {
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

/// Steps under way: one with prompts in it, or several that decode.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: f64,
    /// Duration of the first step, and what each later one takes more than the one before.
    first: f64,
    more: f64,
    steps: u32,
    mixed: bool,
}

impl Run {
    fn seconds(&self, steps: u32) -> f64 {
        let n = f64::from(steps);
        n * self.first + self.more * n * (n - 1.0) / 2.0
    }

    fn end(&self) -> f64 {
        self.start + self.seconds(self.steps)
    }

    /// Whole steps that are over at `now`.
    fn done(&self, now: f64) -> u32 {
        let over = (now - self.start).max(0.0);
        let guess = if self.more > 0.0 {
            let b = self.first - self.more / 2.0;
            ((b * b + 2.0 * self.more * over).sqrt() - b) / self.more
        } else {
            over / self.first
        };
        let mut steps = (guess as u32).min(self.steps);
        while steps > 0 && self.seconds(steps) > over {
            steps -= 1;
        }
        steps
    }
}

/// A change of rung under way.
#[derive(Clone, Copy, Debug)]
struct Change {
    to: usize,
    since: f64,
    copied_at: Option<f64>,
}

/// What a worker counted since it was asked last.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// Times to the first token, in seconds.
    pub first_tokens: Vec<f64>,
    /// Tokens computed, prompts included.
    pub computed: u64,
    /// Steps made.
    pub steps: u64,
    /// Time spent in steps, in seconds.
    pub busy: f64,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct Replica {
    rung: usize,
    capacity: u32,
    used: u32,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    run: Option<Run>,
    change: Option<Change>,
    /// Counters of the latest interval.
    pub interval: Interval,
    /// Tokens generated by rung, since the start.
    pub tokens: [u64; 4],
    /// Sequences that gave their blocks back.
    pub preemptions: u64,
    /// Most blocks ever used, as a share of those there were.
    pub worst_use: f64,
}

impl Replica {
    /// An idle worker on a rung.
    pub fn new(rung: usize, rungs: &[RungModel]) -> Self {
        Self {
            rung,
            capacity: rungs[rung].blocks,
            used: 0,
            running: Vec::new(),
            waiting: VecDeque::new(),
            run: None,
            change: None,
            interval: Interval::default(),
            tokens: [0; 4],
            preemptions: 0,
            worst_use: 0.0,
        }
    }

    /// The rung it serves on.
    pub fn rung(&self) -> usize {
        self.rung
    }

    /// Whether a change of rung is under way.
    pub fn changes(&self) -> bool {
        self.change.is_some()
    }

    /// Requests that it has.
    pub fn outstanding(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Requests being computed.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Blocks of the cache, in use and in all.
    pub fn cache(&self) -> (u32, u32) {
        (self.used, self.capacity)
    }

    /// Blocks that the waiting prompts need.
    pub fn waiting_blocks(&self) -> u64 {
        self.waiting.iter().map(|sequence| u64::from(blocks(sequence.known() + 1))).sum()
    }

    /// Arrival of the request that waits longest.
    pub fn oldest_waiting(&self) -> Option<f64> {
        self.waiting.iter().map(|sequence| sequence.arrived).min_by(f64::total_cmp)
    }

    /// When it has to be looked at next; `None` while nothing happens in it.
    pub fn next_event(&self) -> Option<f64> {
        // Steps under way end soon after the copy does: they are planned so.
        self.run.map(|run| run.end()).or_else(|| self.change.and_then(|change| change.copied_at))
    }

    /// Takes a request in. It is seen when the step under way ends.
    pub fn submit(&mut self, now: f64, sequence: Sequence, rungs: &[RungModel], done: &mut Vec<Finished>) {
        self.waiting.push_back(sequence);
        self.interrupt(now, rungs, done);
    }

    /// Begins a change to another rung.
    pub fn change_to(&mut self, to: usize, now: f64, rungs: &[RungModel], done: &mut Vec<Finished>) {
        // A later request replaces a change that did not begin to copy.
        if self.change.is_some_and(|change| change.copied_at.is_some()) || to == self.rung {
            return;
        }
        self.change = Some(Change { to, since: now, copied_at: None });
        self.interrupt(now, rungs, done);
    }

    /// An idle worker's process begins anew on another rung.
    pub fn restart(&mut self, rung: usize, rungs: &[RungModel]) {
        self.rung = rung;
        self.capacity = rungs[rung].blocks;
        self.change = None;
    }

    /// Hands back what has not begun, for another worker.
    pub fn give_back(&mut self) -> impl Iterator<Item = Sequence> + '_ {
        self.waiting.drain(..)
    }

    fn interrupt(&mut self, now: f64, rungs: &[RungModel], done: &mut Vec<Finished>) {
        self.advance(now, rungs, done);
        if let Some(run) = &mut self.run {
            run.steps = run.steps.min(1);
        }
    }

    /// Carries out all that happens up to `now`.
    pub fn advance(&mut self, now: f64, rungs: &[RungModel], done: &mut Vec<Finished>) {
        loop {
            let Some(run) = self.run else {
                self.proceed(now, rungs);
                self.run = self.plan(now, rungs);
                return;
            };
            if run.end() > now {
                let steps = run.done(now);
                if steps > 0 && !run.mixed {
                    self.apply(&run, steps, done);
                    let more = f64::from(steps) * run.more;
                    self.run = Some(Run {
                        start: run.start + run.seconds(steps),
                        first: run.first + more,
                        steps: run.steps - steps,
                        ..run
                    });
                }
                return;
            }
            self.apply(&run, run.steps, done);
            let end = run.end();
            self.run = None;
            self.proceed(end, rungs);
            self.run = self.plan(end, rungs);
            if self.run.is_none() {
                self.proceed(now, rungs);
                return;
            }
        }
    }

    /// Takes a change of rung as far as it goes at a step's boundary.
    fn proceed(&mut self, now: f64, rungs: &[RungModel]) {
        let Some(change) = self.change else { return };
        let target = rungs[change.to].blocks;
        if let Some(copied_at) = change.copied_at {
            if copied_at <= now {
                self.rung = change.to;
                self.capacity = target;
                self.change = None;
            }
            return;
        }
        if self.used > target && now - change.since >= SHRINK_PATIENCE {
            while self.used > target {
                self.preempt();
            }
        }
        if self.used <= target {
            // A cache that shrinks does so before the copy, one that grows after it.
            self.capacity = self.capacity.min(target);
            self.change = Some(Change { copied_at: Some(now + rungs[change.to].copy_seconds), ..change });
        }
    }

    /// The newest gives its blocks back.
    fn preempt(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        self.used -= sequence.blocks;
        sequence.blocks = 0;
        sequence.computed = 0;
        sequence.chunk = 0;
        self.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Chooses what the next steps do.
    fn plan(&mut self, now: f64, rungs: &[RungModel]) -> Option<Run> {
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
    fn apply(&mut self, run: &Run, steps: u32, done: &mut Vec<Finished>) {
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
