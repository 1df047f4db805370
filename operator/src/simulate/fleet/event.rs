//! What happens next: the events of the queue, the earliest first.

use std::cmp::Ordering;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// Steps of a worker end; out of date if the worker was looked at since (its epoch is another).
    Step { worker: usize, epoch: u64 },
    /// A worker has its weights.
    Loaded { worker: usize },
    /// The policy is asked.
    Decide,
}

/// An event of the queue; of those at the same time the one that was noted first comes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Event {
    /// When, in seconds of the simulation.
    pub(super) at: f64,
    pub(super) order: u64,
    pub(super) what: What,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}
