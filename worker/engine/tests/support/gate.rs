//! A gate at the end of each step that gave tokens: tests say how far the engine computes, whatever the machine's speed.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use modelprofile_engine::serve::{Observation, Observer};

#[derive(Default)]
struct State {
    /// Steps that came to the gate.
    arrived: usize,
    /// Steps that may pass; all of them when `None`.
    allowed: Option<usize>,
}

/// Shared by a test and the engine's observer.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    /// A gate that stops the engine at the end of step `steps`, counted from 1.
    pub(crate) fn closed_at(steps: usize) -> Self {
        let gate = Self::default();
        gate.state().allowed = Some(steps - 1);
        gate
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// Waits until the engine stands at the gate.
    pub(crate) fn reached(&self) {
        let (state, timeout) = self
            .0
            .1
            .wait_timeout_while(self.state(), Duration::from_secs(300), |s| s.allowed.is_some_and(|a| s.arrived <= a))
            .unwrap();
        assert!(!timeout.timed_out(), "the engine stopped after {} steps", state.arrived);
    }

    /// Lets the engine compute one more step, and waits until it stands at the gate again.
    pub(crate) fn one_more(&self) {
        self.reached();
        let mut state = self.state();
        state.allowed = state.allowed.map(|allowed| allowed + 1);
        drop(state);
        self.0.1.notify_all();
        self.reached();
    }

    /// Lets the engine go on for good.
    pub(crate) fn open(&self) {
        self.state().allowed = None;
        self.0.1.notify_all();
    }
}

impl Observer for Gate {
    fn observe(&mut self, observation: Observation) {
        if matches!(observation, Observation::Generated { .. }) {
            let mut state = self.state();
            state.arrived += 1;
            self.0.1.notify_all();
            let _open = self.0.1.wait_while(state, |s| s.allowed.is_some_and(|a| s.arrived > a)).unwrap();
        }
    }
}
