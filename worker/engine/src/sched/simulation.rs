//! The scheduler against a cache that remembers what was written into each slot, under random loads, cancellations,
//! switches of profile and failed sequences.

use std::collections::{BTreeMap, HashSet};

use modelprofile_kernels::{BLOCK_TOKENS, BlockMove};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};

use super::*;

const MAX_BATCHED: usize = 40;
const MAX_RUNNING: usize = 6;
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

/// A switch of profile: in this step, to this rung, with this many blocks.
type Switch = (usize, u8, usize);

struct Simulation {
    scheduler: Scheduler,
    cache: Vec<Slot>,
    rung: u8,
    /// Tokens of each live sequence, prompt first.
    live: BTreeMap<u64, Vec<u32>>,
    /// Ids in the order of their arrival.
    arrived: Vec<u64>,
}

impl Simulation {
    fn new(blocks: usize) -> Self {
        let config = SchedulerConfig {
            blocks,
            max_batched_tokens: MAX_BATCHED,
            max_running: MAX_RUNNING,
            max_tokens: MAX_TOKENS,
        };
        Self {
            scheduler: Scheduler::new(config),
            cache: vec![None; blocks * BLOCK_TOKENS],
            rung: 0,
            live: BTreeMap::new(),
            arrived: Vec::new(),
        }
    }

    fn switch(&mut self, rung: u8, blocks: usize) -> TestCaseResult {
        self.rung = rung;
        if blocks >= self.scheduler.stats().blocks_total {
            self.scheduler.grow(blocks);
        } else {
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
        prop_assert!(step.items().iter().map(|i| i.rows).sum::<usize>() <= MAX_BATCHED, "over the token budget");
        prop_assert!(self.scheduler.stats().running <= MAX_RUNNING);
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
        switches in vec((0usize..200, 0u8..3, SMALLEST_POOL..SMALLEST_POOL * 4), 0..8),
        blocks in SMALLEST_POOL..SMALLEST_POOL * 3,
    ) {
        run(&loads, &switches, blocks)?;
    }
}

fn run(loads: &[Load], switches: &[Switch], blocks: usize) -> TestCaseResult {
    let mut simulation = Simulation::new(blocks);
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
        for (_, rung, blocks) in switches.iter().filter(|(at, ..)| *at == now) {
            simulation.switch(*rung, *blocks)?;
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
