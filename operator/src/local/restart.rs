//! When a worker that ended starts again: after a pause that doubles while it does not get ready, and not for ever.

use std::time::{Duration, Instant};

/// Pause before the first new start.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A worker that served for as long starts from the first pause again when it ends.
const SETTLED: Duration = Duration::from_secs(60);
/// New starts in a row without a settled worker, after which there is no further one.
const MOST: u32 = 6;

/// The pauses of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    starts: u32,
    due: Option<Instant>,
    ready: Option<Instant>,
}

impl Restarts {
    /// The worker is ready.
    pub fn ready(&mut self, now: Instant) {
        self.ready.get_or_insert(now);
    }

    /// The worker ended: the pause before the next start, or `None` if there should be no further one.
    pub fn ended(&mut self, now: Instant) -> Option<Duration> {
        if self.ready.take().is_some_and(|ready| now.duration_since(ready) >= SETTLED) {
            self.starts = 0;
        }
        if self.starts == MOST {
            return None;
        }
        let pause = FIRST.saturating_mul(1 << self.starts).min(LONGEST);
        self.starts += 1;
        self.due = Some(now + pause);
        Some(pause)
    }

    /// Whether a start is planned.
    pub fn planned(&self) -> bool {
        self.due.is_some()
    }

    /// Whether it is time to start; true once for each pause.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| now >= due);
        if due {
            self.due = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_after_six() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let pauses: Vec<Option<u64>> = (0..7).map(|_| restarts.ended(now).map(|pause| pause.as_secs())).collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(4), Some(8), Some(16), Some(32), None]);
    }

    #[test]
    fn a_worker_that_served_for_a_minute_starts_from_the_first_pause() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        restarts.ended(now);
        restarts.ready(now);
        assert_eq!(restarts.ended(now + Duration::from_secs(59)), Some(Duration::from_secs(2)));
        restarts.ready(now);
        assert_eq!(restarts.ended(now + Duration::from_secs(60)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_start_is_due_once_after_its_pause() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert!(!restarts.take_due(now));
        restarts.ended(now);
        assert!(restarts.planned() && !restarts.take_due(now));
        assert!(restarts.take_due(now + FIRST));
        assert!(!restarts.planned() && !restarts.take_due(now + FIRST));
    }
}
