//! A shrinking switch on the real model while requests hold more blocks than the target has: nobody fails, the budget is
//! kept, and what the prefix cache gives away is as precise as it must be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    FinishReason, TokenEvent, WeightFormat,
    serve::{Engine, EngineConfig, EngineHandle, SHRINK_PATIENCE, SubmitError, SwitchEnd, TokenStream, start},
};
use modelprofile_kernels::BLOCK_TOKENS;

use crate::support::{self, gate::Gate};

const PROMPT_TOKENS: usize = 48;
const NEW_TOKENS: usize = 96;
const REQUESTS: u32 = 8;
/// Steps after which each request has used most of its blocks.
const FULL_STEPS: usize = 70;

/// A budget in which quality holds a few requests' blocks and density those of all.
fn config(active: &str) -> EngineConfig {
    let ladder = vec![support::profile("quality", WeightFormat::Fp8), support::profile("density", WeightFormat::Q4_1)];
    let mut config = support::config(ladder, 177);
    config.start = Some(active.into());
    config.max_context_tokens = Some(512);
    config
}

fn engine(config: &EngineConfig, gate: &Gate) -> EngineHandle {
    start(support::cpu(), &support::smollm2(), config, Box::new(gate.clone()), &mut |_, _| {}).unwrap()
}

/// Prompts that share no block.
fn prompt(index: u32) -> Vec<u32> {
    (0..PROMPT_TOKENS as u32).map(|at| 1000 + (at * 37 + index * 411) % 9000).collect()
}

fn blocks_of(engine: &EngineHandle, profile: &str) -> usize {
    let snapshot = engine.snapshot();
    snapshot.profiles.iter().find(|p| &*p.name == profile).unwrap().kv_tokens as usize / BLOCK_TOKENS
}

/// What a request gave: tokens of the density profile, those of the quality profile after them, and the prompt tokens
/// that it found in the prefix cache.
#[derive(Debug, PartialEq)]
struct Text {
    density: Vec<u32>,
    quality: Vec<u32>,
    cached: usize,
}

fn text(stream: &mut TokenStream) -> Text {
    let mut text = Text { density: Vec::new(), quality: Vec::new(), cached: 0 };
    loop {
        match stream.blocking_next() {
            Some(TokenEvent::Token { token, profile, .. }) if &*profile == "density" => {
                assert!(text.quality.is_empty(), "density computed a token after the switch to quality");
                text.density.push(token);
            }
            Some(TokenEvent::Token { token, .. }) => text.quality.push(token),
            Some(TokenEvent::Finished { reason, cached_tokens, error }) => {
                assert_eq!(reason, FinishReason::Length, "{error:?}");
                text.cached = cached_tokens;
                return text;
            }
            Some(TokenEvent::Prompt(_)) => {}
            None => panic!("the engine died"),
        }
    }
}

/// Holds every snapshot against the budget until it is told to stop; returns the targets it saw.
fn watch_the_budget(engine: &EngineHandle, stop: &Arc<AtomicBool>) -> thread::JoinHandle<bool> {
    let (engine, stop) = (engine.clone(), stop.clone());
    thread::spawn(move || {
        let mut pending = false;
        while !stop.load(Ordering::Acquire) {
            let snapshot = engine.snapshot();
            let memory = snapshot.memory;
            assert!(memory.weights + memory.kv + memory.workspace <= memory.budget, "{snapshot:?}");
            assert!(snapshot.blocks_used + snapshot.blocks_cached <= snapshot.blocks_total, "{snapshot:?}");
            pending |= snapshot.target.as_deref() == Some("quality");
            thread::sleep(Duration::from_millis(1));
        }
        pending
    })
}

#[test]
fn a_shrinking_switch_preempts_requests_and_all_of_them_finish_with_the_text_they_should() {
    let gate = Gate::closed_at(FULL_STEPS);
    let crowd = engine(&config("density"), &gate);
    let few = blocks_of(&crowd, "quality");
    let stop = Arc::new(AtomicBool::new(false));
    let watch = watch_the_budget(&crowd, &stop);
    let mut streams: Vec<TokenStream> =
        (0..REQUESTS).map(|i| crowd.submit(support::greedy(&prompt(i), NEW_TOKENS)).unwrap()).collect();
    gate.reached();
    let before = crowd.snapshot();
    assert!(before.blocks_used > few, "{before:?}");

    let asked = Instant::now();
    let switched = crowd.switch("quality");
    gate.one_more();
    // The engine stands still for longer than it waits for requests to end: it has to preempt.
    while asked.elapsed() <= SHRINK_PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    gate.open();
    let result = switched.blocking_recv().unwrap();
    assert_eq!(result.outcome, SwitchEnd::Completed, "{result:?}");
    assert!((1..REQUESTS as usize).contains(&result.preempted), "{result:?}");

    let texts: Vec<Text> = streams.iter_mut().map(text).collect();
    stop.store(true, Ordering::Release);
    assert!(watch.join().unwrap(), "no snapshot showed the switch under way");
    for text in &texts {
        assert_eq!(text.density.len() + text.quality.len(), NEW_TOKENS, "{text:?}");
        assert!(!text.density.is_empty() && !text.quality.is_empty(), "{text:?}");
    }
    assert_eq!(crowd.snapshot().blocks_total, few);
    drop(crowd);

    // The oldest is never preempted: it keeps what density put into its cache, through the move of its blocks, and goes on
    // as it would alone with a switch at the same token.
    let gate = Gate::closed_at(texts[0].density.len());
    let alone = engine(&config("density"), &gate);
    let mut stream = alone.submit(support::greedy(&prompt(0), NEW_TOKENS)).unwrap();
    gate.reached();
    let switched = alone.switch("quality");
    gate.open();
    assert_eq!(switched.blocking_recv().unwrap().preempted, 0);
    assert_eq!(text(&mut stream), texts[0]);

    // The newest were preempted, and quality computed all their tokens again, prompt and output of density alike. That is
    // not the text of a request that kept its cache through a switch, but that of one whose prompt they were. Those
    // between were not preempted by the switch, and perhaps later, for want of blocks: what they keep depends on when.
    let fresh = engine(&config("quality"), &Gate::default());
    for (index, text) in texts.iter().enumerate().rev().take(result.preempted) {
        let history = [prompt(index as u32), text.density.clone()].concat();
        assert_eq!(support::generate(&fresh, &history, text.quality.len()), text.quality, "request {index}");
    }
}

#[test]
fn a_later_request_for_another_profile_replaces_a_switch_that_waits_for_blocks() {
    let gate = Gate::closed_at(FULL_STEPS);
    let engine = engine(&config("density"), &gate);
    let mut streams: Vec<TokenStream> =
        (0..REQUESTS).map(|i| engine.submit(support::greedy(&prompt(i), NEW_TOKENS)).unwrap()).collect();
    gate.reached();
    let replaced = engine.switch("quality");
    gate.one_more();
    let joined = engine.switch("quality");
    let back = engine.switch("density");
    gate.open();
    for reply in [replaced, joined] {
        let result = reply.blocking_recv().unwrap();
        assert_eq!(result.outcome, SwitchEnd::Replaced, "{result:?}");
        assert_eq!((&*result.from, &*result.to, result.preempted), ("density", "quality", 0), "{result:?}");
        assert!(result.message.contains("density"), "{}", result.message);
    }
    assert_eq!(back.blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    // Admissions, which the first switch held back, go on.
    streams.push(engine.submit(support::greedy(&prompt(REQUESTS), NEW_TOKENS)).unwrap());
    for stream in &mut streams {
        assert_eq!(text(stream).density.len(), NEW_TOKENS);
    }
    assert_eq!(engine.snapshot().active.as_ref(), "density");
}

#[test]
fn streams_dropped_while_a_switch_waits_free_their_blocks_and_it_completes() {
    let gate = Gate::closed_at(FULL_STEPS);
    let engine = engine(&config("density"), &gate);
    let few = blocks_of(&engine, "quality");
    let mut streams: Vec<TokenStream> =
        (0..REQUESTS).map(|i| engine.submit(support::greedy(&prompt(i), NEW_TOKENS)).unwrap()).collect();
    gate.reached();
    let switched = engine.switch("quality");
    gate.one_more();
    assert!(engine.snapshot().blocks_used > few);
    // The last one to come stays: its blocks lie among those that were freed, and have to move.
    let mut stays = streams.pop().unwrap();
    drop(streams);
    gate.open();
    let result = switched.blocking_recv().unwrap();
    assert_eq!((result.outcome, result.preempted), (SwitchEnd::Completed, 0), "{result:?}");
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.blocks_total, snapshot.waiting), (few, 0), "{snapshot:?}");
    assert!(snapshot.running <= 1, "{snapshot:?}");
    let text = text(&mut stays);
    assert_eq!(text.density.len() + text.quality.len(), NEW_TOKENS);
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.snapshot().blocks_used > 0 {
        assert!(Instant::now() < deadline, "{:?}", engine.snapshot());
        thread::yield_now();
    }
}

#[test]
fn a_full_queue_refuses_switches_and_takes_requests_again_when_it_has_room() {
    let gate = Gate::closed_at(1);
    let mut config = config("density");
    (config.max_running, config.max_waiting) = (1, 2);
    let engine = engine(&config, &gate);
    let submit = |i| engine.submit(support::greedy(&prompt(i), 4));
    let mut streams = vec![submit(0).unwrap()];
    gate.reached();
    streams.extend([submit(1).unwrap(), submit(2).unwrap()]);
    match submit(3) {
        Err(SubmitError::QueueFull { waiting: 2, retry_after_seconds }) => assert!(retry_after_seconds >= 1),
        other => panic!("{other:?}"),
    }
    // A switch does not wait in that queue, nor does it lose what waits there.
    let switched = engine.switch("quality");
    gate.open();
    assert_eq!(switched.blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    for stream in &mut streams {
        assert_eq!(support::tokens(stream).len(), 4);
    }
    assert_eq!(support::tokens(&mut submit(4).unwrap()).len(), 4);
}

#[test]
fn quality_reuses_no_block_that_density_took_part_in_but_density_reuses_those_of_quality() {
    let gate = Gate::default();
    let engine = engine(&config("density"), &gate);
    let cached = |prompt: &[u32]| text(&mut engine.submit(support::greedy(prompt, 1)).unwrap()).cached;
    let switch = |to| assert_eq!(engine.switch(to).blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    // The last token of a prompt is always computed, so the block that holds it is never reused.
    let whole = PROMPT_TOKENS - BLOCK_TOKENS;
    assert_eq!((cached(&prompt(0)), cached(&prompt(0))), (0, whole));
    switch("quality");
    assert_eq!((cached(&prompt(0)), cached(&prompt(0))), (0, whole), "quality after density");
    assert_eq!((cached(&prompt(1)), cached(&prompt(1))), (0, whole));
    switch("density");
    assert_eq!(cached(&prompt(1)), whole, "density after quality");
}

#[test]
fn blocks_that_quality_computed_from_a_density_cache_are_reused_by_density_alone() {
    let gate = Gate::closed_at(4);
    let engine = engine(&config("density"), &gate);
    let mut stream = engine.submit(support::greedy(&prompt(0), 3 * BLOCK_TOKENS + 1)).unwrap();
    gate.reached();
    let switched = engine.switch("quality");
    gate.open();
    assert_eq!(switched.blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    let first = text(&mut stream);
    let history = [prompt(0), first.density, first.quality].concat();
    let again = |tokens: &[u32]| text(&mut engine.submit(support::greedy(tokens, 1)).unwrap()).cached;
    // First the longer look-up, by density: a quality request would put blocks of its own in place of the others.
    assert_eq!(engine.switch("density").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    assert_eq!(again(&history), PROMPT_TOKENS + 3 * BLOCK_TOKENS);
    assert_eq!(engine.switch("quality").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
    assert_eq!(again(&history), 0);
}
