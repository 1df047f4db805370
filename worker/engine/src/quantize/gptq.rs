//! GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022).
//!
//! Columns are rounded one after the other; what a column's rounding did to the layer's output is made up for by the columns
//! that are still free, by the inverse of `H = X X^T`. With `U` upper triangular and `U^T U = H^-1`, column i's error
//! `e = (w_i - q_i) / U_ii` takes `e U_ij` off every later column j.
//!
//! Columns come in the order of falling `H_ii` ("act-order"), their groups stay where they lie ("static groups"): the result
//! needs no index of groups. Blocks of 128 columns are finished before the rest is touched, which turns the update into
//! a matrix product and changes nothing else.

use half::f16;
use modelprofile_kernels::{HostWeight, dense, rtn};

use super::{
    dense::Matrix,
    grid::{Target, grid_of},
    threads::for_row_chunks,
};
use crate::{EngineError, Result};

/// Columns that are finished before the rest is updated.
const BLOCK: usize = 128;
/// Share of the mean diagonal that is added to the diagonal (the paper's 1 %).
const DAMPING: f64 = 0.01;
/// Damping above this is no GPTQ any more: the text says nothing about this layer.
const MOST_DAMPING: f64 = 10.0;

/// Where the weights of a matrix may land, in units of each row's `row_scale`: `w = scale * code + min`.
struct Steps {
    row_scales: Vec<f32>,
    /// `[n, k / group]`.
    scales: Vec<f16>,
    mins: Vec<f16>,
    /// INT8 rows have FP32 scales and no minimum.
    rows: Vec<f32>,
    group: usize,
}

/// What the inputs of a layer say, once for all matrices that read them.
pub(super) struct Solver {
    /// Columns, most important first.
    order: Vec<usize>,
    /// `H_jj`, in the columns' own order; 1 for dead columns.
    diagonal: Vec<f32>,
    /// Columns that never carry anything.
    dead: Vec<bool>,
    /// `U`, `[k, k]`, in the order of `order`.
    factor: Vec<f32>,
    threads: usize,
}

impl Solver {
    /// From the Gram matrix `[k, k]` of the inputs.
    ///
    /// # Errors
    /// [`EngineError::Config`] when the Gram matrix stays singular whatever is added to its diagonal.
    pub(super) fn new(threads: usize, k: usize, gram: &[f32]) -> Result<Self> {
        let mut diagonal: Vec<f32> = (0..k).map(|j| gram[j * k + j]).collect();
        let dead: Vec<bool> = diagonal.iter().map(|d| *d <= 0.0).collect();
        for (d, dead) in diagonal.iter_mut().zip(&dead) {
            if *dead {
                *d = 1.0;
            }
        }
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
        let factor = factor(threads, gram, &diagonal, &order)?;
        Ok(Self { order, diagonal, dead, factor, threads })
    }

    /// Rounds a matrix `[n, k]` to `target`.
    pub(super) fn quantize(&self, matrix: &Matrix, target: Target) -> HostWeight {
        let (n, k) = (matrix.rows, matrix.cols);
        let (factor, order) = (&self.factor, &self.order);
        let steps = steps(self.threads, matrix, &self.diagonal, target);
        // A column that never carries anything may take any value; zero is the one that costs nothing elsewhere.
        let mut free = vec![0.0f32; n * k];
        for (row, out) in free.chunks_exact_mut(k).enumerate() {
            let unit = steps.row_scales[row];
            for (slot, column) in out.iter_mut().zip(order) {
                *slot = if self.dead[*column] { 0.0 } else { matrix.data[row * k + column] / unit };
            }
        }
        let mut codes = vec![0i16; n * k];
        let mut errors = vec![0.0f32; n * BLOCK];
        for start in (0..k).step_by(BLOCK) {
            let end = k.min(start + BLOCK);
            let width = end - start;
            let work = free.chunks_mut(k).zip(codes.chunks_mut(k)).zip(errors.chunks_mut(width)).enumerate();
            for_row_chunks(self.threads, n, work.collect(), |(row, ((free, codes), errors))| {
                for i in start..end {
                    let (code, value) = steps.round(row, order[i], free[i], target);
                    codes[order[i]] = code;
                    let error = (free[i] - value) / factor[i * k + i];
                    errors[i - start] = error;
                    for (w, u) in free[i + 1..end].iter_mut().zip(&factor[i * k + i + 1..i * k + end]) {
                        *w -= error * u;
                    }
                }
            });
            if end < k {
                let rest = &factor[start * k + end..];
                dense::subtract_product(self.threads, &mut free[end..], k, &errors, width, rest, k, n, k - end, width);
            }
        }
        steps.finish(n, k, &codes, target)
    }
}

/// `U` with `U^T U = H^-1`, in the given order of columns, damped until it exists.
fn factor(threads: usize, gram: &[f32], diagonal: &[f32], order: &[usize]) -> Result<Vec<f32>> {
    let k = order.len();
    let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / k as f64;
    let mut damping = DAMPING;
    loop {
        let mut hessian = vec![0.0f64; k * k];
        for (i, row) in hessian.chunks_exact_mut(k).enumerate() {
            for (j, slot) in row.iter_mut().enumerate() {
                *slot = f64::from(gram[order[i] * k + order[j]]);
            }
            row[i] = f64::from(diagonal[order[i]]) + damping * mean;
        }
        match dense::inverse_cholesky_upper(threads, k, &mut hessian) {
            Ok(()) => return Ok(hessian.into_iter().map(|v| v as f32).collect()),
            Err(_) if damping < MOST_DAMPING => damping *= 10.0,
            Err(column) => {
                return Err(EngineError::Config(format!(
                    "GPTQ: the calibration text leaves input {} undetermined: give more text",
                    order[column]
                )));
            }
        }
    }
}

/// The grid of every group, from the weights as they are, chosen for the least error weighted with the diagonal of H.
fn steps(threads: usize, matrix: &Matrix, diagonal: &[f32], target: Target) -> Steps {
    let (n, k) = (matrix.rows, matrix.cols);
    let group = target.group().unwrap_or(k);
    let row_scales: Vec<f32> = match target {
        Target::Rows8 => vec![1.0; n],
        Target::Groups { .. } => matrix.data.chunks_exact(k).map(rtn::row_scale).collect(),
    };
    let mut found = vec![(f16::ZERO, f16::ZERO); if target == Target::Rows8 { 0 } else { n * (k / group) }];
    let mut rows = vec![0.0f32; if target == Target::Rows8 { n } else { 0 }];
    match target {
        Target::Rows8 => {
            for (scale, row) in rows.iter_mut().zip(matrix.data.chunks_exact(k)) {
                *scale = row.iter().fold(0.0f32, |m, w| m.max(w.abs())).max(f32::MIN_POSITIVE * 127.0) / 127.0;
            }
        }
        Target::Groups { grid, bits, .. } => {
            let work = found.chunks_mut(k / group).enumerate();
            for_row_chunks(threads, n, work.collect(), |(row, out)| {
                let mut values = vec![0.0; group];
                for (g, slot) in out.iter_mut().enumerate() {
                    let at = row * k + g * group;
                    for (v, w) in values.iter_mut().zip(&matrix.data[at..at + group]) {
                        *v = w / row_scales[row];
                    }
                    *slot = grid_of(grid, bits, &values, &diagonal[g * group..(g + 1) * group]);
                }
            });
        }
    }
    let (scales, mins) = found.into_iter().unzip();
    Steps { row_scales, scales, mins, rows, group }
}

impl Steps {
    /// The code of a value in a column, and the value that it stands for.
    fn round(&self, row: usize, column: usize, value: f32, target: Target) -> (i16, f32) {
        match target {
            Target::Rows8 => {
                let code = (value / self.rows[row]).round_ties_even().clamp(-127.0, 127.0);
                (code as i16, code * self.rows[row])
            }
            Target::Groups { bits, .. } => {
                let at = self.scales.len() / self.row_scales.len() * row + column / self.group;
                let code = rtn::code(value, self.scales[at], self.mins[at], rtn::top_code(bits));
                (i16::from(code), self.scales[at].to_f32() * f32::from(code) + self.mins[at].to_f32())
            }
        }
    }

    fn finish(self, n: usize, k: usize, codes: &[i16], target: Target) -> HostWeight {
        match target {
            Target::Rows8 => {
                HostWeight::Int8 { n, k, codes: codes.iter().map(|c| *c as i8).collect(), scales: self.rows }
            }
            Target::Groups { bits, .. } => HostWeight::Grouped {
                n,
                k,
                bits,
                group: self.group,
                codes: codes.iter().map(|c| *c as u8).collect(),
                scales: self.scales,
                mins: self.mins,
                row_scales: self.row_scales,
            },
        }
    }
}

#[cfg(test)]
#[path = "gptq_tests.rs"]
mod tests;
