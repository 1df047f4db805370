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
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]
    use modelprofile_kernels::{
        GroupedActivations,
        cpu::{Cpu, CpuOptions},
    };
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use rstest::rstest;

    use super::*;

    #[test]
    fn at_one_half_inputs_and_weights_meet_in_the_middle() {
        let scales = scales(&[16.0, 0.25, 0.0, 3.0], &[1.0, 4.0, 1.0, 0.0], 0.5);
        assert_eq!(scales, [4.0, 0.25, 1.0, 1.0]);
        // |x| / s and |w| s are then equal.
        assert_eq!((16.0 / scales[0], 1.0 * scales[0]), (4.0, 4.0));
    }
    const TOKENS: usize = 256;
    const OUTPUTS: usize = 256;
    const INPUTS: usize = 64;
    /// A place of one outlier: its token or output, and its input.
    const AT: (usize, usize) = (13, 7);

    /// Small numbers of both signs.
    fn noise(rng: &mut StdRng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
    }

    fn absmax(values: &[f32]) -> Vec<f32> {
        column_max(&Matrix { rows: values.len() / INPUTS, cols: INPUTS, data: values.to_vec() })
    }

    /// The squared error of the outputs with both sides in 8 bits, a scale for each token and each output: the definition, in
    /// FP64.
    fn error(x: &[f32], w: &[f32], scales: &[f32]) -> f64 {
        let rounded = |values: Vec<f64>| -> Vec<f64> {
            let step = values.iter().fold(0.0f64, |m, v| m.max(v.abs())) / 127.0;
            values.iter().map(|v| (v / step).round() * step).collect()
        };
        let rows = |values: &[f32], by: &dyn Fn(f64, f64) -> f64| -> Vec<Vec<f64>> {
            let row = |row: &[f32]| row.iter().zip(scales).map(|(v, s)| by(f64::from(*v), f64::from(*s))).collect();
            values.chunks_exact(INPUTS).map(row).collect()
        };
        let (x, w) = (rows(x, &|v, s| v / s), rows(w, &|v, s| v * s));
        let (rx, rw): (Vec<_>, Vec<_>) =
            (x.iter().cloned().map(rounded).collect(), w.iter().cloned().map(rounded).collect());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut total = 0.0;
        for (x, rx) in x.iter().zip(&rx) {
            for (w, rw) in w.iter().zip(&rw) {
                total += (dot(rx, rw) - dot(x, w)).powi(2);
            }
        }
        total
    }

    /// An outlier of one token stretches that token's step alone, and what is moved into the weights stretches every
    /// output's: little should be moved. An outlier of one output wants the opposite. The paper's 0.5 is wrong for both.
    #[rstest]
    #[case::of_a_token(true, 0.0..0.45)]
    #[case::of_an_output(false, 0.65..1.0)]
    fn each_group_of_layers_gets_the_exponent_that_its_outliers_want(
        #[case] of_a_token: bool,
        #[case] expected: std::ops::Range<f32>,
    ) {
        let mut rng = StdRng::seed_from_u64(6);
        let (mut x, mut w) = (noise(&mut rng, TOKENS * INPUTS), noise(&mut rng, OUTPUTS * INPUTS));
        let outlier = if of_a_token { &mut x } else { &mut w };
        outlier[AT.0 * INPUTS + AT.1] = 100.0;
        let sample = HostTensor { rows: TOKENS, width: INPUTS, data: x.clone() };
        let weights = Matrix { rows: OUTPUTS, cols: INPUTS, data: w.clone() };
        let mut cpu =
            Cpu::new(CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap();
        let found = search_scales(&mut cpu, &weights, &absmax(&x), &sample).unwrap();

        let with = |alpha| scales(&absmax(&x), &absmax(&w), alpha);
        let alpha = ALPHAS.into_iter().find(|alpha| with(*alpha) == found);
        assert!(alpha.is_some_and(|alpha| expected.contains(&alpha)), "{alpha:?}");
        let (found, half) = (error(&x, &w, &found), error(&x, &w, &with(0.5)));
        assert!(found < 0.5 * half, "{found} against {half} at 0.5");
    }
}
