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
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use modelprofile_kernels::rtn::Grid;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const TARGET: Target = Target::Groups { bits: 4, group: 32, grid: Grid::Integer };

    fn noise(rng: &mut StdRng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random::<f32>() + rng.random::<f32>() + rng.random::<f32>() - 1.5).collect()
    }

    /// Inputs of which neighbours go together, and their Gram matrix.
    fn inputs(rng: &mut StdRng, rows: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
        let mut x = noise(rng, rows * k);
        for row in x.chunks_exact_mut(k) {
            for j in 1..k {
                row[j] += 0.9 * row[j - 1];
            }
            for (j, v) in row.iter_mut().enumerate() {
                *v *= 0.2 + (j * 7 % k) as f32 / k as f32;
            }
        }
        let mut gram = vec![0.0f32; k * k];
        for row in x.chunks_exact(k) {
            for i in 0..k {
                for j in 0..k {
                    gram[i * k + j] += row[i] * row[j];
                }
            }
        }
        (x, gram)
    }

    fn restored(weight: &HostWeight, n: usize, k: usize) -> Vec<f32> {
        let mut all = vec![0.0; n * k];
        for (row, out) in all.chunks_exact_mut(k).enumerate() {
            weight.dequantize_row(row, out);
        }
        all
    }

    /// `|| (W' - W) X ||^2`.
    fn output_error(found: &[f32], weights: &[f32], x: &[f32], k: usize) -> f64 {
        let mut total = 0.0;
        for (a, b) in found.chunks_exact(k).zip(weights.chunks_exact(k)) {
            for row in x.chunks_exact(k) {
                let dot: f64 =
                    row.iter().zip(a.iter().zip(b)).map(|(x, (a, b))| f64::from(*x) * f64::from(a - b)).sum();
                total += dot * dot;
            }
        }
        total
    }

    /// The published iteration (optimal brain quantization with a fixed order), stated plainly: after each column the inverse
    /// of H over the columns that are left is computed anew, and `w_j -= (w_i - q_i) / [H^-1]_ii [H^-1]_ij`.
    fn reference(matrix: &Matrix, gram: &[f32], target: Target) -> Vec<f32> {
        let (n, k) = (matrix.rows, matrix.cols);
        let diagonal: Vec<f32> = (0..k).map(|j| gram[j * k + j]).collect();
        let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / k as f64;
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
        let steps = steps(1, matrix, &diagonal, target);
        let mut free: Vec<f64> =
            matrix.data.iter().enumerate().map(|(at, w)| f64::from(w / steps.row_scales[at / k])).collect();
        for i in 0..k {
            let left = &order[i..];
            let m = left.len();
            let h: Vec<f64> = (0..m * m)
                .map(|at| {
                    let (r, c) = (left[at / m], left[at % m]);
                    f64::from(gram[r * k + c]) + if r == c { DAMPING * mean } else { 0.0 }
                })
                .collect();
            let inverse = invert(&h, m);
            for row in 0..n {
                let at = row * k + order[i];
                let (_, value) = steps.round(row, order[i], free[at] as f32, target);
                let error = (free[at] - f64::from(value)) / inverse[0];
                for (j, column) in left.iter().enumerate() {
                    free[row * k + column] -= error * inverse[j];
                }
            }
        }
        free.iter().enumerate().map(|(at, w)| *w as f32 * steps.row_scales[at / k]).collect()
    }

    /// Gauss-Jordan.
    fn invert(a: &[f64], n: usize) -> Vec<f64> {
        let mut a = a.to_vec();
        let mut out: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
        for i in 0..n {
            let pivot = a[i * n + i];
            for j in 0..n {
                a[i * n + j] /= pivot;
                out[i * n + j] /= pivot;
            }
            for r in (0..n).filter(|r| *r != i) {
                let factor = a[r * n + i];
                for j in 0..n {
                    a[r * n + j] -= factor * a[i * n + j];
                    out[r * n + j] -= factor * out[i * n + j];
                }
            }
        }
        out
    }

    #[test]
    fn blocks_and_the_cholesky_factor_give_what_the_plain_iteration_gives() {
        let mut rng = StdRng::seed_from_u64(1);
        // More columns than a block has.
        let (n, k) = (6, 160);
        let (x, gram) = inputs(&mut rng, 400, k);
        let matrix = Matrix { rows: n, cols: k, data: noise(&mut rng, n * k) };
        let fast = Solver::new(2, k, &gram).unwrap().quantize(&matrix, TARGET);
        let fast = restored(&fast, n, k);
        let plain = reference(&matrix, &gram, TARGET);
        // FP32 against FP64: a value near the middle between two points may fall to the other side, and what follows with it.
        let same = fast.iter().zip(&plain).filter(|(a, b)| (*a - *b).abs() < 1e-5).count();
        assert!(same * 100 >= n * k * 97, "{same} of {} codes are the same", n * k);
        let [found, expected] = [&fast, &plain].map(|w| output_error(w, &matrix.data, &x, k));
        assert!((found / expected - 1.0).abs() < 0.05, "{found} against {expected}");
    }

    #[test]
    fn the_outputs_error_falls_far_below_that_of_rounding_to_the_nearest() {
        let mut rng = StdRng::seed_from_u64(2);
        let (n, k) = (16, 128);
        let (x, gram) = inputs(&mut rng, 600, k);
        let matrix = Matrix { rows: n, cols: k, data: noise(&mut rng, n * k) };
        let kind = modelprofile_kernels::WeightKind::Int4 { group: 32 };
        let nearest = rtn::quantize(kind, Grid::Integer, n, k, &matrix.data).unwrap();
        let found = Solver::new(2, k, &gram).unwrap().quantize(&matrix, TARGET);
        let [found, nearest] = [found, nearest].map(|w| output_error(&restored(&w, n, k), &matrix.data, &x, k));
        assert!(found < 0.5 * nearest, "{found} against {nearest}");
        let target = Target::Rows8;
        let nearest =
            rtn::quantize(modelprofile_kernels::WeightKind::Int8, Grid::Symmetric, n, k, &matrix.data).unwrap();
        let found = Solver::new(2, k, &gram).unwrap().quantize(&matrix, target);
        let [found, nearest] = [found, nearest].map(|w| output_error(&restored(&w, n, k), &matrix.data, &x, k));
        assert!(found < 0.5 * nearest, "{found} against {nearest}");
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let mut rng = StdRng::seed_from_u64(3);
        let (_, gram) = inputs(&mut rng, 300, 160);
        let matrix = Matrix { rows: 7, cols: 160, data: noise(&mut rng, 7 * 160) };
        let [one, three] = [1, 3].map(|threads| Solver::new(threads, 160, &gram).unwrap().quantize(&matrix, TARGET));
        assert_eq!(one, three);
    }

    #[test]
    fn inputs_that_never_carry_anything_and_a_text_too_short_are_no_errors() {
        let mut rng = StdRng::seed_from_u64(4);
        // Five rows say little about 64 inputs; two inputs are dead.
        let (mut x, _) = inputs(&mut rng, 5, 64);
        for row in x.chunks_exact_mut(64) {
            (row[3], row[40]) = (0.0, 0.0);
        }
        let mut gram = vec![0.0f32; 64 * 64];
        for row in x.chunks_exact(64) {
            for (at, slot) in gram.iter_mut().enumerate() {
                *slot += row[at / 64] * row[at % 64];
            }
        }
        let matrix = Matrix { rows: 3, cols: 64, data: noise(&mut rng, 3 * 64) };
        let weight = Solver::new(1, 64, &gram).unwrap().quantize(&matrix, TARGET);
        assert!(restored(&weight, 3, 64).iter().all(|v| v.is_finite() && v.abs() < 4.0));
    }
    /// A symmetric matrix of ones on its diagonal whose smallest eigenvalue is `1 - share`: below zero it is the Gram matrix
    /// of no inputs, as rounding noise makes of inputs that almost cancel.
    fn opposed(k: usize, share: f32) -> Vec<f32> {
        (0..k * k).map(|at| if at / k == at % k { 1.0 } else { -share / (k - 1) as f32 }).collect()
    }

    /// The matrix with `damping` on its diagonal of ones.
    fn damped(gram: &[f32], k: usize, damping: f64) -> Vec<f64> {
        gram.iter().enumerate().map(|(at, h)| f64::from(*h) + if at / k == at % k { damping } else { 0.0 }).collect()
    }

    #[test]
    fn a_gram_matrix_that_is_not_positive_is_damped_more_until_it_is() {
        let k = 32;
        // An eigenvalue of -0.05: the paper's 1 % is too little, ten times as much is enough.
        let gram = opposed(k, 1.05);
        assert!(dense::inverse_cholesky_upper(1, k, &mut damped(&gram, k, DAMPING)).is_err());
        let solver = Solver::new(1, k, &gram).unwrap();
        assert!(solver.order.is_sorted(), "equal columns keep their order");
        // U^T U is the inverse of what was factored.
        let expected = invert(&damped(&gram, k, 10.0 * DAMPING), k);
        for (at, expected) in expected.iter().enumerate() {
            let (r, c) = (at / k, at % k);
            let found: f64 =
                (0..k).map(|i| f64::from(solver.factor[i * k + r]) * f64::from(solver.factor[i * k + c])).sum();
            assert!((found - expected).abs() < 1e-4, "({r}, {c}): {found} instead of {expected}");
        }
        let mut rng = StdRng::seed_from_u64(5);
        let matrix = Matrix { rows: 3, cols: k, data: noise(&mut rng, 3 * k) };
        let weight = solver.quantize(&matrix, TARGET);
        assert!(restored(&weight, 3, k).iter().all(|v| v.is_finite() && v.abs() < 4.0));
    }

    #[test]
    fn a_gram_matrix_that_no_damping_saves_asks_for_more_text() {
        let error = Solver::new(1, 32, &opposed(32, 12.0)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("undetermined: give more text"), "{error}");
    }
}
