//! SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
//! 2022): outliers of the activations are moved into the weights, where one scale per row holds them better than one scale
//! per token would.
//!
//! `s_j = max|x_j|^a / max|w_j|^(1-a)`: inputs are divided by s in what comes before, weights multiplied. The paper takes one
//! `a` for a model; here each group of layers with a common input takes the one with the least error of its output, both
//! sides rounded to 8 bits as at run time: the device computes it.

use modelprofile_kernels::{Calibrate, HostTensor, Store, WeightKind, rtn};

use super::{
    dense::{Matrix, rounded},
    runner::resident,
};
use crate::Result;

/// Exponents that are tried, and no smoothing at all.
const ALPHAS: [f32; 11] = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9];
/// No scale below this (the authors' code).
const LEAST: f32 = 1e-5;

/// The scales of a stage's inputs; 1 everywhere when no smoothing is best.
///
/// `absmax` are the largest magnitudes of the inputs over the calibration text, `sample` some of its rows.
///
/// # Errors
/// The device's.
pub(super) fn search_scales<B: Calibrate>(
    backend: &mut B,
    weights: &Matrix,
    absmax: &[f32],
    sample: &HostTensor,
) -> Result<Vec<f32>> {
    let (rows, n) = (sample.rows, weights.rows);
    let mut out = backend.buffer(rows, n)?;
    let mut host = HostTensor::default();
    let exact = resident(backend, &rounded(weights))?;
    let x = backend.upload(sample)?;
    backend.linear(rows, &x, &exact, None, Store::Overwrite, &mut out)?;
    backend.download(&out, rows, &mut host)?;
    let expected = std::mem::take(&mut host.data);

    let column_max = column_max(weights);
    let mut best = (f64::INFINITY, vec![1.0; weights.cols]);
    for alpha in ALPHAS.iter().copied().map(Some).chain([None]) {
        let scales = alpha.map_or_else(|| vec![1.0; weights.cols], |a| scales(absmax, &column_max, a));
        let mut scaled = weights.clone();
        scaled.scale_columns(&scales);
        let weight = rtn::quantize(WeightKind::Int8, rtn::Grid::Symmetric, n, weights.cols, &scaled.data)?;
        let mut inputs = sample.clone();
        for row in inputs.data.chunks_exact_mut(inputs.width) {
            for (value, scale) in row.iter_mut().zip(&scales) {
                *value /= scale;
            }
        }
        let x = backend.upload(&inputs)?;
        let weight = resident(backend, &weight)?;
        backend.linear(rows, &x, &weight, None, Store::Overwrite, &mut out)?;
        backend.download(&out, rows, &mut host)?;
        let error: f64 = host.data.iter().zip(&expected).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum();
        if error < best.0 {
            best = (error, scales);
        }
    }
    Ok(best.1)
}

/// `max_i |w_ij|` of every column.
fn column_max(weights: &Matrix) -> Vec<f32> {
    let mut max = vec![0.0f32; weights.cols];
    for row in weights.data.chunks_exact(weights.cols) {
        for (m, w) in max.iter_mut().zip(row) {
            *m = m.max(w.abs());
        }
    }
    max
}

/// The paper's equation 4. An input that never carries anything, or that no weight reads, is left alone.
fn scales(absmax: &[f32], column_max: &[f32], alpha: f32) -> Vec<f32> {
    absmax
        .iter()
        .zip(column_max)
        .map(|(x, w)| match (*x > 0.0, *w > 0.0) {
            (true, true) => (x.powf(alpha) / w.powf(1.0 - alpha)).max(LEAST),
            _ => 1.0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_one_half_inputs_and_weights_meet_in_the_middle() {
        let scales = scales(&[16.0, 0.25, 0.0, 3.0], &[1.0, 4.0, 1.0, 0.0], 0.5);
        assert_eq!(scales, [4.0, 0.25, 1.0, 1.0]);
        // |x| / s and |w| s are then equal.
        assert_eq!((16.0 / scales[0], 1.0 * scales[0]), (4.0, 4.0));
    }
}
