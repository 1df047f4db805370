//! How many rows a step may have while streams run: a prompt's chunk makes the gap between two tokens of every running
//! stream, so chunks shrink where the machine is slow or shared, and grow where it is fast.
//!
//! Results do not depend on it: a row is computed the same however a prompt is cut (see [`modelprofile_kernels::StepPlan`]).

use std::time::Duration;

/// Time that a step with running streams should take at most.
const TARGET: Duration = Duration::from_millis(100);
/// Rows of a step at least, lest prompts starve on a slow machine.
const LEAST_ROWS: usize = 32;
/// Steps with fewer rows say little about the cost of a row: reading the weights dominates them.
const TELLING_ROWS: usize = 32;
/// Weight of the latest step in the average.
const LATEST: f64 = 0.3;

/// The time that a row takes, from the steps so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds_per_row: Option<f64>,
}

impl Pace {
    /// Learns from a step.
    pub(super) fn record(&mut self, rows: usize, elapsed: Duration) {
        if rows < TELLING_ROWS {
            return;
        }
        let latest = elapsed.as_secs_f64() / rows as f64;
        self.seconds_per_row = Some(self.seconds_per_row.map_or(latest, |mean| mean + LATEST * (latest - mean)));
    }

    /// Rows of the next step while streams run. Before the first telling step: the least.
    pub(super) fn rows(&self) -> usize {
        self.seconds_per_row.map_or(LEAST_ROWS, |seconds| ((TARGET.as_secs_f64() / seconds) as usize).max(LEAST_ROWS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_to_the_target_and_shrink_with_a_slow_machine() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(), LEAST_ROWS);
        for _ in 0..20 {
            pace.record(100, Duration::from_millis(50));
        }
        assert!(pace.rows().abs_diff(200) <= 1, "{}", pace.rows());
        for _ in 0..20 {
            pace.record(100, Duration::from_millis(200));
        }
        assert!(pace.rows().abs_diff(50) <= 1, "{}", pace.rows());
        pace.record(1000, Duration::from_secs(3600));
        assert_eq!(pace.rows(), LEAST_ROWS);
    }

    #[test]
    fn a_decode_step_says_nothing_about_rows() {
        let mut pace = Pace::default();
        pace.record(1, Duration::from_secs(1));
        assert_eq!(pace.rows(), LEAST_ROWS);
    }
}
