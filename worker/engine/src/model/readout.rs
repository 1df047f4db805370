//! What becomes of a step's logits.

use std::ops::Range;

use modelprofile_kernels::{Draw, HostTensor};

use crate::Result;

/// Takes a step's logits, or the tokens that the device draws from them.
///
/// Ranges are of `plan.logit_rows`, consecutive and of a bounded length. For each the model asks for [`Self::draws`] first; a device
/// that draws gives the tokens of those rows, and the logits of the rows before them alone come to the host. One that does not
/// draw gives the logits of all rows.
pub trait Readout {
    /// How the tokens of the last rows of a range are drawn, one entry for each of these rows: of them nothing but the token is
    /// wanted. Nothing is chosen by this: whether it is drawn so is told by what is called next.
    fn draws(&mut self, range: Range<usize>) -> Vec<Draw>;
    /// Logits `[range.len(), vocab]`, which may be changed.
    ///
    /// # Errors
    /// End the step.
    fn logits(&mut self, range: Range<usize>, logits: &mut HostTensor) -> Result<()>;
    /// What was drawn for a range of rows; none where a logit is NaN or no token can be drawn.
    ///
    /// # Errors
    /// End the step.
    fn tokens(&mut self, range: Range<usize>, tokens: &[Option<u32>]) -> Result<()>;
}

/// A function of logits has them all come to the host.
impl<F: FnMut(Range<usize>, &mut HostTensor) -> Result<()>> Readout for F {
    fn draws(&mut self, _range: Range<usize>) -> Vec<Draw> {
        Vec::new()
    }

    fn logits(&mut self, range: Range<usize>, logits: &mut HostTensor) -> Result<()> {
        self(range, logits)
    }

    fn tokens(&mut self, _range: Range<usize>, _tokens: &[Option<u32>]) -> Result<()> {
        // None were asked for.
        Ok(())
    }
}

/// Draws every row's token as a request without parameters does, and forgets it: what a step costs that somebody measures.
#[derive(Clone, Copy, Debug)]
pub struct Forget;

impl Readout for Forget {
    fn draws(&mut self, range: Range<usize>) -> Vec<Draw> {
        vec![Draw { random: 0.5, ..Draw::default() }; range.len()]
    }

    fn logits(&mut self, _range: Range<usize>, _logits: &mut HostTensor) -> Result<()> {
        Ok(())
    }

    fn tokens(&mut self, _range: Range<usize>, _tokens: &[Option<u32>]) -> Result<()> {
        Ok(())
    }
}
