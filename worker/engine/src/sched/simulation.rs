//! The scheduler against a cache that remembers what was written into each slot, under random loads, cancellations,
//! switches of profile and failed sequences.

use std::collections::{BTreeMap, HashSet};

use modelprofile_kernels::{BLOCK_TOKENS, BlockMove};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};

use super::*;

const MAX_TOKENS: usize = 128;
const SMALLEST_POOL: usize = MAX_TOKENS / BLOCK_TOKENS;

/// What a slot of the cache holds: all tokens up to its own, and the least precise rung among their computations.
type Slot = Option<(Vec<u32>, u8)>;

/// A request as its client sees it.
#[derive(Clone, Debug)]
struct Load {
    /// Step in which it arrives.
    arrives: usize,
    prompt: Vec<u32>,
    new: usize,
    scored: bool,
    /// It ends without a token after this many: cancelled, or its logits were not numbers.
    ends_early: Option<(usize, bool)>,
}

/// A switch of profile: in this step, to this rung, with this many blocks, after admissions were held for this many steps.
type Switch = (usize, u8, usize, usize);

struct Simulation {
    config: SchedulerConfig,
    scheduler: Scheduler,
    cache: Vec<Slot>,
    rung: u8,
    /// Tokens of each live sequence, prompt first.
    live: BTreeMap<u64, Vec<u32>>,
    /// Ids in the order of their arrival.
    arrived: Vec<u64>,
    /// Waiting sequences must not begin to run.
    held: bool,
    /// Switches that shrank the pool: each may make a sequence compute all its tokens again.
    shrinks: usize,
    /// The sequence that came before all others that are live, and the steps since then in which it could run.
    oldest: Option<(u64, usize)>,
}

impl Simulation {
    fn new(blocks: usize, max_batched_tokens: usize, max_running: usize) -> Self {
        let config = SchedulerConfig { blocks, max_batched_tokens, max_running, max_tokens: MAX_TOKENS };
        Self {
            config,
            scheduler: Scheduler::new(config),
            cache: vec![None; blocks * BLOCK_TOKENS],
            rung: 0,
            live: BTreeMap::new(),
            arrived: Vec::new(),
            held: false,
            shrinks: 0,
            oldest: None,
        }
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        self.scheduler.hold_admissions(held);
    }

    /// No starvation: whoever came first is computed in every step, and so ends after a bounded number of them, whatever
    /// came later. All others become first in their turn.
    fn first_come_first_served(&mut self, step: &ScheduledStep, loads: &[Load]) -> TestCaseResult {
        let Some(id) = self.arrived.iter().copied().find(|id| self.live.contains_key(id)) else { return Ok(()) };
        if self.held {
            return Ok(());
        }
        prop_assert!(step.items().iter().any(|item| item.id == id), "the oldest, {id}, is not computed");
        let steps = self.oldest.filter(|(oldest, _)| *oldest == id).map_or(1, |(_, steps)| steps + 1);
        self.oldest = Some((id, steps));
        // Each of the others takes a token of the budget at most before the oldest prompt gets its chunk.
        let SchedulerConfig { max_batched_tokens, max_running, .. } = self.config;
        let chunk = (max_batched_tokens + 1).saturating_sub(max_running).max(1);
        let bound = loads[id as usize].new + (1 + self.shrinks) * MAX_TOKENS.div_ceil(chunk);
        prop_assert!(steps <= bound, "{id} is the oldest for {steps} steps, more than {bound}");
        Ok(())
    }

    fn switch(&mut self, rung: u8, blocks: usize) -> TestCaseResult {
        self.rung = rung;
        if blocks >= self.scheduler.stats().blocks_total {
            self.scheduler.grow(blocks);
        } else {
            self.shrinks += 1;
            let moves = loop {
                match self.scheduler.shrink(blocks) {
                    Ok(moves) => break moves,
                    Err(short) => prop_assert!(short > 0 && self.scheduler.preempt_newest()),
                }
            };
            for BlockMove { from, to } in moves {
                prop_assert!(from as usize >= blocks && (to as usize) < blocks);
                let (from, to) = (from as usize * BLOCK_TOKENS, to as usize * BLOCK_TOKENS);
                for offset in 0..BLOCK_TOKENS {
                    self.cache[to + offset] = self.cache[from + offset].take();
                }
            }
        }
        self.cache.resize(blocks * BLOCK_TOKENS, None);
        Ok(())
    }

    /// Computes one step and checks all that it reads and writes.
    fn step(&mut self, loads: &[Load]) -> TestCaseResult {
        let step = self.scheduler.schedule(self.rung);
        let SchedulerConfig { max_batched_tokens, max_running, .. } = self.config;
        prop_assert!(step.items().iter().map(|i| i.rows).sum::<usize>() <= max_batched_tokens, "over the token budget");
        prop_assert!(step.items().iter().all(|i| i.rows > 0), "a sequence without a row");
        prop_assert!(self.scheduler.stats().running <= max_running);
        prop_assert!(
            !self.held || step.admitted().next().is_none(),
            "a sequence began to run while admissions are held"
        );
        self.first_come_first_served(&step, loads)?;
        for (id, _) in step.admitted() {
            // First come, first served, after preemptions too: whoever came before is computed in this step.
            for earlier in self.arrived.iter().take_while(|earlier| **earlier != id) {
                let computed = step.items().iter().any(|item| item.id == *earlier);
                prop_assert!(computed || !self.live.contains_key(earlier), "{id} begins to run before {earlier}");
            }
        }
        let plan = step.plan();
        prop_assert_eq!(plan.sequences.iter().map(|s| s.rows).sum::<usize>(), plan.tokens.len());
        let mut written = HashSet::new();
        let mut sampled = Vec::new();
        let mut ended = Vec::new();
        for (item, span) in step.items().iter().zip(&plan.sequences) {
            let Some(tokens) = self.live.get(&item.id) else {
                return Err(TestCaseError::fail(format!("sequence {} is gone but was scheduled", item.id)));
            };
            let load = &loads[item.id as usize];
            let slot = |position: usize| {
                span.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
            };
            let mut least = 0;
            for position in 0..span.first_position {
                let Some((history, tag)) = &self.cache[slot(position)] else {
                    return Err(TestCaseError::fail(format!("sequence {} reads an empty slot", item.id)));
                };
                prop_assert_eq!(history, &tokens[..=position], "sequence {} reads another's block", item.id);
                least = least.max(*tag);
            }
            if step.admitted().any(|(id, _)| id == item.id) {
                prop_assert!(least <= self.rung, "rung {} reuses what rung {least} computed", self.rung);
                prop_assert_eq!(step.admitted().find(|(id, _)| *id == item.id), Some((item.id, span.first_position)));
            }
            for position in span.first_position..span.first_position + span.rows {
                prop_assert_eq!(plan.tokens[span.first_row + position - span.first_position], tokens[position]);
                prop_assert!(written.insert(slot(position)), "two sequences write one slot");
                self.cache[slot(position)] = Some((tokens[..=position].to_vec(), least.max(self.rung)));
            }
            let rows = span.first_row..span.first_row + span.rows;
            let wanted = plan.logit_rows.iter().filter(|row| rows.contains(row)).count();
            let generated = tokens.len() - load.prompt.len();
            let scores = load.scored && generated == 0;
            prop_assert_eq!(wanted, if scores { span.rows } else { usize::from(item.samples) });
            if !item.samples {
                continue;
            }
            match load.ends_early {
                Some((after, _)) if after == generated => ended.push(item.id),
                _ => {
                    // Few different tokens, so that outputs share blocks too.
                    sampled.push((item.id, generated as u32 % 3));
                    if generated + 1 == load.new {
                        ended.push(item.id);
                    }
                }
            }
        }
        self.scheduler.commit(&step, &sampled);
        for (id, token) in sampled {
            if let Some(tokens) = self.live.get_mut(&id) {
                tokens.push(token);
            }
        }
        for id in ended {
            self.scheduler.remove(id);
            self.live.remove(&id);
        }
        self.scheduler.check().map_err(TestCaseError::fail)
    }
}

fn load() -> impl Strategy<Value = Load> {
    let early = proptest::option::weighted(0.2, (0usize..20, any::<bool>()));
    (0usize..60, 0u32..3, 1usize..80, 0u32..3, 1usize..48, any::<u8>(), early).prop_map(
        |(arrives, content, length, last, new, scored, ends_early)| {
            // Prompts of one content share their beginnings, up to a last token.
            let mut prompt = vec![content; length];
            prompt.push(last);
            Load { arrives, prompt, new, scored: scored < 32, ends_early }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn every_sequence_reads_its_own_history_and_ends(
        loads in vec(load(), 1..24),
        switches in vec((0usize..200, 0u8..3, SMALLEST_POOL..SMALLEST_POOL * 4, 0usize..8), 0..8),
        blocks in SMALLEST_POOL..SMALLEST_POOL * 3,
        max_batched in 1usize..48,
        max_running in 1usize..9,
    ) {
        run(&loads, &switches, Simulation::new(blocks, max_batched, max_running))?;
    }
}

fn run(loads: &[Load], switches: &[Switch], mut simulation: Simulation) -> TestCaseResult {
    let limit = 60 + 24 * 128 * 8;
    for now in 0..limit {
        for (id, load) in loads.iter().enumerate().filter(|(_, load)| load.arrives == now) {
            let id = id as u64;
            let added = simulation.scheduler.add(id, load.prompt.clone(), load.new, load.scored);
            prop_assert_eq!(added, Ok(()));
            simulation.live.insert(id, load.prompt.clone());
            simulation.arrived.push(id);
        }
        // A client that goes away does so between steps.
        let gone: Vec<u64> = simulation
            .live
            .iter()
            .filter(|(id, tokens)| {
                let load = &loads[**id as usize];
                load.ends_early
                    .is_some_and(|(after, leaves)| leaves && load.arrives + after <= now && !tokens.is_empty())
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            simulation.scheduler.remove(id);
            simulation.live.remove(&id);
        }
        for (at, rung, blocks, patience) in switches {
            if *at == now {
                simulation.hold(true);
            }
            if at + patience == now {
                simulation.switch(*rung, *blocks)?;
                simulation.hold(false);
            }
        }
        if simulation.live.is_empty() && now > 60 {
            break;
        }
        simulation.step(loads)?;
    }
    prop_assert!(simulation.live.is_empty(), "starved: {:?}", simulation.live.keys());
    prop_assert_eq!(simulation.scheduler.stats().blocks_used, 0);
    Ok(())
}
