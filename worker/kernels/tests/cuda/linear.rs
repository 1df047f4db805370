//! Products against their formula in FP64, and against the CPU.

use half::bf16;
use modelprofile_kernels::{
    Backend, Device, GroupedActivations, HostTensor, HostWeight, Store, WeightKind,
    cpu::{Cpu, CpuOptions},
    cuda::layout::{GpuLayout, pack_gpu},
    format::e4m3,
    pack,
    rtn::{self, Grid},
};

use crate::device::{Arg, Gpu, Memory, NULL, Shape, activations, noise};

const LINEAR: &[&str] = &["linear"];

const KINDS: [WeightKind; 10] = [
    WeightKind::Bf16,
    WeightKind::Fp8,
    WeightKind::Fp8Static,
    WeightKind::Fp8Block,
    WeightKind::Int8,
    WeightKind::Int4 { group: 32 },
    WeightKind::Int4 { group: 64 },
    WeightKind::Int4 { group: 128 },
    WeightKind::Int8Group { group: 32 },
    WeightKind::Int8Group { group: 128 },
];

/// FP32 sums of up to 2,000 products in the order of mma, as part of `sum |x w|`: half an ulp for each of the few dozen
/// additions that follow each other.
const SUM_BUDGET: f64 = 4e-6;
/// The same with the CPU's sums, which have an error of their own.
const CPU_BUDGET: f64 = 8e-6;

// ------------------------------------------------------------------------------------------------------------ operands

/// A weight on the host, on the device, and its values.
struct Weight {
    kind: WeightKind,
    n: usize,
    k: usize,
    host: HostWeight,
    layout: GpuLayout,
    bytes: Memory<u8>,
    values: Vec<f32>,
}

impl Weight {
    fn new(gpu: &Gpu, kind: WeightKind, n: usize, k: usize) -> Self {
        let rows: Vec<f32> = noise(n * k, 7).iter().enumerate().map(|(i, v)| v * (1.0 + (i / k % 5) as f32)).collect();
        let host = match kind {
            WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, STATIC_SCALE),
            _ => rtn::quantize(kind, Grid::Minimum, n, k, &rows),
        }
        .unwrap();
        let (layout, bytes) = pack_gpu(&host).unwrap();
        let mut values = vec![0.0; n * k];
        for (row, out) in values.chunks_exact_mut(k).enumerate() {
            host.dequantize_row(row, out);
        }
        Self { kind, n, k, host, layout, bytes: gpu.upload(&bytes), values }
    }

    fn group(&self) -> Option<usize> {
        match self.kind {
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => Some(group.into()),
            _ => None,
        }
    }

    fn part(&self, part: modelprofile_kernels::cuda::layout::Part) -> Arg {
        self.bytes.at(part.offset)
    }
}

/// Activations of the tests of static scales are below 12.
const STATIC_SCALE: f32 = 12.0 / 448.0;

/// Activations as the kernels take them, and the values that their codes stand for.
struct Operand {
    codes: Memory<u8>,
    scales: Memory<f32>,
    values: Vec<f32>,
}

impl Operand {
    /// Quantized as `cpu/activations.rs` defines it, rows of the weight's pitch.
    fn new(gpu: &Gpu, w: &Weight, x: &[f32]) -> Self {
        let absmax = |x: &[f32]| x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (k, pitch) = (w.k, w.layout.k);
        let (mut codes, mut scales, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in x.chunks_exact(k) {
            let size = if w.kind == WeightKind::Fp8Block { 128 } else { k };
            let start = codes.len();
            for x in row.chunks_exact(size) {
                let scale = match w.kind {
                    WeightKind::Fp8 | WeightKind::Fp8Block => (absmax(x) / 448.0).max(1e-12),
                    WeightKind::Fp8Static => STATIC_SCALE,
                    WeightKind::Int8 => (absmax(x) / 127.0).max(1e-12),
                    _ => 1.0,
                };
                scales.push(scale);
                for v in x {
                    match w.kind {
                        WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Fp8Block => {
                            let code = e4m3::encode(v * (1.0 / scale));
                            codes.push(code);
                            values.push(scale * e4m3::decode(code));
                        }
                        WeightKind::Int8 => {
                            let code = (v * (1.0 / scale)).round_ties_even() as i8;
                            codes.push(code as u8);
                            values.push(scale * f32::from(code));
                        }
                        _ => {
                            let code = bf16::from_f32(*v);
                            codes.extend(code.to_le_bytes());
                            values.push(code.to_f32());
                        }
                    }
                }
            }
            let element = (codes.len() - start) / k;
            codes.resize(start + pitch * element, 0);
        }
        Self { codes: gpu.upload(&codes), scales: gpu.upload(&scales), values }
    }
}

// ------------------------------------------------------------------------------------------------------------- kernels

/// A kernel: its name, the rows it takes and whether more of them become more blocks.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    name: &'static str,
    rows: usize,
    any_rows: bool,
    /// Outputs of a block.
    strip: usize,
    threads: u32,
    shared: usize,
}

fn few(name: &'static str, rows: usize) -> Kernel {
    Kernel { name, rows, any_rows: false, strip: 32, threads: 256, shared: 0 }
}

fn two_strips(name: &'static str) -> Kernel {
    Kernel { name, rows: 16, any_rows: true, strip: 64, threads: 256, shared: 96 << 10 }
}

fn tiled(name: &'static str, rows: usize, planes: usize) -> Kernel {
    let stages = if planes == 1 { 4 } else { 3 };
    let shared = stages * (rows * 256 + planes * 8192) + (stages + 1) * 2048 + 32 * rows;
    Kernel { name, rows, any_rows: true, strip: 128, threads: 128, shared }
}

/// All kernels of a kind.
fn kernels(kind: WeightKind) -> Vec<Kernel> {
    match kind {
        WeightKind::Bf16 => vec![few("linear_bf16_m8", 8), few("linear_bf16_m32", 32)],
        WeightKind::Fp8 | WeightKind::Fp8Static => vec![few("linear_fp8_m8", 8), few("linear_fp8_m32", 32)],
        WeightKind::Fp8Block => vec![few("linear_fp8_block_m8", 8), few("linear_fp8_block_m32", 32)],
        WeightKind::Int8 | WeightKind::Int8Outliers { .. } => {
            vec![few("linear_int8_m8", 8), few("linear_int8_m32", 32)]
        }
        WeightKind::Int4 { .. } => vec![
            few("linear_int4_m8", 8),
            two_strips("linear_int4_m16"),
            tiled("linear_int4_m32", 32, 1),
            tiled("linear_int4_m64", 64, 1),
        ],
        WeightKind::Int8Group { .. } => {
            vec![few("linear_int8g_m8", 8), two_strips("linear_int8g_m16"), tiled("linear_int8g_m64", 64, 2)]
        }
    }
}

/// Rows that a kernel is tried with: one, its tile, around it.
fn rows_of(kernel: Kernel) -> Vec<usize> {
    if kernel.any_rows {
        vec![1, kernel.rows - 1, kernel.rows, kernel.rows + 1, 70]
    } else {
        vec![1, 2, kernel.rows / 2 + 1, kernel.rows]
    }
}

/// What a product is stored with.
#[derive(Clone, Copy)]
struct Storing<'a> {
    splits: usize,
    bias: Option<&'a [f32]>,
    /// Added to.
    before: Option<&'a [f32]>,
}

const PLAIN: Storing<'static> = Storing { splits: 1, bias: None, before: None };

fn product(gpu: &Gpu, kernel: Kernel, w: &Weight, x: &Operand, rows: usize, into: Storing<'_>) -> Vec<f32> {
    let out = into.before.map_or_else(|| gpu.output::<f32>(rows * w.n), |before| gpu.upload(before));
    let partial = gpu.output::<f32>(into.splits * rows * w.n);
    let bias = into.bias.map(|bias| gpu.upload(bias));
    let bias_arg = bias.as_ref().map_or(NULL, Arg::from);
    let add = u32::from(into.before.is_some());
    let mut args = vec![Arg::from(&out), Arg::from(&partial), Arg::from(&x.codes)];
    if w.group().is_some() {
        args.extend([w.part(w.layout.codes), w.part(w.layout.scales), w.part(w.layout.rows)]);
    } else if w.kind == WeightKind::Bf16 {
        args.push(w.part(w.layout.codes));
    } else {
        let scales = if w.kind == WeightKind::Fp8Block { w.layout.scales } else { w.layout.rows };
        args.extend([Arg::from(&x.scales), w.part(w.layout.codes), w.part(scales)]);
    }
    args.extend([bias_arg, rows.into(), w.n.into(), w.layout.k.into()]);
    args.extend(w.group().map(Arg::from));
    args.push(add.into());
    let grid = if kernel.any_rows {
        (w.n.div_ceil(kernel.strip), rows.div_ceil(kernel.rows), into.splits)
    } else {
        (w.n.div_ceil(kernel.strip), into.splits, 1)
    };
    gpu.launch(kernel.name, Shape { grid, threads: kernel.threads, shared: kernel.shared }, &args);
    if into.splits > 1 {
        let shape = Shape { grid: (w.n.div_ceil(256), rows, 1), threads: 256, shared: 0 };
        gpu.launch("linear_reduce", shape, args![&out, &partial, bias_arg, w.n, into.splits, add]);
    }
    gpu.download(&out)
}

/// `sum x w` and `sum |x w|`.
fn formula(w: &Weight, x: &[f32], row: usize, output: usize) -> (f64, f64) {
    let pairs = x[row * w.k..(row + 1) * w.k].iter().zip(&w.values[output * w.k..]);
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
}

/// Holds a product against the formula; `extra` is what bias and residual add.
fn check(w: &Weight, x: &Operand, found: &[f32], extra: impl Fn(usize, usize) -> f64, what: &str) {
    for (row, found) in found.chunks_exact(w.n).enumerate() {
        for (output, found) in found.iter().enumerate() {
            let (sum, size) = formula(w, &x.values, row, output);
            let more = extra(row, output);
            let error = (f64::from(*found) - sum - more).abs() / (size + more.abs());
            assert!(error <= SUM_BUDGET, "{what} {:?} {}x{} [{row}, {output}]: {error:e}", w.kind, w.n, w.k);
        }
    }
}

/// N that fills no strip, no block, and several; K of a few units, of more than the four stages of the GEMM's pipeline, and
/// that ends within a chunk.
fn shapes(kind: WeightKind) -> Vec<(usize, usize)> {
    match kind {
        WeightKind::Int4 { group: 128 } | WeightKind::Int8Group { group: 128 } | WeightKind::Fp8Block => {
            vec![(1, 128), (33, 1152), (130, 640)]
        }
        WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
            let group = usize::from(group);
            vec![(1, group), (33, 1024 + 3 * group), (130, 640 + group)]
        }
        _ => vec![(1, 16), (33, 1168), (70, 272)],
    }
}

// --------------------------------------------------------------------------------------------------------------- tests

#[test]
fn every_kernel_is_the_formula_for_every_kind_and_shape() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        for (n, k) in shapes(kind) {
            let w = Weight::new(&gpu, kind, n, k);
            for kernel in kernels(kind) {
                for rows in rows_of(kernel) {
                    let x = Operand::new(&gpu, &w, &activations(rows * k, rows as u32));
                    let found = product(&gpu, kernel, &w, &x, rows, PLAIN);
                    check(&w, &x, &found, |_, _| 0.0, &format!("{} {rows} rows", kernel.name));
                }
            }
        }
    }
}

#[test]
fn k_is_split_over_blocks_with_bias_and_residual() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        let (n, k) = shapes(kind)[1];
        let w = Weight::new(&gpu, kind, n, k);
        for kernel in kernels(kind) {
            let rows = kernel.rows.min(17);
            let x = Operand::new(&gpu, &w, &activations(rows * k, 11));
            let (bias, before) = (noise(n, 12), noise(rows * n, 13));
            // More parts than there are steps leave some parts with nothing.
            for splits in [1, 2, 3, 40] {
                for (bias, before) in [(None, None), (Some(&bias[..]), None), (Some(&bias[..]), Some(&before[..]))] {
                    let found = product(&gpu, kernel, &w, &x, rows, Storing { splits, bias, before });
                    let extra = |row: usize, output: usize| {
                        let added = before.map_or(0.0, |before| f64::from(before[row * n + output]));
                        bias.map_or(0.0, |bias| f64::from(bias[output])) + added
                    };
                    check(&w, &x, &found, extra, &format!("{} {splits} splits", kernel.name));
                }
            }
        }
    }
}

#[test]
fn a_one_picks_a_column_of_the_weight() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        let (n, k) = shapes(kind)[1];
        let w = Weight::new(&gpu, kind, n, k);
        for kernel in kernels(kind) {
            for first in (0..k).step_by(k / 3) {
                // A column of its own for each row; not a power of two, so that rows cannot be mistaken.
                let mut x = vec![0.0; kernel.rows * k];
                let column = |row: usize| (first + row * 37) % k;
                for (row, x) in x.chunks_exact_mut(k).enumerate() {
                    x[column(row)] = 1.0 + (row % 7) as f32 / 4.0;
                }
                let x = Operand::new(&gpu, &w, &x);
                let found = product(&gpu, kernel, &w, &x, kernel.rows, PLAIN);
                for (row, found) in found.chunks_exact(n).enumerate() {
                    for (output, found) in found.iter().enumerate() {
                        let factor = x.values[row * k + column(row)];
                        let expected = factor * w.values[output * k + column(row)];
                        // Scale and minimum of a group cancel in part: the rounding is that of the larger one.
                        let size = w.values[output * k..(output + 1) * k].iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        let error = (found - expected).abs() / (factor * size);
                        assert!(error < 1e-6, "{} {kind:?} [{row}, {output}]: {found}, not {expected}", kernel.name);
                    }
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_cpu() {
    let gpu = Gpu::new(LINEAR);
    let options = CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Bf16 };
    let mut cpu = Cpu::new(options).unwrap();
    for kind in KINDS {
        let (n, k) = shapes(kind)[1];
        let w = Weight::new(&gpu, kind, n, k);
        let rows = 8;
        let values = activations(rows * k, 21);
        let x = Operand::new(&gpu, &w, &values);
        let packed = pack(&w.host).unwrap();
        let input = cpu.upload(&HostTensor { rows, width: k, data: values }).unwrap();
        let mut out = cpu.buffer(rows, n).unwrap();
        cpu.linear(rows, &input, &packed, None, Store::Overwrite, &mut out).unwrap();
        let mut of_cpu = HostTensor::default();
        cpu.download(&out, rows, &mut of_cpu).unwrap();
        for kernel in kernels(kind) {
            let found = product(&gpu, kernel, &w, &x, rows, PLAIN);
            for (i, (found, of_cpu)) in found.iter().zip(&of_cpu.data).enumerate() {
                let (_, size) = formula(&w, &x.values, i / n, i % n);
                let error = f64::from((found - of_cpu).abs()) / size;
                assert!(error <= CPU_BUDGET, "{} {kind:?} [{}, {}]: {error:e}", kernel.name, i / n, i % n);
            }
        }
    }
}

#[test]
fn a_row_is_bit_for_bit_the_same_beside_others_and_damage_stays_in_its_row() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        let (n, k) = shapes(kind)[1];
        let w = Weight::new(&gpu, kind, n, k);
        for kernel in kernels(kind) {
            let rows = kernel.rows;
            let mut values = activations(rows * k, 31);
            // BF16 has NaN; codes of the other formats cannot be damaged.
            let damaged = (w.group().is_some() || kind == WeightKind::Bf16).then_some(rows / 2);
            if let Some(row) = damaged {
                values[row * k + k / 2] = f32::NAN;
            }
            let together = product(&gpu, kernel, &w, &Operand::new(&gpu, &w, &values), rows, PLAIN);
            for row in [0, rows / 2, rows - 1] {
                let x = Operand::new(&gpu, &w, &values[row * k..(row + 1) * k]);
                let alone = product(&gpu, kernel, &w, &x, 1, PLAIN);
                let found = &together[row * n..(row + 1) * n];
                if Some(row) == damaged {
                    assert!(found.iter().all(|v| v.is_nan()), "{} {kind:?}: damage is hidden", kernel.name);
                } else {
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(found), bits(&alone), "{} {kind:?} row {row}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn zeros_times_anything_are_zeros() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        let (n, k) = shapes(kind)[2];
        let w = Weight::new(&gpu, kind, n, k);
        for kernel in kernels(kind) {
            let x = Operand::new(&gpu, &w, &vec![0.0; 3 * k]);
            assert!(product(&gpu, kernel, &w, &x, 3, PLAIN).iter().all(|v| *v == 0.0), "{} {kind:?}", kernel.name);
        }
    }
}

/// LLM.int8: the outlier columns as a BF16 product on top.
#[test]
fn outlier_columns_are_added_in_bf16() {
    let gpu = Gpu::new(LINEAR);
    let (rows, n, k) = (5, 33, 272);
    let columns = [3u32, 17, 18, 250, 271];
    let host = rtn::int8_outliers(n, k, &noise(n * k, 41), &columns).unwrap();
    let (layout, bytes) = pack_gpu(&host).unwrap();
    let mut w = Weight::new(&gpu, WeightKind::Int8, n, k);
    (w.layout, w.bytes) = (layout, gpu.upload(&bytes));
    for (row, out) in w.values.chunks_exact_mut(k).enumerate() {
        host.dequantize_row(row, out);
    }
    let mut values = activations(rows * k, 42);
    let (mut rest, mut picked) = (values.clone(), vec![0u16; rows * layout.outlier_k]);
    for row in 0..rows {
        for (index, column) in columns.iter().enumerate() {
            let at = row * k + *column as usize;
            values[at] *= 50.0;
            rest[at] = 0.0;
            picked[row * layout.outlier_k + index] = bf16::from_f32(values[at]).to_bits();
        }
    }
    let mut x = Operand::new(&gpu, &w, &rest);
    let before = product(&gpu, few("linear_int8_m8", 8), &w, &x, rows, PLAIN);
    let out = gpu.upload(&before);
    let picked = gpu.upload(&picked);
    let outliers = w.part(layout.outliers);
    let shape = Shape { grid: (n.div_ceil(32), 1, 1), threads: 256, shared: 0 };
    let args = args![&out, NULL, &picked, outliers, NULL, rows, n, layout.outlier_k, 1u32];
    gpu.launch("linear_bf16_m8", shape, args);
    for row in 0..rows {
        for column in columns {
            let at = row * k + column as usize;
            x.values[at] = bf16::from_f32(values[at]).to_f32();
        }
    }
    check(&w, &x, &gpu.download(&out), |_, _| 0.0, "outliers");
}

/// Half of the step of BF16 at a value: 2^-8 of its power of two.
fn half_ulp(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0x7f80_0000) / 256.0 + 1e-9
}

#[test]
fn group_wise_weights_are_unpacked_to_the_nearest_bf16() {
    let gpu = Gpu::new(LINEAR);
    for kind in KINDS {
        for (n, k) in shapes(kind) {
            let w = Weight::new(&gpu, kind, n, k);
            let Some(group) = w.group() else { continue };
            let name = if w.layout.planes() == 1 { "unpack_bf16_int4" } else { "unpack_bf16_int8g" };
            // One block walks all units, or each has its own.
            for blocks in [1, (k / 32).div_ceil(8)] {
                let out = gpu.output::<u16>(n * k);
                let shape = Shape { grid: (n.div_ceil(32), blocks, 1), threads: 256, shared: 0 };
                let parts = [w.layout.codes, w.layout.scales, w.layout.rows].map(|part| w.part(part));
                gpu.launch(name, shape, args![&out, parts[0], parts[1], parts[2], n, k, group]);
                for (i, (found, value)) in gpu.download(&out).iter().zip(&w.values).enumerate() {
                    let found = bf16::from_bits(*found).to_f32();
                    // s q + m may have been rounded once to FP32 instead of twice before it is rounded to BF16.
                    let budget = half_ulp(*value) * 1.001;
                    assert!((found - value).abs() <= budget, "{kind:?} [{}, {}]: {found}, not {value}", i / k, i % k);
                }
            }
        }
    }
}

#[test]
fn a_product_of_the_library_gets_scales_bias_and_residual() {
    let gpu = Gpu::new(LINEAR);
    for (rows, n) in [(1, 1usize), (3, 70), (2, 1030), (2, 128)] {
        let pitch = n.next_multiple_of(16);
        let integers: Vec<i32> = noise(rows * pitch, 51).iter().map(|v| (v * 1e6) as i32).collect();
        let floats = noise(rows * pitch, 52);
        let (row_scales, column_scales, bias) = (noise(rows, 53), noise(n, 54), noise(n, 55));
        let before = noise(rows * n, 56);
        let scales = [gpu.upload(&row_scales), gpu.upload(&column_scales), gpu.upload(&bias)];
        let (on_device, plain) = (gpu.upload(&integers), gpu.upload(&floats));
        let products = [
            ("scale_store_int32", Arg::from(&on_device), integers.iter().map(|v| *v as f32).collect::<Vec<f32>>()),
            ("scale_store_f32", Arg::from(&plain), floats.clone()),
        ];
        for (name, product, values) in products {
            // Which of row scales, column scales, bias and residual there are.
            for with in 0..16 {
                let has = |bit: usize| with >> bit & 1 == 1;
                let out = gpu.upload(&before);
                let pointers: Vec<Arg> = (0..3).map(|i| if has(i) { Arg::from(&scales[i]) } else { NULL }).collect();
                let args = args![&out, product, pointers[0], pointers[1], pointers[2], n, pitch, u32::from(has(3))];
                gpu.launch(name, Shape { grid: (n.div_ceil(1024), rows, 1), threads: 256, shared: 0 }, args);
                for (i, found) in gpu.download(&out).iter().enumerate() {
                    let (row, column) = (i / n, i % n);
                    let factor = |has: bool, scale: f32| if has { f64::from(scale) } else { 1.0 };
                    let term = |has: bool, value: f32| if has { f64::from(value) } else { 0.0 };
                    let expected = f64::from(values[row * pitch + column])
                        * factor(has(0), row_scales[row])
                        * factor(has(1), column_scales[column])
                        + term(has(2), bias[column])
                        + term(has(3), before[i]);
                    let budget = 4e-7 * (expected.abs() + f64::from(values[row * pitch + column].abs()) + 2.0);
                    assert!((f64::from(*found) - expected).abs() < budget, "{name} {with:#b} [{row}, {column}]");
                }
            }
        }
    }
}
