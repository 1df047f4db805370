//! The present step as operations see it, and what buffers hold meanwhile.

use super::{content::Contents, driver::Address, kernels::Rows, step::Numbers};
use crate::Result;

/// State that operations leave to each other.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) contents: Contents,
    /// Which call of `begin` the present step is of.
    generation: u64,
    /// Its rows, and those of the bucket that it is padded to.
    rows: usize,
    bucket: Option<usize>,
    /// The frequencies and the factor that its angles were computed with.
    angles: Option<(Address, u32)>,
}

impl Present {
    /// A step begins; returns its generation.
    pub(super) fn begin(&mut self, numbers: &Numbers) -> u64 {
        self.generation += 1;
        self.rows = numbers.shape.rows;
        self.bucket = numbers.shape.bucket;
        self.angles = None;
        self.generation
    }

    /// Whether a generation is the present step's.
    pub(super) fn is(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// Rows to compute for `rows` rows with buffers of so many each: all of the step's bucket where the whole step is computed,
    /// the buffers have them, and they are still the step's to write.
    pub(super) fn padded(
        &self,
        rows: usize,
        in_step: bool,
        mut buffers: impl Iterator<Item = usize>,
    ) -> Result<Option<Rows>> {
        let bucket = self.bucket.filter(|_| in_step && rows == self.rows);
        Rows::new(bucket.filter(|bucket| buffers.all(|rows| rows >= *bucket)).unwrap_or(rows))
    }

    /// Notes what the angles are made of; false where they were made of the same in this step.
    pub(super) fn take_angles(&mut self, frequencies: Address, factor: f32) -> bool {
        let made_of = (frequencies, factor.to_bits());
        self.angles.replace(made_of) != Some(made_of)
    }
}
