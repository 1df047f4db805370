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

use modelprofile_kernels::{Calibrate, HostTensor, HostWeight, rtn};

use super::{dense::Matrix, grid::Target, threads::for_row_chunks};
use crate::{EngineError, Result};

/// Exponents that are tried: 0, 1/20, ..., 19/20.
const STEPS: usize = 20;
/// Ranges that are tried for a group: 1, 1 - 1/20, ..., 11/20 of its largest magnitude.
const CLIPS: usize = 10;
/// Rows of a difference on the device at once.
const ROWS: usize = 4096;

/// Rounds the rows to the nearest points of their grids.
pub(super) fn round(target: Target, n: usize, k: usize, rows: &[f32]) -> Result<HostWeight> {
    let Target::Groups { bits: 4, group, grid } = target else {
        return Err(EngineError::Config("AWQ makes INT4".into()));
    };
    let kind = modelprofile_kernels::WeightKind::Int4 { group: group as u16 };
    Ok(rtn::quantize(kind, grid, n, k, rows)?)
}

/// Scales of a stage's inputs: the best of the searched, 1 everywhere when none is better than leaving the weights alone.
///
/// `magnitudes` are the mean magnitudes of the inputs, `gram` their Gram matrix on the device.
///
/// # Errors
/// The device's.
pub(super) fn search_scales<B: Calibrate>(
    backend: &mut B,
    threads: usize,
    weights: &Matrix,
    magnitudes: &[f32],
    gram: &B::Buffer,
    target: Target,
) -> Result<Vec<f32>> {
    let mut best = (f64::INFINITY, vec![1.0; weights.cols]);
    for step in 0..STEPS {
        let scales = candidate(magnitudes, step as f32 / STEPS as f32);
        let error = output_error(backend, threads, weights, &scales, gram, target)?;
        if error < best.0 {
            best = (error, scales);
        }
    }
    Ok(best.1)
}

/// `m^r`, at least 1e-4, its largest and smallest moved to be each other's inverse.
fn candidate(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    let mut scales: Vec<f32> = magnitudes.iter().map(|m| m.powf(exponent).max(1e-4)).collect();
    let (low, high) = scales.iter().fold((f32::INFINITY, 0.0f32), |(l, h), s| (l.min(*s), h.max(*s)));
    let middle = (low * high).sqrt();
    for scale in &mut scales {
        *scale /= middle;
    }
    scales
}

/// `sum over rows of d G d^T` for `d = Q(W s)/s - W`.
fn output_error<B: Calibrate>(
    backend: &mut B,
    threads: usize,
    weights: &Matrix,
    scales: &[f32],
    gram: &B::Buffer,
    target: Target,
) -> Result<f64> {
    let k = weights.cols;
    let mut total = 0.0;
    let mut forms = Vec::new();
    for rows in weights.data.chunks(ROWS * k) {
        let n = rows.len() / k;
        let mut data = vec![0.0f32; rows.len()];
        let failed = std::sync::Mutex::new(None);
        let work: Vec<_> = data.chunks_mut(k).zip(rows.chunks(k)).collect();
        for_row_chunks(threads, n, work, |(out, row)| {
            let scaled: Vec<f32> = row.iter().zip(scales).map(|(w, s)| w * s).collect();
            match round(target, 1, k, &scaled) {
                Ok(weight) => {
                    weight.dequantize_row(0, out);
                    for ((o, w), s) in out.iter_mut().zip(row).zip(scales) {
                        *o = *o / s - w;
                    }
                }
                Err(error) => *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error),
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        let delta = backend.upload(&HostTensor { rows: n, width: k, data })?;
        backend.quadratic_forms(n, &delta, gram, &mut forms)?;
        total += forms.iter().map(|f| f64::from(*f)).sum::<f64>();
    }
    Ok(total)
}

/// Cuts every group's values where the error of the group's part of the output is least; `gram` is on the host, `[k, k]`, of
/// the inputs as these weights see them.
pub(super) fn clip(threads: usize, weights: &mut Matrix, gram: &[f32], target: Target) {
    let Target::Groups { bits, group, grid } = target else { return };
    let (n, k) = (weights.rows, weights.cols);
    let work: Vec<_> = weights.data.chunks_mut(k).collect();
    for_row_chunks(threads, n, work, |row| {
        let mut cut = vec![0.0f32; group];
        let mut off = vec![0.0f32; group];
        for (g, values) in row.chunks_exact_mut(group).enumerate() {
            // The unit that the stored group will have does not matter here: a common factor moves no code.
            let unit = rtn::row_scale(values);
            let top = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let mut best = (f32::INFINITY, top);
            for step in 0..CLIPS {
                let limit = top * (1.0 - step as f32 / 20.0);
                for (c, v) in cut.iter_mut().zip(values.iter()) {
                    *c = v.clamp(-limit, limit) / unit;
                }
                let (scale, min) = rtn::group_grid(grid, bits, &cut);
                for ((o, c), v) in off.iter_mut().zip(&cut).zip(values.iter()) {
                    let code = rtn::code(*c, scale, min, rtn::top_code(bits));
                    *o = (scale.to_f32() * f32::from(code) + min.to_f32()) * unit - v;
                }
                let error = block_form(&off, &gram[g * group * k..], k, g * group);
                if error < best.0 {
                    best = (error, limit);
                }
            }
            for value in values {
                *value = value.clamp(-best.1, best.1);
            }
        }
    });
}

/// `d G d^T` with the block of G whose rows start at `gram` and whose columns at `column`.
fn block_form(d: &[f32], gram: &[f32], stride: usize, column: usize) -> f32 {
    d.iter()
        .enumerate()
        .map(|(i, di)| {
            let row = &gram[i * stride + column..i * stride + column + d.len()];
            di * row.iter().zip(d).map(|(g, dj)| g * dj).sum::<f32>()
        })
        .sum()
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
        for exponent in [0.0, 0.35, 0.8] {
            let scales = candidate(&magnitudes, exponent);
            let fast = output_error(&mut cpu, 2, &weights, &scales, &device_gram, TARGET).unwrap();
            let plain = plain_error(&weights, &x, &scales);
            assert!((fast / plain - 1.0).abs() < 1e-3, "{exponent}: {fast} against {plain}");
        }
    }

    #[test]
    fn the_search_finds_the_best_exponent_and_saves_most_of_the_error_of_large_inputs() {
        let (weights, x) = case(2);
        let mut cpu = cpu();
        let device_gram = cpu.upload(&HostTensor { rows: K, width: K, data: gram(&x) }).unwrap();
        let magnitudes: Vec<f32> =
            (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| v.abs()).sum::<f32>() / 100.0).collect();
        let found = search_scales(&mut cpu, 2, &weights, &magnitudes, &device_gram, TARGET).unwrap();
        let best = (0..STEPS)
            .map(|step| plain_error(&weights, &x, &candidate(&magnitudes, step as f32 / STEPS as f32)))
            .fold(f64::INFINITY, f64::min);
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
        clip(2, &mut weights, &gram(&x), TARGET);
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
