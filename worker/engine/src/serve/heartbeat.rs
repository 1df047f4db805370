//! When the engine thread got on last. Others read it while the thread computes: one that is stuck publishes nothing, so its
//! snapshot says the same for ever and would pass for a calm engine.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Value of [`Heartbeat::at`] while there is nothing to do.
const IDLE: u64 = 0;

/// A sign of life of the engine thread.
pub(super) struct Heartbeat {
    origin: Instant,
    /// Nanoseconds from `origin` to the latest beat, and 1 more, or [`IDLE`].
    at: AtomicU64,
}

impl Heartbeat {
    /// Of a thread that has nothing to do yet.
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), at: AtomicU64::new(IDLE) }
    }

    /// The thread got on: it took work up, or computed a layer of a step. A layer and not a step, because a step of a large
    /// model on a slow machine takes as long as one would want to wait for a sign.
    pub(super) fn beat(&self) {
        self.at.store(1 + self.origin.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// The thread waits for work.
    pub(super) fn rest(&self) {
        self.at.store(IDLE, Ordering::Relaxed);
    }

    /// When the thread got on last; `None` while it has nothing to do.
    pub(super) fn last(&self) -> Option<Instant> {
        match self.at.load(Ordering::Relaxed) {
            IDLE => None,
            at => Some(self.origin + Duration::from_nanos(at - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_known_from_the_first_work_to_the_next_rest() {
        let heartbeat = Heartbeat::new();
        assert_eq!(heartbeat.last(), None);
        let before = Instant::now();
        heartbeat.beat();
        let last = heartbeat.last().unwrap();
        assert!(before <= last && last <= Instant::now());
        assert_eq!(heartbeat.last(), Some(last), "it stands still when nothing is done");
        heartbeat.rest();
        assert_eq!(heartbeat.last(), None);
    }
}
