//! Steps that are joined, because nothing changes between them.

/// Steps under way: one with prompts in it, or several that decode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// When the first step began, in seconds of the simulation.
    pub(super) start: f64,
    /// Duration of the first step, and what each later one takes more than the one before; in seconds.
    pub(super) first: f64,
    pub(super) more: f64,
    pub(super) steps: u32,
    /// Whether there are prompts in it.
    pub(super) mixed: bool,
}

impl Run {
    /// How long the first `steps` of it take, in seconds.
    pub(super) fn seconds(&self, steps: u32) -> f64 {
        let n = f64::from(steps);
        n * self.first + self.more * n * (n - 1.0) / 2.0
    }

    /// When its last step ends.
    pub(super) fn end(&self) -> f64 {
        self.start + self.seconds(self.steps)
    }

    /// Whole steps that are over at `now`.
    pub(super) fn done(&self, now: f64) -> u32 {
        let over = (now - self.start).max(0.0);
        let guess = if self.more > 0.0 {
            let b = self.first - self.more / 2.0;
            ((b * b + 2.0 * self.more * over).sqrt() - b) / self.more
        } else {
            over / self.first
        };
        let mut steps = (guess as u32).min(self.steps);
        while steps > 0 && self.seconds(steps) > over {
            steps -= 1;
        }
        steps
    }
}
