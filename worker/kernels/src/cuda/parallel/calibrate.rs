//! [`Calibrate`] of several GPUs: each computes all of it, since what is calibrated is whole on each.
//!
//! Calibration makes its weights with [`Split::Replicated`](crate::Split::Replicated). So this is no faster than one GPU; it is here
//! so that a model on several GPUs can be measured without another device.

use super::{Parallel, values::ParallelBuffer};
use crate::{Calibrate, GroupRounding, Result};

impl Calibrate for Parallel {
    fn gram(&mut self, rows: usize, x: &ParallelBuffer, gram: &mut ParallelBuffer) -> Result<()> {
        x.check_division("the calibration rows", None)?;
        gram.check_division("the Gram matrix", None)?;
        x.check("the calibration rows", rows, x.width)?;
        gram.check("the Gram matrix", x.width, x.width)?;
        gram.divide(&self.ranks, None);
        let (x, gram) = (x.parts.clone(), gram.parts.clone());
        self.submit(move |rank| rank.cuda.gram(rows, &x.get(rank)?, &mut gram.get(rank)?))
    }

    fn column_absmax(&mut self, rows: usize, x: &ParallelBuffer, out: &mut ParallelBuffer) -> Result<()> {
        x.check_division("the calibration rows", None)?;
        out.check_division("the maxima", None)?;
        x.check("the calibration rows", rows, x.width)?;
        out.check("the maxima", 1, x.width)?;
        out.divide(&self.ranks, None);
        let (x, out) = (x.parts.clone(), out.parts.clone());
        self.submit(move |rank| rank.cuda.column_absmax(rows, &x.get(rank)?, &mut out.get(rank)?))
    }

    fn rounding_changes(
        &mut self,
        rows: usize,
        weights: &ParallelBuffer,
        rounding: &GroupRounding<'_, ParallelBuffer>,
        changes: &mut ParallelBuffer,
    ) -> Result<()> {
        let &GroupRounding { bits, group, grid, scales, cut } = rounding;
        weights.check_division("the weights", None)?;
        weights.check("the weights", rows, weights.width)?;
        changes.check("the changes", rows, weights.width)?;
        if let Some(scales) = scales {
            scales.check_division("the scales", None)?;
        }
        changes.divide(&self.ranks, None);
        let (weights, changes) = (weights.parts.clone(), changes.parts.clone());
        let scales = scales.map(|scales| scales.parts.clone());
        self.submit(move |rank| {
            let scales = scales.as_ref().map(|scales| scales.get(rank)).transpose()?;
            let rounding = GroupRounding { bits, group, grid, scales: scales.as_ref(), cut };
            rank.cuda.rounding_changes(rows, &weights.get(rank)?, &rounding, &mut changes.get(rank)?)
        })
    }

    fn quadratic_forms(
        &mut self,
        rows: usize,
        delta: &ParallelBuffer,
        gram: &ParallelBuffer,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        delta.check_division("the changes", None)?;
        gram.check_division("the Gram matrix", None)?;
        let (delta, gram) = (delta.parts.clone(), gram.parts.clone());
        let mut all = self.ask(move |rank| {
            let mut out = Vec::new();
            let done = match (delta.get(rank), gram.get(rank)) {
                (Ok(delta), Ok(gram)) => rank.cuda.quadratic_forms(rows, &delta, &gram, &mut out),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
            rank.tell().and(done).map(|()| out)
        })?;
        *out = all.swap_remove(0);
        Ok(())
    }
}
