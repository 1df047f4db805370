//! Products on every instruction set against the formula in FP64.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use modelprofile_kernels::{
    Backend, Device, GroupedActivations, HostTensor, HostWeight, PackedWeight, Store, WeightKind,
    cpu::{Cpu, CpuOptions, Isa},
    format::e4m3,
    pack, rtn,
};
use proptest::prelude::*;

const KINDS: [WeightKind; 10] = [
    WeightKind::Bf16,
    WeightKind::Fp8,
    WeightKind::Fp8Static,
    WeightKind::Fp8Block,
    WeightKind::Int8,
    WeightKind::Int8Outliers { columns: 5 },
    WeightKind::Int4 { group: 32 },
    WeightKind::Int4 { group: 64 },
    WeightKind::Int4 { group: 128 },
    WeightKind::Int8Group { group: 32 },
];

fn cpu(isa: Isa, grouped_activations: GroupedActivations) -> Cpu {
    Cpu::new(CpuOptions { threads: 2, isa: Some(isa), grouped_activations }).unwrap()
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

fn weight(kind: WeightKind, n: usize, k: usize) -> (PackedWeight, Vec<f32>) {
    let rows = noise(n * k, 7);
    let host = match kind {
        // The inputs of these tests are below one.
        WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, 1.0 / 448.0),
        WeightKind::Int8Outliers { columns } => rtn::int8_outliers(n, k, &rows, &spread(columns.into(), k)),
        _ => rtn::quantize(kind, rtn::Grid::Minimum, n, k, &rows),
    }
    .unwrap();
    let mut values = vec![0.0; n * k];
    for (row, out) in values.chunks_exact_mut(k).enumerate() {
        host.dequantize_row(row, out);
    }
    (pack(&host).unwrap(), values)
}

/// `count` columns from the first to the last of `k`.
fn spread(count: usize, k: usize) -> Vec<u32> {
    (0..count).map(|i| (i * (k - 1) / (count - 1).max(1)) as u32).collect()
}

fn product(cpu: &mut Cpu, w: &PackedWeight, x: &[f32], rows: usize) -> Vec<f32> {
    let x = cpu.upload(&HostTensor { rows, width: w.spec.k, data: x.to_vec() }).unwrap();
    let mut out = cpu.buffer(rows, w.spec.n).unwrap();
    cpu.linear(rows, &x, w, None, Store::Overwrite, &mut out).unwrap();
    let mut host = HostTensor::default();
    cpu.download(&out, rows, &mut host).unwrap();
    host.data
}

/// Largest relative deviation of an element that quantizing the activations may cause, by kind. The deviation is taken
/// against `sum |x w|`, so that cancellation does not count.
fn budget(kind: WeightKind, grouped: GroupedActivations) -> f64 {
    match kind {
        WeightKind::Bf16 => 1.0 / 256.0,
        WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Fp8Block => 1.0 / 16.0,
        WeightKind::Int8 | WeightKind::Int8Outliers { .. } => 1.0 / 127.0,
        WeightKind::Int4 { .. } | WeightKind::Int8Group { .. } => match grouped {
            GroupedActivations::Int8 => 1.0 / 127.0,
            GroupedActivations::Bf16 => 1.0 / 256.0,
        },
    }
}

#[test]
fn every_kind_on_every_instruction_set_is_within_its_budget() {
    for isa in Isa::available() {
        for grouped in [GroupedActivations::Int8, GroupedActivations::Bf16] {
            let mut cpu = cpu(isa, grouped);
            for kind in KINDS {
                for (n, k) in [(1, 128), (17, 256), (96, 128)] {
                    let (packed, values) = weight(kind, n, k);
                    for rows in [1, 2, 3, 5, 8, 13, 27] {
                        let x = noise(rows * k, rows as u32);
                        let found = product(&mut cpu, &packed, &x, rows);
                        for row in 0..rows {
                            for column in 0..n {
                                let pairs = x[row * k..].iter().zip(&values[column * k..(column + 1) * k]);
                                let terms: Vec<f64> = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
                                let expected: f64 = terms.iter().sum();
                                let size: f64 = terms.iter().map(|t| t.abs()).sum();
                                let error = (f64::from(found[row * n + column]) - expected).abs() / size;
                                assert!(
                                    error < budget(kind, grouped),
                                    "{isa:?} {kind:?} {grouped:?} {n}x{k}, {rows} rows, [{row}, {column}]: {error}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn shapes_that_fill_no_panel_and_no_step_are_exact_too() {
    for isa in Isa::available() {
        let mut cpu = cpu(isa, GroupedActivations::Int8);
        for kind in [
            WeightKind::Bf16,
            WeightKind::Fp8,
            WeightKind::Fp8Static,
            WeightKind::Int8,
            WeightKind::Int8Outliers { columns: 1 },
        ] {
            for (n, k) in [(1, 1), (5, 3), (33, 13), (17, 25), (16, 31), (3, 33), (40, 60), (7, 63)] {
                let (packed, values) = weight(kind, n, k);
                // A single one picks a column of the weight, without any rounding of the activation; alone, and in enough rows
                // that kernels for many are used.
                for (at, rows) in (0..k).flat_map(|at| [(at, 1), (at, 6)]) {
                    let mut x = vec![0.0; rows * k];
                    x.iter_mut().skip(at).step_by(k).for_each(|x| *x = 1.0);
                    let found = product(&mut cpu, &packed, &x, rows);
                    for (i, found) in found.iter().enumerate() {
                        let expected = values[i % n * k + at];
                        assert!(
                            (found - expected).abs() <= expected.abs() * 1e-6,
                            "{isa:?} {kind:?} {n}x{k}, {rows} rows"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_row_is_bit_for_bit_the_same_in_any_batch(rows in 2usize..20, pick in 0usize..20, n in 1usize..200) {
        let (k, pick) = (128, pick % rows);
        for isa in Isa::available() {
            for grouped in [GroupedActivations::Int8, GroupedActivations::Bf16] {
                let mut cpu = cpu(isa, grouped);
                for kind in KINDS {
                    let (packed, _) = weight(kind, n, k);
                    let x = noise(rows * k, 3);
                    let together = product(&mut cpu, &packed, &x, rows);
                    let alone = product(&mut cpu, &packed, &x[pick * k..(pick + 1) * k], 1);
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&together[pick * n..(pick + 1) * n]), bits(&alone), "{:?} {:?}", isa, kind);
                }
            }
        }
    }
}

#[test]
fn every_e4m3_code_is_multiplied_as_its_value() {
    const CODES: usize = 256;
    let code = |row: usize, at: usize| {
        let code = ((at + row * 37) % CODES) as u8;
        // Not the two of NaN.
        if code & 0x7f == 0x7f { 0 } else { code }
    };
    let n = 17;
    let codes = (0..n * CODES).map(|i| code(i / CODES, i % CODES)).collect();
    let weight = HostWeight::Fp8 { n, k: CODES, codes, scales: vec![1.0; n] };
    let packed = pack(&weight).unwrap();
    for isa in Isa::available() {
        let mut cpu = cpu(isa, GroupedActivations::Int8);
        for (at, rows) in (0..CODES).flat_map(|at| [(at, 1), (at, 6)]) {
            // The largest E4M3 value is its own code, its scale one.
            let mut x = vec![0.0; rows * CODES];
            x.iter_mut().skip(at).step_by(CODES).for_each(|x| *x = e4m3::MAX);
            for (i, found) in product(&mut cpu, &packed, &x, rows).iter().enumerate() {
                let expected = e4m3::MAX * e4m3::decode(code(i % n, at));
                assert!(
                    (found - expected).abs() <= expected.abs() * 1e-6,
                    "{isa:?} {at} {rows}: {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn adding_and_bias_do_what_they_say() {
    let cases = [Store::Overwrite, Store::Add].map(|store| [(store, false), (store, true)]);
    // Whole panels, and one that is not.
    for (isa, n) in Isa::available().into_iter().flat_map(|isa| [(isa, 20), (isa, 32)]) {
        let mut cpu = cpu(isa, GroupedActivations::Int8);
        let (packed, _) = weight(WeightKind::Bf16, n, 32);
        let x = noise(3 * 32, 1);
        let plain = product(&mut cpu, &packed, &x, 3);
        let x = cpu.upload(&HostTensor { rows: 3, width: 32, data: x }).unwrap();
        let bias = cpu.upload(&HostTensor { rows: 1, width: n, data: (0..n).map(|i| i as f32).collect() }).unwrap();
        for (store, biased) in cases.into_iter().flatten() {
            let mut out = cpu.upload(&HostTensor { rows: 3, width: n, data: vec![100.0; 3 * n] }).unwrap();
            cpu.linear(3, &x, &packed, biased.then_some(&bias), store, &mut out).unwrap();
            let mut host = HostTensor::default();
            cpu.download(&out, 3, &mut host).unwrap();
            for (i, (found, plain)) in host.data.iter().zip(&plain).enumerate() {
                let bias = if biased { (i % n) as f32 } else { 0.0 };
                let before = if store == Store::Add { 100.0 } else { 0.0 };
                assert!((found - (plain + bias + before)).abs() < 1e-4, "{isa:?} {n} {store:?} {biased}");
            }
        }
    }
}

#[test]
fn an_embedding_row_is_the_dequantized_row() {
    for kind in KINDS {
        let (packed, values) = weight(kind, 37, 128);
        let mut out = vec![0.0; 128];
        for row in 0..37 {
            packed.dequantize_row(row, &mut out).unwrap();
            assert_eq!(out, values[row * 128..(row + 1) * 128], "{kind:?}");
        }
        assert!(packed.dequantize_row(37, &mut out).is_err());
    }
}
