//! Speed of what calibration computes, on two threads by the wall clock.
//!
//! `cargo bench -p modelprofile-kernels --bench calibrate [-- FILTER]`
#![allow(clippy::unwrap_used, clippy::panic, reason = "a tool for developers")]

use std::{hint::black_box, time::Instant};

use modelprofile_kernels::{
    Calibrate, Device, GroupRounding, GroupedActivations, HostTensor,
    cpu::{Cpu, CpuOptions},
    dense,
    rtn::Grid,
};

const THREADS: usize = 2;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let options = CpuOptions { threads: THREADS, isa: None, grouped_activations: GroupedActivations::Int8 };
    let mut cpu = Cpu::new(options).unwrap();
    println!("{:<44} {:>10} {:>10}", format!("{:?}, {THREADS} threads", cpu.isa()), "GFLOP/s", "ms");
    let report = |name: &str, flops: usize, run: &mut dyn FnMut()| {
        if name.contains(&filter) {
            let seconds = best(run);
            println!("{name:<44} {:>10.1} {:>10.2}", flops as f64 / seconds / 1e9, seconds * 1e3);
        }
    };
    for k in [576, 1536] {
        let rows = 512;
        let x = matrix(&cpu, rows, k);
        let scales = cpu.upload(&HostTensor { rows: 1, width: k, data: vec![1.5; k] }).unwrap();
        let mut gram = cpu.buffer(k, k).unwrap();
        // Counted as the whole product, of which one triangle is computed.
        report(&format!("gram rows {rows} k {k}"), 2 * rows * k * k, &mut || {
            cpu.gram(rows, &x, black_box(&mut gram)).unwrap();
        });
        let mut forms = Vec::new();
        report(&format!("quadratic forms rows {rows} k {k}"), 2 * rows * k * k, &mut || {
            cpu.quadratic_forms(rows, &x, &gram, black_box(&mut forms)).unwrap();
        });
        let how = GroupRounding { bits: 4, group: 64, grid: Grid::Integer, scales: Some(&scales), cut: 1.0 };
        let mut changes = cpu.buffer(rows, k).unwrap();
        // Counted as one operation a weight.
        report(&format!("rounding changes rows {rows} k {k}"), rows * k, &mut || {
            cpu.rounding_changes(rows, &x, &how, black_box(&mut changes)).unwrap();
        });
        let mut maxima = cpu.buffer(1, k).unwrap();
        report(&format!("column absmax rows {rows} k {k}"), rows * k, &mut || {
            cpu.column_absmax(rows, &x, black_box(&mut maxima)).unwrap();
        });
        let (a, b, mut c) = (values(k * 128), values(128 * k), values(k * k));
        report(&format!("subtract product {k} x {k}, 128 steps"), 2 * 128 * k * k, &mut || {
            dense::subtract_product(THREADS, black_box(&mut c), k, &a, 128, &b, k, k, k, 128);
        });
        let h: Vec<f64> = (0..k * k).map(|i| if i % (k + 1) == 0 { k as f64 } else { 0.5 }).collect();
        report(&format!("inverse Cholesky k {k}"), 2 * k * k * k / 3, &mut || {
            dense::inverse_cholesky_upper(THREADS, k, black_box(&mut h.clone())).unwrap();
        });
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn matrix(cpu: &Cpu, rows: usize, width: usize) -> <Cpu as Device>::Buffer {
    cpu.upload(&HostTensor { rows, width, data: values(rows * width) }).unwrap()
}

/// Least time of a run, over at least half a second of them.
fn best(run: &mut dyn FnMut()) -> f64 {
    let (mut least, begin) = (f64::INFINITY, Instant::now());
    while begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}
