use super::*;
use crate::sched::blocks::chain;

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
fn a_prompt_that_is_cached_whole_computes_its_last_block_again() {
    let mut s = scheduler(64);
    s.add(1, vec![1; 32], 4, false).unwrap();
    run(&mut s, 0);
    s.add(2, vec![1; 32], 4, false).unwrap();
    let step = run(&mut s, 0);
    assert_eq!(step.admitted().collect::<Vec<_>>(), [(2, 16)]);
    assert_eq!(step.prefill_tokens(), 16);
}

#[test]
fn the_newest_is_preempted_and_keeps_its_tokens() {
    let mut s = scheduler(4);
    s.add(1, vec![1; 16], 40, false).unwrap();
    s.add(2, vec![2; 15], 40, false).unwrap();
    for _ in 0..40 {
        run(&mut s, 0);
        if s.stats().preemptions > 0 {
            break;
        }
    }
    assert_eq!((s.stats().running, s.stats().waiting), (1, 1));
    let generated = s.sequences[&2].tokens.len() - 15;
    assert!(generated > 0 && s.sequences[&2].blocks.is_empty());
    s.remove(1);
    let step = run(&mut s, 0);
    assert_eq!(step.items()[0].first_position + step.items()[0].rows, 15 + generated);
}

#[test]
fn blocks_after_a_switch_to_quality_stay_density_blocks() {
    let prompt = [1; 64];
    let mut s = scheduler(64);
    s.add(1, prompt.to_vec(), 4, false).unwrap();
    run(&mut s, 1);
    run(&mut s, 0);
    let last = prompt.chunks(BLOCK_TOKENS).fold(None, |parent, tokens| Some(chain(parent, tokens))).unwrap();
    assert_eq!((s.pool.peek(last, 0), s.pool.peek(last, 1)), (None, Some(false)));
}

#[test]
fn a_rung_that_is_added_in_front_reuses_nothing_of_those_behind_it() {
    let prompt = [1; 64];
    let mut s = scheduler(64);
    s.add(1, prompt.to_vec(), 40, false).unwrap();
    run(&mut s, 0);
    s.add(2, vec![2; 8], 4, false).unwrap();
    s.rearrange(&[Some(1)]);
    assert_eq!((s.sequences[&1].tag, s.sequences[&2].tag), (1, 0), "of the second nothing is computed yet");
    run(&mut s, 1);
    let hashes = prompt.chunks(BLOCK_TOKENS).scan(None, |parent, tokens| {
        *parent = Some(chain(*parent, tokens));
        *parent
    });
    for hash in hashes {
        assert_eq!((s.pool.peek(hash, 0), s.pool.peek(hash, 1)), (None, Some(false)));
    }
}

#[test]
fn a_damaged_sequence_leaves_nothing_to_reuse() {
    let mut s = scheduler(64);
    s.add(1, vec![1; 40], 4, false).unwrap();
    run(&mut s, 0);
    assert_eq!(s.pool.peek(chain(None, &[1; 16]), 0), Some(false));
    let step = s.schedule(0);
    s.commit(&step, &[]);
    s.remove(1);
    assert_eq!(s.pool.peek(chain(None, &[1; 16]), 0), None);
    assert_eq!((s.stats().blocks_used, s.stats().blocks_cached), (0, 0));
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut s = scheduler(4);
    assert_eq!(s.add(1, vec![1; 60], 5, false), Err(AddError::TooLong { tokens: 65, limit: 64 }));
    assert_eq!(s.add(1, vec![], 5, false), Err(AddError::Empty));
    let endless = AddError::TooLong { tokens: usize::MAX, limit: 64 };
    assert_eq!(s.add(1, vec![1], usize::MAX, false), Err(endless));
    s.add(1, vec![1], 1, false).unwrap();
    assert_eq!(s.add(1, vec![1], 1, false), Err(AddError::Known(1)));
}

#[test]
fn a_limited_step_has_all_decodes_and_what_the_limit_leaves_for_prompts() {
    let mut s = scheduler(64);
    for id in 0..4 {
        s.add(id, vec![id as u32; 4], 10, false).unwrap();
    }
    assert!(!s.decoding());
    run(&mut s, 0);
    assert!(s.decoding());
    s.add(9, vec![9; 100], 10, false).unwrap();
    s.limit_step(6);
    let rows = |step: &ScheduledStep| step.items().iter().map(|i| (i.id, i.rows)).collect::<Vec<_>>();
    assert_eq!(rows(&run(&mut s, 0)), [(0, 1), (1, 1), (2, 1), (3, 1), (9, 2)]);
    // However small the limit, no stream is held up.
    s.limit_step(1);
    assert_eq!(rows(&run(&mut s, 0)), [(0, 1), (1, 1), (2, 1), (3, 1), (9, 1)]);
    s.limit_step(usize::MAX);
    assert_eq!(rows(&run(&mut s, 0)).last(), Some(&(9, 28)));
}
