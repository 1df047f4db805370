//! Calibration statistics on every instruction set against plain loops in FP64.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use modelprofile_kernels::{
    Calibrate, Device, GroupRounding, GroupedActivations, HostTensor, WeightKind,
    cpu::{Cpu, CpuOptions, Isa},
    rtn::{self, Grid},
};

const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (70, 33), (1, 100), (300, 97), (40, 576)];

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads, isa: Some(isa), grouped_activations: GroupedActivations::Int8 }).unwrap()
}

/// Reproducible values in -1..1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

fn matrix(cpu: &Cpu, rows: usize, width: usize, data: Vec<f32>) -> <Cpu as Device>::Buffer {
    cpu.upload(&HostTensor { rows, width, data }).unwrap()
}

fn values(cpu: &Cpu, buffer: &<Cpu as Device>::Buffer, rows: usize) -> Vec<f32> {
    let mut host = HostTensor::default();
    cpu.download(buffer, rows, &mut host).unwrap();
    host.data
}

/// Largest error of an FP32 sum of `terms` terms, relative to the sum of their magnitudes.
fn sum_budget(terms: usize) -> f64 {
    (terms as f64 + 2.0) / 16_777_216.0
}

#[test]
fn the_gram_matrix_is_that_of_plain_loops_for_any_number_of_threads() {
    for isa in Isa::available() {
        for (rows, k) in SHAPES {
            let x = noise((rows + 2) * k, 1);
            let start = symmetric(k, 2);
            let found = |threads: usize| {
                let mut cpu = cpu(isa, threads);
                // Two rows more than are counted.
                let x = matrix(&cpu, rows + 2, k, x.clone());
                let mut gram = matrix(&cpu, k, k, start.clone());
                cpu.gram(rows, &x, &mut gram).unwrap();
                values(&cpu, &gram, k)
            };
            let gram = found(2);
            assert_eq!(gram, found(1), "{isa:?}: the result depends on the threads");
            assert_eq!(gram, found(3), "{isa:?}: the result depends on the threads");
            for i in 0..k {
                for j in 0..k {
                    let pairs = || (0..rows).map(|r| f64::from(x[r * k + i]) * f64::from(x[r * k + j]));
                    let before = f64::from(start[i * k + j]);
                    let (expected, size) =
                        (before + pairs().sum::<f64>(), before.abs() + pairs().map(f64::abs).sum::<f64>());
                    let error = (f64::from(gram[i * k + j]) - expected).abs();
                    assert!(error <= sum_budget(rows) * size, "{isa:?} {rows}x{k} [{i}, {j}]: {error}");
                    assert_eq!(gram[i * k + j].to_bits(), gram[j * k + i].to_bits(), "symmetric");
                }
            }
        }
    }
}

fn symmetric(k: usize, seed: u32) -> Vec<f32> {
    let mut m = noise(k * k, seed);
    for i in 0..k {
        for j in 0..i {
            m[i * k + j] = m[j * k + i];
        }
    }
    m
}

#[test]
fn quadratic_forms_are_those_of_plain_loops_for_any_number_of_threads() {
    for isa in Isa::available() {
        for (rows, k) in SHAPES {
            let (d, gram) = (noise((rows + 1) * k, 3), symmetric(k, 4));
            let found = |threads: usize| {
                let mut cpu = cpu(isa, threads);
                let d = matrix(&cpu, rows + 1, k, d.clone());
                let gram = matrix(&cpu, k, k, gram.clone());
                let mut out = vec![7.0; 3];
                cpu.quadratic_forms(rows, &d, &gram, &mut out).unwrap();
                out
            };
            let forms = found(2);
            assert_eq!(forms, found(1), "{isa:?}: the result depends on the threads");
            assert_eq!(forms.len(), rows);
            for (row, (form, d)) in forms.iter().zip(d.chunks_exact(k)).enumerate() {
                let (mut expected, mut size) = (0.0f64, 0.0f64);
                for i in 0..k {
                    for j in 0..k {
                        let term = f64::from(d[i]) * f64::from(gram[i * k + j]) * f64::from(d[j]);
                        expected += term;
                        size += term.abs();
                    }
                }
                let error = (f64::from(*form) - expected).abs();
                assert!(error <= sum_budget(k) * size, "{isa:?} {rows}x{k} row {row}: {error} of {size}");
            }
        }
    }
}

/// `Q(cut(W s)) / s - W` by the codes that would be stored, in 4 bits.
fn plain_changes([rows, k, group]: [usize; 3], w: &[f32], s: Option<&[f32]>, cut: f32, grid: Grid) -> Vec<f32> {
    let scale = |at: usize| s.map_or(1.0, |s| s[at % k]);
    let mut scaled: Vec<f32> = w[..rows * k].iter().enumerate().map(|(at, w)| w * scale(at)).collect();
    for group in scaled.chunks_exact_mut(group) {
        let limit = group.iter().fold(0.0f32, |m, v| m.max(v.abs())) * cut;
        for v in group {
            *v = v.clamp(-limit, limit);
        }
    }
    let stored = rtn::quantize(WeightKind::Int4 { group: group as u16 }, grid, rows, k, &scaled).unwrap();
    for (row, out) in scaled.chunks_exact_mut(k).enumerate() {
        stored.dequantize_row(row, out);
    }
    scaled.iter().enumerate().map(|(at, v)| v / scale(at) - w[at]).collect()
}

#[test]
fn changes_by_rounding_are_those_of_the_stored_codes_bit_for_bit() {
    for isa in Isa::available() {
        for (rows, k, group) in [(1, 32, 32), (19, 192, 64), (70, 256, 128)] {
            let mut w = noise((rows + 1) * k, 6);
            // A group of zeros, a row of zeros, a lone large value, a row of tiny ones.
            w[..group].fill(0.0);
            if rows > 4 {
                w[k..2 * k].fill(0.0);
                w[2 * k + 5] = -300.0;
                for v in &mut w[3 * k..4 * k] {
                    *v *= 1e-30;
                }
            }
            let scales: Vec<f32> = noise(k, 7).iter().map(|v| v.exp()).collect();
            for grid in [Grid::Symmetric, Grid::Integer, Grid::Minimum] {
                for (scales, cut) in [(None, 1.0), (Some(&scales), 1.0), (None, 0.7), (Some(&scales), 0.55)] {
                    let expected = plain_changes([rows, k, group], &w, scales.map(Vec::as_slice), cut, grid);
                    for threads in [1, 3] {
                        let mut cpu = cpu(isa, threads);
                        let weights = matrix(&cpu, rows + 1, k, w.clone());
                        let scales = scales.map(|s| matrix(&cpu, 1, k, s.clone()));
                        let mut changes = matrix(&cpu, rows + 1, k, vec![9.0; (rows + 1) * k]);
                        let how = GroupRounding { bits: 4, group, grid, scales: scales.as_ref(), cut };
                        cpu.rounding_changes(rows, &weights, &how, &mut changes).unwrap();
                        let found = values(&cpu, &changes, rows + 1);
                        assert_eq!(found[..rows * k], expected, "{isa:?} {rows}x{k} {grid:?} cut {cut}");
                        assert_eq!(found[rows * k..], vec![9.0; k], "a row too many");
                    }
                }
            }
        }
    }
}

#[test]
fn column_maxima_are_raised_never_lowered() {
    for isa in Isa::available() {
        for (rows, k) in [(1, 1), (5, 33), (17, 700)] {
            let x = noise((rows + 1) * k, 5);
            let start: Vec<f32> = (0..k).map(|j| if j % 3 == 0 { 2.0 } else { 0.01 }).collect();
            let mut cpu = cpu(isa, 2);
            let device_x = matrix(&cpu, rows + 1, k, x.clone());
            let mut out = matrix(&cpu, 1, k, start.clone());
            cpu.column_absmax(rows, &device_x, &mut out).unwrap();
            let expected: Vec<f32> =
                (0..k).map(|j| (0..rows).fold(start[j], |m, r| m.max(x[r * k + j].abs()))).collect();
            assert_eq!(values(&cpu, &out, 1), expected, "{isa:?}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut cpu = cpu(Isa::Scalar, 1);
    let x = cpu.buffer(2, 8).unwrap();
    let mut wrong = cpu.buffer(8, 7).unwrap();
    assert!(cpu.gram(2, &x, &mut wrong).is_err());
    assert!(cpu.column_absmax(2, &x, &mut wrong).is_err());
    assert!(cpu.quadratic_forms(2, &x, &wrong, &mut Vec::new()).is_err());
    let mut changes = cpu.buffer(2, 8).unwrap();
    for (group, cut) in [(3, 1.0), (0, 1.0), (4, 0.0), (4, 1.5), (4, f32::NAN)] {
        let how = GroupRounding { bits: 4, group, grid: Grid::Symmetric, scales: None, cut };
        assert!(cpu.rounding_changes(2, &x, &how, &mut changes).is_err(), "{group} {cut}");
    }
    let how = GroupRounding { bits: 4, group: 4, grid: Grid::Symmetric, scales: Some(&wrong), cut: 1.0 };
    assert!(cpu.rounding_changes(2, &x, &how, &mut changes).is_err(), "scales of another width");
    let mut gram = cpu.buffer(8, 8).unwrap();
    assert!(cpu.gram(3, &x, &mut gram).is_err(), "more rows than there are");
}
