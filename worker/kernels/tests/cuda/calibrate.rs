//! Calibration statistics, against plain FP64 loops and against the CPU.

use modelprofile_kernels::{
    Calibrate, Device, GroupRounding, GroupedActivations, HostTensor,
    cpu::{Cpu, CpuOptions},
    rtn::Grid,
};

use crate::device::{Arg, Gpu, NULL, Shape, activations, noise};

const CALIBRATE: &[&str] = &["calibrate"];
/// Side of a tile.
const TILE: usize = 128;

/// Rows and columns: parts of a tile and of a slice, several tiles, three slices and more of the pipeline.
const SHAPES: [(usize, usize); 5] = [(1, 4), (17, 68), (70, 128), (40, 132), (130, 300)];

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Int8 }).unwrap()
}

fn matrix(cpu: &Cpu, rows: usize, width: usize, data: &[f32]) -> <Cpu as Device>::Buffer {
    cpu.upload(&HostTensor { rows, width, data: data.to_vec() }).unwrap()
}

fn values(cpu: &Cpu, buffer: &<Cpu as Device>::Buffer, rows: usize) -> Vec<f32> {
    let mut host = HostTensor::default();
    cpu.download(buffer, rows, &mut host).unwrap();
    host.data
}

/// Largest error of an FP32 sum of `terms` terms, relative to the sum of their magnitudes.
fn sum_budget(terms: usize) -> f64 {
    terms as f64 * 2.0f64.powi(-24) + 1e-7
}

#[test]
fn gram_matrices_are_continued_and_symmetric() {
    let gpu = Gpu::new(CALIBRATE);
    let mut cpu = cpu();
    for (rows, k) in SHAPES {
        let x = activations(rows * k, 1);
        // What was there before: the upper triangle counts, the lower is NaN.
        let mut before = noise(k * k, 2);
        for i in 0..k {
            before[i * k..i * k + i].fill(f32::NAN);
        }
        let (on_device, gram) = (gpu.upload(&x), gpu.upload(&before));
        let tiles = k.div_ceil(TILE);
        gpu.launch("gram", Shape::blocks(tiles * (tiles + 1) / 2), args![&gram, &on_device, rows, k]);
        let found = gpu.download(&gram);
        let mut of_cpu = matrix(&cpu, k, k, &before);
        let x_of_cpu = matrix(&cpu, rows, k, &x);
        cpu.gram(rows, &x_of_cpu, &mut of_cpu).unwrap();
        let of_cpu = values(&cpu, &of_cpu, k);
        for i in 0..k {
            for j in i..k {
                let terms = (0..rows).map(|r| f64::from(x[r * k + i]) * f64::from(x[r * k + j]));
                let start = f64::from(before[i * k + j]);
                let (sum, size) = terms.fold((start, start.abs()), |(sum, size), t| (sum + t, size + t.abs()));
                let error = (f64::from(found[i * k + j]) - sum).abs() / size;
                assert!(error < sum_budget(rows + 1), "{rows} x {k}: {i}, {j}: {error}");
                let error = f64::from(found[i * k + j] - of_cpu[i * k + j]).abs() / size;
                assert!(error < 2.0 * sum_budget(rows + 1), "{rows} x {k}: {i}, {j} of the CPU: {error}");
                assert_eq!(found[i * k + j].to_bits(), found[j * k + i].to_bits(), "{i}, {j}");
            }
        }
    }
}

#[test]
fn column_maxima_are_raised_and_never_lowered() {
    let gpu = Gpu::new(CALIBRATE);
    let mut cpu = cpu();
    for (rows, k) in SHAPES {
        let x = activations(rows * k, 3);
        let before: Vec<f32> = noise(k, 4).iter().map(|v| v.abs()).collect();
        for shares in [1, 3] {
            let (on_device, out) = (gpu.upload(&x), gpu.upload(&before));
            let shape = Shape { grid: (k.div_ceil(TILE), shares, 1), ..Shape::blocks(1) };
            gpu.launch("column_absmax", shape, args![&out, &on_device, rows, k]);
            let expected: Vec<f32> =
                (0..k).map(|j| (0..rows).fold(before[j], |m, r| m.max(x[r * k + j].abs()))).collect();
            assert_eq!(gpu.download(&out), expected, "{rows} x {k}");
            let mut of_cpu = matrix(&cpu, 1, k, &before);
            let x = matrix(&cpu, rows, k, &x);
            cpu.column_absmax(rows, &x, &mut of_cpu).unwrap();
            assert_eq!(values(&cpu, &of_cpu, 1), expected);
        }
    }
}

#[test]
fn rounding_changes_are_the_cpu_s_bit_by_bit() {
    let gpu = Gpu::new(CALIBRATE);
    let mut cpu = cpu();
    for (rows, k, group) in [(1, 4, 4), (3, 96, 32), (2, 640, 64), (3, 1152, 128), (2, 300, 100)] {
        let mut weights = noise(rows * k, 5);
        // Small and large rows, groups of equal values above and below zero, one of zeros.
        weights[..group].fill(0.0);
        weights[(rows - 1) * k..][..group].fill(0.37);
        weights[rows * k - group..].fill(-0.21);
        for (row, values) in weights.chunks_exact_mut(k).enumerate() {
            for v in values {
                *v *= 10f32.powi(4 * row as i32 - 5);
            }
        }
        let scales: Vec<f32> = noise(k, 6).iter().map(|v| 1.0 + 0.9 * v).collect();
        for (grid, number) in [(Grid::Symmetric, 0u32), (Grid::Integer, 1), (Grid::Minimum, 2)] {
            for (bits, cut, scaled) in [(4, 1.0, false), (4, 0.8, true), (8, 1.0, true), (8, 0.55, false)] {
                let (on_device, scales_there) = (gpu.upload(&weights), gpu.upload(&scales));
                let changes = gpu.output::<f32>(rows * k);
                let scales_arg = if scaled { Arg::from(&scales_there) } else { NULL };
                let args = args![&changes, &on_device, scales_arg, k, u32::from(bits), group, number, cut];
                gpu.launch("rounding_changes", Shape::blocks(rows), args);
                let found = gpu.download(&changes);
                let of_cpu = {
                    let (weights, scales) = (matrix(&cpu, rows, k, &weights), matrix(&cpu, 1, k, &scales));
                    let mut changes = cpu.buffer(rows, k).unwrap();
                    let how = GroupRounding { bits, group, grid, scales: scaled.then_some(&scales), cut };
                    cpu.rounding_changes(rows, &weights, &how, &mut changes).unwrap();
                    values(&cpu, &changes, rows)
                };
                for (at, (found, expected)) in found.iter().zip(&of_cpu).enumerate() {
                    assert_eq!(found, expected, "{k} {group} {grid:?} {bits} bits cut {cut} {scaled}: {at}");
                }
            }
        }
    }
}

#[test]
fn quadratic_forms_read_the_upper_triangle() {
    let gpu = Gpu::new(CALIBRATE);
    let mut cpu = cpu();
    for (rows, k) in SHAPES {
        let delta = noise(rows * k, 7);
        let half = noise(k * k, 8);
        let element = |i: usize, j: usize| half[i.min(j) * k + i.max(j)];
        let mut upper = half.clone();
        for i in 0..k {
            upper[i * k..i * k + i].fill(f32::NAN);
        }
        let (on_device, gram) = (gpu.upload(&delta), gpu.upload(&upper));
        let tiles = k.div_ceil(TILE);
        let partials = gpu.output::<f64>(tiles * rows);
        let shape = Shape { grid: (tiles, rows.div_ceil(TILE), 1), ..Shape::blocks(1) };
        gpu.launch("quadratic_partials", shape, args![&partials, &on_device, &gram, rows, k]);
        let out = gpu.output::<f32>(rows);
        gpu.launch("quadratic_forms", Shape::blocks(rows.div_ceil(256)), args![&out, &partials, rows, tiles]);
        let found = gpu.download(&out);
        let mut of_cpu = Vec::new();
        let (delta_of_cpu, gram) = (matrix(&cpu, rows, k, &delta), matrix(&cpu, k, k, &upper));
        cpu.quadratic_forms(rows, &delta_of_cpu, &gram, &mut of_cpu).unwrap();
        for (row, d) in delta.chunks_exact(k).enumerate() {
            let (mut sum, mut size) = (0.0, 0.0);
            for i in 0..k {
                for j in 0..k {
                    let term = f64::from(d[i]) * f64::from(element(i, j)) * f64::from(d[j]);
                    sum += term;
                    size += term.abs();
                }
            }
            let error = (f64::from(found[row]) - sum).abs() / size;
            assert!(error < sum_budget(k), "{rows} x {k}: {row}: {error}");
            let error = f64::from(found[row] - of_cpu[row]).abs() / size;
            assert!(error < 2.0 * sum_budget(k), "{rows} x {k}: {row} of the CPU: {error}");
        }
    }
}
