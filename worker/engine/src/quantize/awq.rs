//! AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", 2023).
//!
//! Channels that carry large activations are multiplied with `s` before rounding and divided by it in what comes before: the
//! product is the same, the rounding error of those channels smaller. `s_j = m_j^r`, `m_j` the mean magnitude of input j;
//! r is searched for the least error of the layer's output, `|| (Q(W s)/s - W) X ||^2` (the paper's equation 4), which is
//! `sum d G d^T` over the rows d of the difference with the Gram matrix `G = X X^T`. Then every group's range is cut where
//! that error is least.
//!
//! Scales are folded into the norm before queries, keys and values, into the norm before gate and up, and into the rows of
//! up before down. None is folded from values into the attention's output: it would cross the KV cache, whose contents all
//! profiles share.

use modelprofile_kernels::{Calibrate, GroupRounding, HostTensor, HostWeight, rtn};

use super::{dense::Matrix, grid::Target};
use crate::{EngineError, Result};

/// Exponents that are tried: 0, 1/20, ..., 19/20.
const STEPS: usize = 20;
/// Ranges that are tried for a group: 1, 1 - 1/20, ..., 11/20 of its largest magnitude.
const CUTS: usize = 10;
/// Rows of a difference on the device at once.
const ROWS: usize = 4096;

/// Rounds the rows to the nearest points of their grids.
pub(super) fn round(target: Target, n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    let Target::Groups { bits: 4, group, grid } = target else { return Err(no_groups()) };
    let kind = modelprofile_kernels::WeightKind::Int4 { group: group as u16 };
    Ok(rtn::quantize(kind, grid, n, k, rows)?)
}

fn no_groups() -> EngineError {
    EngineError::Config("AWQ makes INT4".into())
}

/// The rounding of a target with nothing done before it.
fn rounding<B>(target: Target) -> Result<GroupRounding<'static, B>> {
    let Target::Groups { bits, group, grid } = target else { return Err(no_groups()) };
    Ok(GroupRounding { bits, group, grid, scales: None, cut: 1.0 })
}

/// Scales of a stage's inputs: the best of the searched, which 1 everywhere is one of.
///
/// `inputs` are the mean magnitudes of the inputs, `gram` their Gram matrix on the device.
///
/// # Errors
/// The device's.
pub(super) fn search_scales<B: Calibrate>(
    backend: &mut B,
    weights: &Matrix,
    inputs: &[f32],
    gram: &B::Buffer,
    target: Target,
) -> Result<Vec<f32>> {
    let candidates = candidates(weights, inputs, target);
    let errors = output_errors(backend, weights, &candidates, gram, target)?;
    let best = candidates.into_iter().zip(errors).min_by(|(_, one), (_, other)| one.total_cmp(other));
    Ok(best.map_or_else(|| vec![1.0; weights.cols], |(scales, _)| scales))
}

/// `m^r` and `m^r / v^(1-r)` for every exponent: v is a column's mean magnitude relative to the largest of its group, which
/// the authors' code divides by (`duo_scaling`). Which of the two is better depends on the layer.
fn candidates(weights: &Matrix, inputs: &[f32], target: Target) -> Vec<Vec<f32>> {
    let exponents = || (0..STEPS).map(|step| step as f32 / STEPS as f32);
    let relative = relative_magnitudes(weights, target.group().unwrap_or(weights.cols));
    let plain = exponents().map(|r| inputs.iter().map(|m| m.powf(r)).collect());
    let both = exponents().map(|r| {
        let scale = |(m, v): (&f32, &f32)| m.powf(r) / (v.powf(1.0 - r) + 1e-4);
        inputs.iter().zip(&relative).map(scale).collect()
    });
    plain.chain(both).map(balanced).collect()
}

/// At least 1e-4, the largest and the smallest moved to be each other's inverse.
fn balanced(mut scales: Vec<f32>) -> Vec<f32> {
    let (mut low, mut high) = (f32::INFINITY, 0.0f32);
    for scale in &mut scales {
        *scale = scale.max(1e-4);
        (low, high) = (low.min(*scale), high.max(*scale));
    }
    let middle = (low * high).sqrt();
    for scale in &mut scales {
        *scale /= middle;
    }
    scales
}

/// Mean over the rows of each value's magnitude relative to the largest of its group.
fn relative_magnitudes(weights: &Matrix, group: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; weights.cols];
    for row in weights.data.chunks_exact(weights.cols) {
        for (values, sums) in row.chunks(group).zip(sums.chunks_mut(group)) {
            let top = values.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += f64::from(value.abs() / top);
            }
        }
    }
    sums.into_iter().map(|sum| (sum / weights.rows.max(1) as f64) as f32).collect()
}

/// For each candidate of scales, `sum over rows of d G d^T` with `d = Q(W s)/s - W`.
fn output_errors<B: Calibrate>(
    backend: &mut B,
    weights: &Matrix,
    candidates: &[Vec<f32>],
    gram: &B::Buffer,
    target: Target,
) -> Result<Vec<f64>> {
    let k = weights.cols;
    let mut errors = vec![0.0; candidates.len()];
    let mut forms = Vec::new();
    for data in weights.data.chunks(ROWS * k) {
        let rows = data.len() / k;
        let weights = backend.upload(&HostTensor { rows, width: k, data: data.to_vec() })?;
        let mut changes = backend.buffer(rows, k)?;
        for (scales, error) in candidates.iter().zip(&mut errors) {
            let scales = backend.upload(&HostTensor { rows: 1, width: k, data: scales.clone() })?;
            let how = GroupRounding { scales: Some(&scales), ..rounding(target)? };
            backend.rounding_changes(rows, &weights, &how, &mut changes)?;
            backend.quadratic_forms(rows, &changes, gram, &mut forms)?;
            *error += forms.iter().map(|f| f64::from(*f)).sum::<f64>();
        }
    }
    Ok(errors)
}

/// Cuts every group's values where the error of the group's part of the output is least; `gram` is on the host, `[k, k]`, of
/// the inputs as these weights see them.
///
/// # Errors
/// The device's.
pub(super) fn clip<B: Calibrate>(backend: &mut B, weights: &mut Matrix, gram: &[f32], target: Target) -> Result<()> {
    let GroupRounding { group, .. } = rounding::<B::Buffer>(target)?;
    let k = weights.cols;
    let mut forms = Vec::new();
    for first in (0..k).step_by(group) {
        let columns = first..first + group;
        let block = |matrix: &[f32]| -> Vec<f32> {
            matrix.chunks_exact(k).flat_map(|row| &row[columns.clone()]).copied().collect()
        };
        let gram = block(&gram[first * k..(first + group) * k]);
        let gram = backend.upload(&HostTensor { rows: group, width: group, data: gram })?;
        for rows in weights.data.chunks_mut(ROWS * k) {
            let n = rows.len() / k;
            let values = backend.upload(&HostTensor { rows: n, width: group, data: block(rows) })?;
            let mut changes = backend.buffer(n, group)?;
            let mut best = vec![(f32::INFINITY, 1.0); n];
            for step in 0..CUTS {
                let cut = 1.0 - step as f32 / 20.0;
                backend.rounding_changes(n, &values, &GroupRounding { cut, ..rounding(target)? }, &mut changes)?;
                backend.quadratic_forms(n, &changes, &gram, &mut forms)?;
                for (best, error) in best.iter_mut().zip(&forms) {
                    if *error < best.0 {
                        *best = (*error, cut);
                    }
                }
            }
            for (row, (_, cut)) in rows.chunks_exact_mut(k).zip(best) {
                let values = &mut row[columns.clone()];
                let limit = cut * values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for value in values {
                    *value = value.clamp(-limit, limit);
                }
            }
        }
    }
    Ok(())
}

/// Turns a Gram matrix into that of the inputs divided by `scales`.
pub(super) fn divide_gram(gram: &mut [f32], scales: &[f32]) {
    for (row, si) in gram.chunks_exact_mut(scales.len()).zip(scales) {
        for (value, sj) in row.iter_mut().zip(scales) {
            *value /= si * sj;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use modelprofile_kernels::{
        Device, GroupedActivations,
        cpu::{Cpu, CpuOptions},
        rtn::Grid,
    };
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const TARGET: Target = Target::Groups { bits: 4, group: 32, grid: Grid::Integer };
    const K: usize = 64;

    fn cpu() -> Cpu {
        Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Int8 }).unwrap()
    }

    /// Weights, and inputs of which a few columns are forty times the others.
    fn case(seed: u64) -> (Matrix, Vec<f32>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = (0..24 * K).map(|_| rng.random::<f32>() - 0.5).collect();
        let x = (0..100 * K)
            .map(|at| (rng.random::<f32>() - 0.5) * if matches!(at % K, 5 | 20 | 41) { 40.0 } else { 1.0 })
            .collect();
        (Matrix { rows: 24, cols: K, data: weights }, x)
    }

    fn gram(x: &[f32]) -> Vec<f32> {
        let mut gram = vec![0.0f32; K * K];
        for row in x.chunks_exact(K) {
            for (at, slot) in gram.iter_mut().enumerate() {
                *slot += row[at / K] * row[at % K];
            }
        }
        gram
    }

    /// The definition: `|| Q(W s) (x / s) - W x ||^2` summed over the inputs, product by product.
    fn plain_error(weights: &Matrix, x: &[f32], scales: &[f32]) -> f64 {
        let mut scaled = weights.clone();
        scaled.scale_columns(scales);
        let rounded = round(TARGET, weights.rows, K, &scaled.data).unwrap();
        let mut row = vec![0.0; K];
        let mut total = 0.0;
        for (n, exact) in weights.data.chunks_exact(K).enumerate() {
            rounded.dequantize_row(n, &mut row);
            for x in x.chunks_exact(K) {
                let term =
                    |k: usize| f64::from(row[k]) * f64::from(x[k]) / f64::from(scales[k]) - f64::from(exact[k] * x[k]);
                let off: f64 = (0..K).map(term).sum();
                total += off * off;
            }
        }
        total
    }

    #[test]
    fn the_error_by_the_gram_matrix_is_the_definitions() {
        let (weights, x) = case(1);
        let mut cpu = cpu();
        let device_gram = cpu.upload(&HostTensor { rows: K, width: K, data: gram(&x) }).unwrap();
        let magnitudes: Vec<f32> =
            (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| v.abs()).sum::<f32>() / 100.0).collect();
        let all = candidates(&weights, &magnitudes, TARGET);
        let fast = output_errors(&mut cpu, &weights, &all, &device_gram, TARGET).unwrap();
        for (scales, fast) in all.iter().zip(fast).step_by(7) {
            let plain = plain_error(&weights, &x, scales);
            assert!((fast / plain - 1.0).abs() < 1e-3, "{fast} against {plain}");
        }
    }

    #[test]
    fn the_search_finds_the_best_exponent_and_saves_most_of_the_error_of_large_inputs() {
        let (weights, x) = case(2);
        let mut cpu = cpu();
        let device_gram = cpu.upload(&HostTensor { rows: K, width: K, data: gram(&x) }).unwrap();
        let magnitudes: Vec<f32> =
            (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| v.abs()).sum::<f32>() / 100.0).collect();
        let found = search_scales(&mut cpu, &weights, &magnitudes, &device_gram, TARGET).unwrap();
        let all = candidates(&weights, &magnitudes, TARGET);
        assert_eq!((all.len(), &all[0]), (2 * STEPS, &vec![1.0; K]));
        let best = all.iter().map(|scales| plain_error(&weights, &x, scales)).fold(f64::INFINITY, f64::min);
        let reached = plain_error(&weights, &x, &found);
        assert!(reached <= best * 1.001, "{reached} against {best}");
        assert!(reached < 0.6 * plain_error(&weights, &x, &[1.0; K]), "{reached}");
    }

    #[test]
    fn cutting_never_makes_the_output_worse_and_cuts_an_outlier_that_no_input_reads() {
        let (mut weights, mut x) = case(3);
        for row in x.chunks_exact_mut(K) {
            row[7] = 0.0;
        }
        for row in weights.data.chunks_exact_mut(K) {
            row[7] = 3.0;
        }
        let exact = weights.clone();
        clip(&mut cpu(), &mut weights, &gram(&x), TARGET).unwrap();
        let cut = weights.data.chunks_exact(K).filter(|row| row[7] < 3.0).count();
        assert!(cut > 20, "{cut} of 24 rows");
        let error = |weights: &Matrix| {
            let rounded = round(TARGET, weights.rows, K, &weights.data).unwrap();
            let mut row = vec![0.0; K];
            let mut total = 0.0;
            for (n, exact) in exact.data.chunks_exact(K).enumerate() {
                rounded.dequantize_row(n, &mut row);
                for x in x.chunks_exact(K) {
                    let off: f32 = (0..K).map(|k| (row[k] - exact[k]) * x[k]).sum();
                    total += f64::from(off * off);
                }
            }
            total
        };
        assert!(error(&weights) < 0.5 * error(&exact));
    }
}
