//! AWQ against its definition, product by product.
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

fn magnitudes(x: &[f32]) -> Vec<f32> {
    (0..K).map(|k| x.iter().skip(k).step_by(K).map(|v| v.abs()).sum::<f32>() / 100.0).collect()
}

fn candidates(weights: &Matrix, magnitudes: &[f32]) -> Vec<Vec<f32>> {
    let relative = relative_magnitudes(weights, 32);
    let forms = [Form::Inputs, Form::Both(&relative)];
    forms.iter().flat_map(|form| (0..STEPS).map(|r| form.scales(magnitudes, r as f32 / 20.0))).collect()
}

/// The definition: `|| Q(W s) (x / s) - W x ||^2` summed over the inputs, product by product.
fn plain_error(weights: &Matrix, x: &[f32], scales: &[f32]) -> f64 {
    let mut scaled = weights.clone();
    scaled.scale_columns(scales);
    error_of(&scaled, scales, weights, x)
}

/// Of weights that were scaled, and perhaps cut.
fn error_of(scaled: &Matrix, scales: &[f32], weights: &Matrix, x: &[f32]) -> f64 {
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
    let all = candidates(&weights, &magnitudes(&x));
    let fast = output_errors(&mut cpu, &weights, &all, &device_gram, TARGET).unwrap();
    for (scales, fast) in all.iter().zip(fast).step_by(7) {
        let plain = plain_error(&weights, &x, scales);
        assert!((fast / plain - 1.0).abs() < 1e-3, "{fast} against {plain}");
    }
}

#[test]
fn the_error_with_cut_ranges_is_that_of_the_weights_it_leads_to() {
    let (weights, x) = case(4);
    let mut cpu = cpu();
    let (gram, magnitudes) = (gram(&x), magnitudes(&x));
    let device_gram = cpu.upload(&HostTensor { rows: K, width: K, data: gram.clone() }).unwrap();
    let blocks = blocks(&gram, K, TARGET).unwrap();
    let inputs = Inputs { magnitudes: &magnitudes, gram: &device_gram, blocks: &blocks };
    for (uncut, scales) in [(0, &vec![1.0; K]), (10, &Form::Inputs.scales(&magnitudes, 0.5)), (24, &vec![1.0; K])] {
        let fast = cut_error(&mut cpu, &weights, uncut, scales, &inputs, TARGET).unwrap();
        let mut cut = weights.clone();
        cut.scale_columns(scales);
        let mut seen = blocks.clone();
        divide_blocks(&mut seen, scales);
        clip(&mut cpu, &mut cut.data[uncut * K..], K, &seen, TARGET).unwrap();
        let plain = error_of(&cut, scales, &weights, &x);
        assert!((fast / plain - 1.0).abs() < 1e-3, "{uncut}: {fast} against {plain}");
    }
}

#[test]
fn the_search_finds_scales_that_are_best_with_cut_ranges_and_saves_most_of_the_error_of_large_inputs() {
    for seed in [2, 5, 6] {
        let (weights, x) = case(seed);
        let mut cpu = cpu();
        let (gram, magnitudes) = (gram(&x), magnitudes(&x));
        let device_gram = cpu.upload(&HostTensor { rows: K, width: K, data: gram.clone() }).unwrap();
        let blocks = blocks(&gram, K, TARGET).unwrap();
        let inputs = Inputs { magnitudes: &magnitudes, gram: &device_gram, blocks: &blocks };
        let mut error = |scales: &Vec<f32>| cut_error(&mut cpu, &weights, 0, scales, &inputs, TARGET).unwrap();
        let all = candidates(&weights, &magnitudes);
        assert_eq!((all.len(), &all[0]), (2 * STEPS, &vec![1.0; K]));
        let coarse = all.iter().map(&mut error).fold(f64::INFINITY, f64::min);
        let found = search_scales(&mut self::cpu(), &weights, 0, &inputs, TARGET).unwrap();
        let reached = error(&found);
        assert!(reached <= coarse * 1.02, "{reached} against {coarse} of all coarse ones");
        let nearest = plain_error(&weights, &x, &[1.0; K]);
        assert!(reached < 0.6 * nearest, "{reached} against {nearest} of round to nearest");
    }
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
    let blocks = blocks(&gram(&x), K, TARGET).unwrap();
    clip(&mut cpu(), &mut weights.data, K, &blocks, TARGET).unwrap();
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
