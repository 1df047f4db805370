//! AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", 2023).
//!
//! Channels that carry large activations are multiplied with `s` before rounding and divided by it in what comes before: the
//! product is the same, the rounding error of those channels smaller. `s_j = m_j^r`, `m_j` the mean magnitude of input j;
//! r is searched for the least error of the layer's output, `|| (Q(W s)/s - W) X ||^2` (the paper's equation 4), which is
//! `sum d G d^T` over the rows d of the difference with the Gram matrix `G = X X^T`. Then every group's range is cut where
//! that error is least. Which scales are best depends on the cut ranges, so the best few are compared with ranges cut for each
//! of them: on the benchmark's model, with symmetric grids, that and finer steps cut the divergence of round to nearest by
//! 12 % instead of the 9 % of the authors' order (scales first, then ranges).
//!
//! Scales are folded into the norm before queries, keys and values, into the norm before gate and up, and into the rows of
//! up before down. None is folded from values into the attention's output: it would cross the KV cache, whose contents all
//! profiles share.

use modelprofile_kernels::{Calibrate, GroupRounding, HostTensor, HostWeight, rtn};

use super::{dense::Matrix, grid::Target};
use crate::{EngineError, Result};

/// Exponents that are tried: 0, 1/20, ..., 19/20.
const STEPS: usize = 20;
/// And then these beside the best of them.
const BESIDE: [f32; 6] = [-0.0375, -0.025, -0.0125, 0.0125, 0.025, 0.0375];
/// Candidates that are compared with ranges cut for them.
const FINALISTS: usize = 8;
/// Ranges that are tried for a group: 1, 1 - 1/40, ..., 21/40 of its largest magnitude.
const CUTS: usize = 20;
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

/// The figures of a stage's inputs that the searches read.
pub(super) struct Inputs<'a, B: Calibrate> {
    /// Mean magnitudes, `[k]`.
    pub(super) magnitudes: &'a [f32],
    /// The Gram matrix, `[k, k]`.
    pub(super) gram: &'a B::Buffer,
    /// The parts of it that are within a group, see [`blocks`].
    pub(super) blocks: &'a [f32],
}

/// Scales of a stage's inputs: the best of the searched, which 1 everywhere is one of. The ranges of the first `uncut` rows are
/// not cut afterwards.
///
/// # Errors
/// The device's.
pub(super) fn search_scales<B: Calibrate>(
    backend: &mut B,
    weights: &Matrix,
    uncut: usize,
    inputs: &Inputs<'_, B>,
    target: Target,
) -> Result<Vec<f32>> {
    let group = target.group().unwrap_or(weights.cols);
    let relative = relative_magnitudes(weights, group);
    let forms = [Form::Inputs, Form::Both(&relative)];
    let steps = (0..STEPS).map(|step| step as f32 / STEPS as f32);
    let mut tried: Vec<(f64, Vec<f32>)> = Vec::new();
    for form in forms {
        let coarse: Vec<Vec<f32>> = steps.clone().map(|r| form.scales(inputs.magnitudes, r)).collect();
        let errors = output_errors(backend, weights, &coarse, inputs.gram, target)?;
        let best = errors.iter().zip(steps.clone()).min_by(|(one, _), (other, _)| one.total_cmp(other));
        let best = best.map_or(0.0, |(_, r)| r);
        let fine: Vec<Vec<f32>> = BESIDE.iter().map(|by| form.scales(inputs.magnitudes, best + by)).collect();
        let fine_errors = output_errors(backend, weights, &fine, inputs.gram, target)?;
        tried.extend(errors.into_iter().chain(fine_errors).zip(coarse.into_iter().chain(fine)));
    }
    let plain = tried.swap_remove(0).1;
    tried.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let finalists = tried.into_iter().take(FINALISTS).map(|(_, scales)| scales).chain([plain]);
    let mut best = (f64::INFINITY, vec![1.0; weights.cols]);
    for scales in finalists {
        let error = cut_error(backend, weights, uncut, &scales, inputs, target)?;
        if error < best.0 {
            best = (error, scales);
        }
    }
    Ok(best.1)
}

/// How scales follow from an exponent r. Which form is better depends on the layer.
#[derive(Clone, Copy, Debug)]
enum Form<'a> {
    /// `m^r`, the paper's.
    Inputs,
    /// `m^r / v^(1-r)`, as the authors' code has it (`duo_scaling`): v is a column's mean magnitude relative to the largest of
    /// its group.
    Both(&'a [f32]),
}

impl Form<'_> {
    fn scales(self, magnitudes: &[f32], r: f32) -> Vec<f32> {
        balanced(match self {
            Self::Inputs => magnitudes.iter().map(|m| m.powf(r)).collect(),
            Self::Both(relative) => {
                magnitudes.iter().zip(relative).map(|(m, v)| m.powf(r) / (v.powf(1.0 - r) + 1e-4)).collect()
            }
        })
    }
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

/// The error of the output with ranges cut for these scales: `sum over rows of d G d^T` with `d = Q(cut(W s)) / s - W`.
fn cut_error<B: Calibrate>(
    backend: &mut B,
    weights: &Matrix,
    uncut: usize,
    scales: &[f32],
    inputs: &Inputs<'_, B>,
    target: Target,
) -> Result<f64> {
    let k = weights.cols;
    let mut blocks = inputs.blocks.to_vec();
    divide_blocks(&mut blocks, scales);
    let (mut forms, mut host) = (Vec::new(), HostTensor::default());
    let mut error = 0.0;
    for (part, exact) in weights.data.chunks(ROWS * k).enumerate() {
        let rows = exact.len() / k;
        let mut data = exact.to_vec();
        for row in data.chunks_exact_mut(k) {
            row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
        }
        let first = uncut.saturating_sub(part * ROWS).min(rows);
        clip(backend, &mut data[first * k..], k, &blocks, target)?;
        let cut = backend.upload(&HostTensor { rows, width: k, data: data.clone() })?;
        let mut changes = backend.buffer(rows, k)?;
        backend.rounding_changes(rows, &cut, &rounding(target)?, &mut changes)?;
        backend.download(&changes, rows, &mut host)?;
        for ((change, cut), exact) in host.data.chunks_exact_mut(k).zip(data.chunks_exact(k)).zip(exact.chunks_exact(k))
        {
            for (((change, cut), exact), s) in change.iter_mut().zip(cut).zip(exact).zip(scales) {
                *change = (cut + *change) / s - exact;
            }
        }
        let changes = backend.upload(&host)?;
        backend.quadratic_forms(rows, &changes, inputs.gram, &mut forms)?;
        error += forms.iter().map(|f| f64::from(*f)).sum::<f64>();
    }
    Ok(error)
}

/// Cuts every group's values where the error of the group's part of the output is least. `rows` are of `k` weights, `blocks`
/// of the inputs as these weights see them.
///
/// # Errors
/// The device's.
pub(super) fn clip<B: Calibrate>(
    backend: &mut B,
    rows: &mut [f32],
    k: usize,
    blocks: &[f32],
    target: Target,
) -> Result<()> {
    let GroupRounding { group, .. } = rounding::<B::Buffer>(target)?;
    let mut forms = Vec::new();
    for (first, gram) in (0..k).step_by(group).zip(blocks.chunks_exact(group * group)) {
        let columns = first..first + group;
        let gram = backend.upload(&HostTensor { rows: group, width: group, data: gram.to_vec() })?;
        for rows in rows.chunks_mut(ROWS * k) {
            let n = rows.len() / k;
            let data = rows.chunks_exact(k).flat_map(|row| &row[columns.clone()]).copied().collect();
            let values = backend.upload(&HostTensor { rows: n, width: group, data })?;
            let mut changes = backend.buffer(n, group)?;
            let mut best = vec![(f32::INFINITY, 1.0); n];
            for step in 0..CUTS {
                let cut = 1.0 - step as f32 / (2 * CUTS) as f32;
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

/// The parts of a Gram matrix `[k, k]` that are within a group, `[k / group, group, group]`: all that a search for a group's
/// range reads.
///
/// # Errors
/// The target has no groups.
pub(super) fn blocks(gram: &[f32], k: usize, target: Target) -> Result<Vec<f32>> {
    let group = target.group().ok_or_else(no_groups)?;
    let rows = gram.chunks_exact(k).enumerate();
    Ok(rows.flat_map(|(row, values)| &values[row / group * group..][..group]).copied().collect())
}

/// Turns [`blocks`] into those of the inputs divided by `scales`.
pub(super) fn divide_blocks(blocks: &mut [f32], scales: &[f32]) {
    let group = blocks.len() / scales.len();
    for (row, (values, si)) in blocks.chunks_exact_mut(group).zip(scales).enumerate() {
        for (value, sj) in values.iter_mut().zip(&scales[row / group * group..]) {
            *value /= si * sj;
        }
    }
}

#[cfg(test)]
#[path = "awq_tests.rs"]
mod tests;
