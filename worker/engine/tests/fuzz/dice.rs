//! Random choices of one case: the same for the same seed and number.

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A source of choices.
pub(crate) struct Dice(StdRng);

impl Dice {
    /// The choices of case `case` of a run with this seed.
    pub(crate) fn new(seed: u64, case: u64) -> Self {
        Self(StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(case)))
    }

    /// A number below `n`; 0 when `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { self.0.random_range(0..n) }
    }

    /// True `n` times of `of`.
    pub(crate) fn chance(&mut self, n: usize, of: usize) -> bool {
        self.below(of) < n
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// Any eight bytes.
    pub(crate) fn word(&mut self) -> u64 {
        self.0.random()
    }

    /// A range within `len`, most often short.
    pub(crate) fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        let most = if self.chance(3, 4) { 64 } else { len };
        start..(start + 1 + self.below(most)).min(len)
    }
}
