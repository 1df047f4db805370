//! What devices agree on in a step: whether it runs as a recorded graph.
//!
//! NCCL asks that an operation is recorded by all of its devices or by none, and that graphs which hold one are launched by all
//! together ("Using NCCL with CUDA Graphs"). Each device's queue decides by itself what it could do, since each compares its own
//! commands; so each casts one vote a step:
//!
//! - *Plain*, as soon as it submits a command of the step as it comes. It goes on without waiting.
//! - *Graph*, at the step's end, when it has submitted nothing of the step. It waits for the others' votes.
//!
//! # No deadlock
//! A device that waits for the device's work, or for votes, has cast its own vote before. One that has voted for a graph has work of
//! earlier steps only on its stream. So the waiting ends when every thread has come to the step's end, and the step's end is an
//! operation that all threads get.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, PoisonError},
};

use crate::cuda::memory::lock;

/// What a device could do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) enum Vote {
    /// Submit its commands one by one.
    Plain,
    /// Run as a graph: that which was captured in the step of this number, or one that is captured now.
    Graph(Option<u64>),
}

/// What all devices do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) enum Course {
    /// Submit its commands one by one.
    Plain,
    /// Capture a graph, and launch it if all could.
    Capture,
    /// Launch the graph that all captured in the same step.
    Launch,
}

/// The votes of a model's devices.
#[derive(Debug)]
pub(super) struct Agreement {
    devices: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The step that each device is in.
    steps: Vec<u64>,
    rounds: BTreeMap<u64, Round>,
    /// Nobody waits any more.
    over: bool,
}

#[derive(Debug)]
struct Round {
    votes: Vec<Option<Vote>>,
    captured: Vec<Option<bool>>,
}

impl Agreement {
    pub(super) fn new(devices: usize) -> Self {
        let state = State { steps: vec![0; devices], ..State::default() };
        Self { devices, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A device begins a step. Steps have ascending numbers.
    pub(super) fn begin(&self, rank: usize, step: u64) {
        let mut state = lock(&self.state);
        state.steps[rank] = step;
        // Votes of steps that all devices have left are asked for no more.
        let oldest = state.steps.iter().copied().min().unwrap_or(step);
        state.rounds.retain(|round, _| *round >= oldest);
    }

    /// Casts a device's vote in a step, the first and only one of it, and gives what all do. Waits unless the vote is plain.
    pub(super) fn vote(&self, rank: usize, step: u64, vote: Vote) -> Course {
        self.round(&mut lock(&self.state), step).votes[rank] = Some(vote);
        self.changed.notify_all();
        if vote == Vote::Plain {
            return Course::Plain;
        }
        let decided = self.wait(step, |round| {
            if round.votes.contains(&Some(Vote::Plain)) {
                return Some(Course::Plain);
            }
            let votes: Vec<Vote> = round.votes.iter().copied().collect::<Option<_>>()?;
            let same = votes[0] != Vote::Graph(None) && votes.iter().all(|vote| *vote == votes[0]);
            Some(if same { Course::Launch } else { Course::Capture })
        });
        decided.unwrap_or(Course::Plain)
    }

    /// Tells whether a device could capture, and gives whether all could.
    pub(super) fn captured(&self, rank: usize, step: u64, done: bool) -> bool {
        self.round(&mut lock(&self.state), step).captured[rank] = Some(done);
        self.changed.notify_all();
        let all = self.wait(step, |round| {
            if round.captured.contains(&Some(false)) {
                return Some(false);
            }
            round.captured.iter().all(Option::is_some).then_some(true)
        });
        all.unwrap_or(false)
    }

    /// Ends all waiting, now and later.
    pub(super) fn end(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }

    fn round<'a>(&self, state: &'a mut State, step: u64) -> &'a mut Round {
        let new = || Round { votes: vec![None; self.devices], captured: vec![None; self.devices] };
        state.rounds.entry(step).or_insert_with(new)
    }

    /// Waits until a round is decided; none when it never will be.
    fn wait<T>(&self, step: u64, decide: impl Fn(&Round) -> Option<T>) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.over {
                return None;
            }
            if let Some(decided) = decide(self.round(&mut state, step)) {
                return Some(decided);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What each device is told when all vote at once.
    fn courses(votes: &[Vote]) -> Vec<Course> {
        let agreement = Agreement::new(votes.len());
        thread::scope(|scope| {
            let threads = votes.iter().enumerate().map(|(rank, vote)| {
                let agreement = &agreement;
                scope.spawn(move || agreement.vote(rank, 7, *vote))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn a_graph_runs_only_when_all_captured_it_together() {
        assert_eq!(courses(&[Vote::Graph(None); 3]), [Course::Capture; 3]);
        assert_eq!(courses(&[Vote::Graph(Some(4)); 3]), [Course::Launch; 3]);
        assert_eq!(courses(&[Vote::Graph(Some(4)), Vote::Graph(Some(5))]), [Course::Capture; 2]);
        assert_eq!(courses(&[Vote::Graph(Some(4)), Vote::Graph(None)]), [Course::Capture; 2]);
        assert_eq!(courses(&[Vote::Graph(Some(4)), Vote::Plain, Vote::Graph(Some(4))]), [Course::Plain; 3]);
    }

    #[test]
    fn a_plain_vote_waits_for_nobody_and_lets_the_others_go() {
        let agreement = Agreement::new(2);
        assert_eq!(agreement.vote(0, 1, Vote::Plain), Course::Plain);
        assert_eq!(agreement.vote(1, 1, Vote::Graph(None)), Course::Plain);
    }

    #[test]
    fn one_that_could_not_capture_decides_for_all() {
        let agreement = Agreement::new(2);
        thread::scope(|scope| {
            let other = scope.spawn(|| agreement.captured(0, 1, true));
            assert!(!agreement.captured(1, 1, false));
            assert!(!other.join().unwrap());
        });
    }

    #[test]
    fn the_end_lets_all_go_and_steps_that_all_left_are_forgotten() {
        let agreement = Agreement::new(2);
        agreement.vote(0, 1, Vote::Plain);
        agreement.begin(0, 5);
        assert_eq!(lock(&agreement.state).rounds.len(), 1, "the other device may still ask");
        agreement.begin(1, 5);
        assert!(lock(&agreement.state).rounds.is_empty());
        thread::scope(|scope| {
            let waits = scope.spawn(|| agreement.vote(0, 5, Vote::Graph(None)));
            agreement.end();
            assert_eq!(waits.join().unwrap(), Course::Plain);
        });
        assert_eq!(agreement.vote(1, 6, Vote::Graph(Some(1))), Course::Plain, "and nobody waits later");
    }
}
