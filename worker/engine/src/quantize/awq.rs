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

/// The Gram matrix of inputs divided by `scales`.
pub(super) fn divided_gram(gram: &[f32], scales: &[f32]) -> Vec<f32> {
    let k = scales.len();
    let mut out = gram.to_vec();
    for (row, si) in out.chunks_exact_mut(k).zip(scales) {
        for (value, sj) in row.iter_mut().zip(scales) {
            *value /= si * sj;
        }
    }
    out
}
