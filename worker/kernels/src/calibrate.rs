//! What calibrated quantization needs of a device, beside [`Backend`]: statistics of the inputs of a linear weight, and
//! the error that a change of the weight makes on them.
//!
//! For inputs X `[rows, K]` and a change D `[n, K]` of the weight, the squared error of the outputs is the trace of
//! `D (X^T X) D^T`. So one matrix `[K, K]`, the Gram matrix, stands for any number of calibration rows: it is the Hessian
//! of GPTQ (Frantar et al. 2022, without the factor 2), and scores the scale and clip searches of AWQ (Lin et al. 2023).

use crate::{Backend, Result, rtn::Grid};

/// A rounding in groups that a search tries: columns are multiplied with `scales`, groups cut to a part of their range, and
/// the result rounded to the nearest points of each group's grid, as [`rtn::quantize`](crate::rtn::quantize) does.
pub struct GroupRounding<'a, Buffer> {
    /// Of a code: 4 or 8.
    pub bits: u8,
    /// Consecutive values of a row with one grid; divides K.
    pub group: usize,
    /// Where the grid's points lie.
    pub grid: Grid,
    /// `[1, k]`, positive; none multiplies with 1.
    pub scales: Option<&'a Buffer>,
    /// Part of a group's largest magnitude that its values are cut to, above 0 and up to 1.
    pub cut: f32,
}

/// Calibration statistics on a device. Results do not depend on the number of compute threads.
pub trait Calibrate: Backend {
    /// `gram += x^T x` over the first `rows` rows of `x` `[_, k]`, in FP32. `gram` is `[k, k]`; its upper triangle is
    /// continued, and both triangles are valid afterwards.
    ///
    /// # Errors
    /// [`KernelError::Shape`](crate::KernelError::Shape) when the shapes do not fit.
    fn gram(&mut self, rows: usize, x: &Self::Buffer, gram: &mut Self::Buffer) -> Result<()>;

    /// `out[j] = max(out[j], |x[r, j]|)` over the first `rows` rows of `x` `[_, k]`; `out` is `[1, k]`.
    ///
    /// # Errors
    /// [`KernelError::Shape`](crate::KernelError::Shape) when the shapes do not fit.
    fn column_absmax(&mut self, rows: usize, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// `changes = Q(W s) / s - W` for the first `rows` rows of `weights` `[_, k]`: what a rounding makes of them, with the
    /// scales taken out again. `changes` is `[_, k]`.
    ///
    /// # Errors
    /// [`KernelError::Shape`](crate::KernelError::Shape) when the shapes do not fit or the group does not divide K.
    fn rounding_changes(
        &mut self,
        rows: usize,
        weights: &Self::Buffer,
        rounding: &GroupRounding<'_, Self::Buffer>,
        changes: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[r] = d_r gram d_r^T` for the first `rows` rows `d_r` of `delta` `[_, k]`; replaces what `out` held. `gram` is
    /// symmetric `[k, k]`; only its upper triangle is read.
    ///
    /// # Errors
    /// [`KernelError::Shape`](crate::KernelError::Shape) when the shapes do not fit.
    fn quadratic_forms(
        &mut self,
        rows: usize,
        delta: &Self::Buffer,
        gram: &Self::Buffer,
        out: &mut Vec<f32>,
    ) -> Result<()>;
}
