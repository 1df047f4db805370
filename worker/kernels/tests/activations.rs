//! Kinds whose activations are quantized in a way of their own, against the formula on the quantized values in FP64: what
//! is left is the rounding of FP32 sums.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use half::bf16;
use modelprofile_kernels::{
    AlignedBytes, Backend, Bytes, Device, FP8_BLOCK, GroupedActivations, HostTensor, HostWeight, PackedWeight, Split,
    Store, WeightKind,
    cpu::{Cpu, CpuOptions, Isa},
    format::e4m3,
    pack,
    pack::{OutlierLayout, PanelLayout},
    rtn,
};

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().into_iter().map(|isa| {
        let grouped_activations = GroupedActivations::Int8;
        Cpu::new(CpuOptions { threads: 2, isa: Some(isa), grouped_activations }).unwrap()
    })
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

/// Activations with outliers: some columns are tens of times larger in most rows.
fn with_outliers(rows: usize, k: usize, columns: &[usize]) -> Vec<f32> {
    let mut x = noise(rows * k, 9);
    for (row, x) in x.chunks_exact_mut(k).enumerate() {
        for column in columns {
            if row % 3 != 1 {
                x[*column] *= 60.0;
                x[*column] += 8.0f32.copysign(x[*column]);
            }
        }
    }
    x
}

fn product(cpu: &mut Cpu, weight: &HostWeight, x: &[f32], rows: usize) -> Vec<f32> {
    let spec = weight.spec();
    let weight = cpu.weight(&pack(weight).unwrap(), Split::Replicated).unwrap();
    let x = cpu.upload(&HostTensor { rows, width: spec.k, data: x.to_vec() }).unwrap();
    let bias = cpu.upload(&HostTensor { rows: 1, width: spec.n, data: vec![0.5; spec.n] }).unwrap();
    let mut out = cpu.upload(&HostTensor { rows, width: spec.n, data: vec![0.25; rows * spec.n] }).unwrap();
    cpu.linear(rows, &x, &weight, Some(&bias), Store::Add, &mut out).unwrap();
    let mut host = HostTensor::default();
    cpu.download(&out, rows, &mut host).unwrap();
    host.data
}

fn values(weight: &HostWeight) -> Vec<f32> {
    let spec = weight.spec();
    let mut values = vec![0.0; spec.n * spec.k];
    for (row, out) in values.chunks_exact_mut(spec.k).enumerate() {
        weight.dequantize_row(row, out);
    }
    values
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// `found` is `x w^T + 0.75` up to the rounding of FP32 sums.
fn assert_product(what: &str, found: &[f32], x: &[f32], w: &[f32], k: usize) {
    let n = w.len() / k;
    for (row, x) in x.chunks_exact(k).enumerate() {
        for (column, w) in w.chunks_exact(k).enumerate() {
            let terms = || x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (expected, size) = (0.75 + terms().sum::<f64>(), 0.75 + terms().map(f64::abs).sum::<f64>());
            let error = (f64::from(found[row * n + column]) - expected).abs() / size;
            assert!(error < 3e-6, "{what} [{row}, {column}]: {error}");
        }
    }
}

fn fp8(x: f32, scale: f32) -> f32 {
    e4m3::decode(e4m3::encode((x * (1.0 / scale)).clamp(-e4m3::MAX, e4m3::MAX))) * scale
}

const ROWS: [usize; 4] = [1, 3, 8, 21];

#[test]
fn static_fp8_takes_one_scale_for_all_tokens_and_saturates() {
    let (n, k, scale) = (37, 72, 2.0 / 448.0);
    let weight = rtn::fp8_static(n, k, &noise(n * k, 1), scale).unwrap();
    for mut cpu in cpus() {
        for rows in ROWS {
            // Values of up to 9, of which the scale reaches 2.
            let x: Vec<f32> = noise(rows * k, 2).iter().map(|v| v * v * v * 9.0).collect();
            let quantized: Vec<f32> = x.iter().map(|v| fp8(*v, scale)).collect();
            assert!(rows == 1 || absmax(&quantized) <= 2.0 && absmax(&x) > 4.0, "something saturates");
            let found = product(&mut cpu, &weight, &x, rows);
            assert_product(&format!("{:?} {rows} rows", cpu.isa()), &found, &quantized, &values(&weight), k);
        }
    }
}

#[test]
fn fp8_blocks_scale_each_token_and_group_by_itself() {
    // Outputs that are no multiple of a block nor of a panel.
    let (n, k) = (150, 384);
    let mut rows_of_weight = noise(n * k, 3);
    for (i, v) in rows_of_weight.iter_mut().enumerate() {
        *v *= [1.0, 30.0, 0.01][i % k / FP8_BLOCK] * if i / k < FP8_BLOCK { 1.0 } else { 5.0 };
    }
    let weight = rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, n, k, &rows_of_weight).unwrap();
    for mut cpu in cpus() {
        for rows in ROWS {
            let x = with_outliers(rows, k, &[5, 200]);
            let mut quantized = x.clone();
            for group in quantized.chunks_exact_mut(FP8_BLOCK) {
                let scale = absmax(group) / 448.0;
                for v in group {
                    *v = fp8(*v, scale);
                }
            }
            let found = product(&mut cpu, &weight, &x, rows);
            assert_product(&format!("{:?} {rows} rows", cpu.isa()), &found, &quantized, &values(&weight), k);
        }
    }
}

#[test]
fn fp8_blocks_share_their_scale_over_128_rows_and_inputs() {
    let (n, k) = (130, 256);
    let rows = noise(n * k, 4);
    let HostWeight::Fp8Block { scales, .. } =
        rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, n, k, &rows).unwrap()
    else {
        panic!("an FP8 block weight")
    };
    for (row, scales) in scales.chunks_exact(2).enumerate() {
        for (block, scale) in scales.iter().enumerate() {
            let band = if row < 128 { 0..128 } else { 128..130 };
            let top = band.map(|r| absmax(&rows[r * k + block * 128..][..128])).fold(0.0f32, f32::max);
            assert_eq!(*scale, top / 448.0, "row {row} block {block}");
        }
    }
}

#[test]
fn one_fp8_scale_serves_the_whole_tensor() {
    let rows = noise(6 * 40, 5);
    let HostWeight::Fp8 { codes, scales, .. } = rtn::fp8_tensor(6, 40, &rows).unwrap() else { panic!("an FP8 weight") };
    assert_eq!(scales, vec![absmax(&rows) / 448.0; 6]);
    for (code, v) in codes.iter().zip(&rows) {
        assert_eq!(*code, e4m3::encode(v / scales[0]));
    }
}

/// LLM.int8 as published (Dettmers et al. 2022): the columns with a magnitude of at least 6 in this call in 16 bits, the
/// others vector-wise in INT8.
fn dynamic_llm_int8(x: &[f32], w: &[f32], k: usize) -> (Vec<usize>, Vec<f64>) {
    let columns: Vec<usize> = (0..k).filter(|j| x.chunks_exact(k).any(|row| row[*j].abs() >= 6.0)).collect();
    let vector_wise = |row: &[f32]| {
        let rest: Vec<f32> = row.iter().enumerate().map(|(j, v)| if columns.contains(&j) { 0.0 } else { *v }).collect();
        let scale = absmax(&rest) / 127.0;
        let codes: Vec<f32> = rest.iter().map(|v| (v * (1.0 / scale)).round_ties_even()).collect();
        (codes, f64::from(scale))
    };
    let mut out = Vec::new();
    for x in x.chunks_exact(k) {
        let (x_codes, x_scale) = vector_wise(x);
        for w in w.chunks_exact(k) {
            let (w_codes, w_scale) = vector_wise(w);
            let whole: f64 = x_codes.iter().zip(&w_codes).map(|(a, b)| f64::from(a * b)).sum();
            let half = |v: f32| f64::from(bf16::from_f32(v).to_f32());
            let outliers: f64 = columns.iter().map(|j| half(x[*j]) * half(w[*j])).sum();
            out.push(whole * x_scale * w_scale + outliers);
        }
    }
    (columns, out)
}

#[test]
fn static_outlier_columns_give_what_the_published_dynamic_form_gives() {
    let (n, k) = (45, 104);
    let w = noise(n * k, 6);
    for mut cpu in cpus() {
        for rows in [1, 3, 8, 21] {
            let x = with_outliers(rows, k, &[0, 17, 18, 103]);
            let (columns, expected) = dynamic_llm_int8(&x, &w, k);
            assert_eq!(columns, [0, 17, 18, 103], "{rows} rows");
            let list: Vec<u32> = columns.iter().map(|c| *c as u32).collect();
            let weight = rtn::int8_outliers(n, k, &w, &list).unwrap();
            let found = product(&mut cpu, &weight, &x, rows);
            let plain =
                product(&mut cpu, &rtn::quantize(WeightKind::Int8, rtn::Grid::Symmetric, n, k, &w).unwrap(), &x, rows);
            let (mut worst, mut error, mut plain_error) = (0.0f64, 0.0, 0.0);
            for (at, expected) in expected.iter().enumerate() {
                let terms = x[at / n * k..][..k].iter().zip(&w[at % n * k..][..k]).map(|(a, b)| f64::from(a * b));
                let (exact, size) = terms.fold((0.75, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                worst = worst.max((f64::from(found[at]) - 0.75 - expected).abs() / size);
                error += (f64::from(found[at]) - exact).powi(2);
                plain_error += (f64::from(plain[at]) - exact).powi(2);
            }
            assert!(worst < 3e-6, "{:?} {rows} rows: {worst}", cpu.isa());
            assert!(error < plain_error / 20.0, "{:?} {rows} rows: {error} {plain_error}", cpu.isa());
        }
    }
}

#[test]
fn a_weight_without_outlier_columns_is_plain_int8() {
    let (n, k) = (20, 50);
    let (w, x) = (noise(n * k, 7), noise(5 * k, 8));
    for mut cpu in cpus() {
        let none = product(&mut cpu, &rtn::int8_outliers(n, k, &w, &[]).unwrap(), &x, 5);
        let plain = rtn::quantize(WeightKind::Int8, rtn::Grid::Symmetric, n, k, &w).unwrap();
        assert_eq!(none, product(&mut cpu, &plain, &x, 5));
    }
}

#[test]
fn parts_of_one_input_join_where_they_share_it() {
    let k = 128;
    let (a, b) = (noise(20 * k, 1), noise(7 * k, 2));
    let both: Vec<f32> = a.iter().chain(&b).copied().collect();
    let join = |parts: [HostWeight; 2]| HostWeight::concat_rows(parts.to_vec());
    let block = |n, rows: &[f32]| rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, n, k, rows).unwrap();
    let parts = [
        [block(20, &a), block(7, &b)],
        [rtn::fp8_tensor(20, k, &a).unwrap(), rtn::fp8_tensor(7, k, &b).unwrap()],
        [rtn::fp8_static(20, k, &a, 0.1).unwrap(), rtn::fp8_static(7, k, &b, 0.1).unwrap()],
        [rtn::int8_outliers(20, k, &a, &[3, 9]).unwrap(), rtn::int8_outliers(7, k, &b, &[3, 9]).unwrap()],
    ];
    for [first, second] in parts {
        let joined = join([first.clone(), second.clone()]).unwrap();
        assert_eq!(values(&joined), [values(&first), values(&second)].concat());
        let mut row = vec![0.0; k];
        pack(&joined).unwrap().dequantize_row(25, &mut row).unwrap();
        assert_eq!(row, values(&joined)[25 * k..26 * k]);
    }
    // Scales per row, so joining and quantizing commute.
    let columns = [3, 9];
    let joined =
        join([rtn::int8_outliers(20, k, &a, &columns).unwrap(), rtn::int8_outliers(7, k, &b, &columns).unwrap()]);
    assert_eq!(joined.unwrap(), rtn::int8_outliers(27, k, &both, &columns).unwrap());
    let other_scale = join([rtn::fp8_static(20, k, &a, 0.1).unwrap(), rtn::fp8_static(7, k, &b, 0.2).unwrap()]);
    assert!(other_scale.unwrap_err().to_string().contains("input scales"));
    let other_columns =
        join([rtn::int8_outliers(20, k, &a, &[3, 9]).unwrap(), rtn::int8_outliers(7, k, &b, &[3, 8]).unwrap()]);
    assert!(other_columns.unwrap_err().to_string().contains("outlier columns"));
}

#[test]
fn what_only_calibration_knows_is_asked_for() {
    let rows = [0.0; 256];
    let ask = |kind| rtn::quantize(kind, rtn::Grid::Symmetric, 2, 128, &rows).unwrap_err().to_string();
    assert!(ask(WeightKind::Fp8Static).contains("calibrate"));
    assert!(ask(WeightKind::Int8Outliers { columns: 1 }).contains("calibration"));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(rtn::fp8_static(2, 128, &rows, scale).is_err(), "{scale}");
    }
    let too_many: Vec<u32> = (0..65).collect();
    for columns in [&[128][..], &[3, 3], &[4, 2], &too_many] {
        assert!(rtn::int8_outliers(2, 128, &rows, columns).is_err(), "{columns:?}");
    }
    let error = rtn::quantize(WeightKind::Fp8Block, rtn::Grid::Symmetric, 4, 64, &rows).unwrap_err().to_string();
    assert!(error.contains("64 inputs"), "{error}");
}

#[test]
fn packed_bytes_that_lie_about_their_inputs_are_refused() {
    let cpu = cpus().next().unwrap();
    let change = |weight: &PackedWeight, at: usize, value: u32| {
        let mut bytes = AlignedBytes::zeroed(weight.bytes.len());
        bytes.copy_from_slice(&weight.bytes);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        PackedWeight { spec: weight.spec, bytes: Bytes::from_memory(bytes) }
    };
    let outliers = pack(&rtn::int8_outliers(3, 40, &noise(120, 1), &[2, 30]).unwrap()).unwrap();
    let columns = OutlierLayout::new(&outliers.spec).unwrap().columns;
    assert!(cpu.weight(&outliers, Split::Replicated).is_ok());
    for value in [40, u32::MAX, 30, 31] {
        let damaged = change(&outliers, columns, value);
        assert!(cpu.weight(&damaged, Split::Replicated).is_err(), "{value}");
        assert!(damaged.dequantize_row(0, &mut [0.0; 40]).is_err(), "{value}");
    }
    let fixed = pack(&rtn::fp8_static(3, 40, &noise(120, 1), 0.5).unwrap()).unwrap();
    let at = PanelLayout::new(&fixed.spec).sums;
    assert!(cpu.weight(&fixed, Split::Replicated).is_ok());
    for value in [0.0, -0.5, f32::NAN, f32::INFINITY] {
        assert!(cpu.weight(&change(&fixed, at, value.to_bits()), Split::Replicated).is_err(), "{value}");
    }
}
