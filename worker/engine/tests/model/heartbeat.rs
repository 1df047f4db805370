//! The sign of life of the engine, on the real model: it stands still while the engine is stuck, and only then.

use std::{
    thread,
    time::{Duration, Instant},
};

use modelprofile_engine::{
    WeightFormat,
    serve::{Engine, start},
};

use crate::support::{self, gate::Gate};

#[test]
fn progress_stands_still_while_a_step_does_not_end_and_is_none_without_work() {
    let config = support::config(vec![support::profile("density", WeightFormat::Q4_1)], 400);
    let gate = Gate::closed_at(1);
    let engine = start(support::cpu(), &support::smollm2(), &config, Box::new(gate.clone()), &mut |_, _| {}).unwrap();
    let last = || engine.snapshot().last_progress;
    assert_eq!(last(), None);
    let before = Instant::now();
    let mut stream = engine.submit(support::greedy(&[504, 3575, 282], 4)).unwrap();
    gate.reached();
    let stuck = last().unwrap();
    assert!(stuck > before, "the step was computed and its end is held up");
    // Others come; nobody can be told that they wait, but that the engine does not get on.
    let mut other = engine.submit(support::greedy(&[504], 1)).unwrap();
    assert_eq!(last(), Some(stuck));
    gate.one_more();
    assert!(last().unwrap() > stuck);
    gate.open();
    assert_eq!((support::tokens(&mut stream).len(), support::tokens(&mut other).len()), (4, 1));
    let deadline = Instant::now() + Duration::from_secs(60);
    while last().is_some() {
        assert!(Instant::now() < deadline, "{:?}", engine.snapshot());
        thread::yield_now();
    }
}
