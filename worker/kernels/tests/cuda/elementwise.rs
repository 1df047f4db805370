//! Norms, gated activations and quantization; embeddings; gathers and block copies.

use half::{bf16, f16};
use modelprofile_kernels::{
    Backend, Device, GroupedActivations, HostTensor, HostWeight, Split, StepPlan, WeightKind,
    cpu::{Cpu, CpuOptions},
    format::e4m3,
    pack,
    rtn::{self, Grid},
};

use crate::device::{Arg, Gpu, Memory, Shape, activations, noise, worst};

const ROWS: &[&str] = &["rows"];

/// Rows and width: one value per lane and less, a warp's end, several walks of a block.
/// The last is wider than what a block of the gated activation keeps in registers.
const SHAPES: [(usize, usize); 6] = [(1, 4), (3, 132), (2, 576), (5, 1024), (2, 2308), (1, 14596)];
const EPSILON: f32 = 1e-5;
/// FP32 sums in another order than the reference's FP64, and one division and root: 2^-20.
const NORM_BUDGET: f32 = 1e-6;
/// __expf is off by 2 ulp and 1.2 more per unit of its argument, which is at most 12 here; __fdividef by 2 ulp.
const SILU_BUDGET: f32 = 3e-6;

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

/// What precedes a quantization: the kernels' prefix, their inputs, and the values that are quantized.
struct Source {
    prefix: &'static str,
    inputs: Vec<Memory<f32>>,
    /// Scalars behind width and pitch.
    scalars: Vec<Arg>,
    values: Vec<f32>,
    /// Error of the values themselves.
    budget: f32,
}

impl Source {
    fn plain(gpu: &Gpu, rows: usize, width: usize) -> Self {
        let x = activations(rows * width, 1);
        Self { prefix: "quantize", inputs: vec![gpu.upload(&x)], scalars: vec![], values: x, budget: 0.0 }
    }

    fn norm(gpu: &Gpu, rows: usize, width: usize) -> Self {
        let mut x = activations(rows * width, 2);
        // The last row is so quiet that epsilon counts.
        x[(rows - 1) * width..].iter_mut().for_each(|v| *v *= 1e-3);
        let gain: Vec<f32> = noise(width, 3).iter().map(|v| 1.0 + 0.5 * v).collect();
        let values = x
            .chunks_exact(width)
            .flat_map(|row| {
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                row.iter().zip(&gain).map(move |(v, g)| (f64::from(*v) * factor * f64::from(*g)) as f32)
            })
            .collect();
        let inputs = vec![gpu.upload(&x), gpu.upload(&gain)];
        Self { prefix: "norm_quantize", inputs, scalars: vec![EPSILON.into()], values, budget: NORM_BUDGET }
    }

    fn silu(gpu: &Gpu, rows: usize, width: usize) -> Self {
        let x = activations(rows * 2 * width, 4);
        let values = x
            .chunks_exact(2 * width)
            .flat_map(|row| {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(g, u)| {
                    let (g, u) = (f64::from(*g), f64::from(*u));
                    (g / (1.0 + (-g).exp()) * u) as f32
                })
            })
            .collect();
        Self { prefix: "silu_quantize", inputs: vec![gpu.upload(&x)], scalars: vec![], values, budget: SILU_BUDGET }
    }

    fn all(gpu: &Gpu, rows: usize, width: usize) -> [Self; 3] {
        [Self::plain(gpu, rows, width), Self::norm(gpu, rows, width), Self::silu(gpu, rows, width)]
    }

    /// Launches the form of this source: outputs, inputs, sides, scalars.
    fn launch(&self, gpu: &Gpu, form: &str, rows: usize, outputs: &[Arg], sides: &[Arg]) {
        let inputs: Vec<Arg> = self.inputs.iter().map(Arg::from).collect();
        let args = [outputs, &inputs, sides, &self.scalars].concat();
        gpu.launch(&format!("{}_{form}", self.prefix), Shape::blocks(rows), &args);
    }
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// A value that was coded: the nearest of its format, up to the error that the value itself may have.
fn is_nearest(value: f32, decoded: f32, half_step: f32, budget: f32) -> bool {
    (value - decoded).abs() <= half_step * 1.001 + value.abs() * budget * 2.0 + f32::MIN_POSITIVE
}

fn e4m3_half_step(value: f32, scale: f32) -> f32 {
    (value.abs() / 16.0).max(scale * 2.0f32.powi(-10))
}

#[test]
fn norms_and_gated_activations_are_those_of_the_definition_and_of_the_cpu() {
    let gpu = Gpu::new(ROWS);
    let mut cpu = cpu();
    for (rows, width) in SHAPES {
        let norm = Source::norm(&gpu, rows, width);
        let (x, gain) = (&norm.inputs[0], &norm.inputs[1]);
        let out = gpu.output::<f32>(rows * width);
        gpu.launch("rms_norm", Shape::blocks(rows), args![&out, x, gain, width, EPSILON]);
        let found = gpu.download(&out);
        assert!(worst(&found, &norm.values, 1e-3) < NORM_BUDGET, "{rows} x {width}");
        let mut of_cpu = cpu.buffer(rows, width).unwrap();
        let (x, gain) = (gpu.download(x), gpu.download(gain));
        let (x, gain) = (matrix(&cpu, rows, width, &x), matrix(&cpu, 1, width, &gain));
        cpu.rms_norm(rows, &x, &gain, EPSILON, &mut of_cpu).unwrap();
        assert!(worst(&found, &values(&cpu, &of_cpu, rows), 1e-3) < 2.0 * NORM_BUDGET, "{rows} x {width}");

        let silu = Source::silu(&gpu, rows, width);
        let out = gpu.output::<f32>(rows * width);
        gpu.launch("gated_silu", Shape::blocks(rows), args![&out, &silu.inputs[0], width]);
        let found = gpu.download(&out);
        assert!(worst(&found, &silu.values, 1e-3) < SILU_BUDGET, "{rows} x {width}");
        let x = matrix(&cpu, rows, 2 * width, &gpu.download(&silu.inputs[0]));
        cpu.gated_silu(rows, &x, &mut of_cpu).unwrap();
        assert!(worst(&found, &values(&cpu, &of_cpu, rows), 1e-3) < 2.0 * SILU_BUDGET, "{rows} x {width}");
    }
}

#[test]
fn a_norm_may_overwrite_its_input() {
    let gpu = Gpu::new(ROWS);
    let norm = Source::norm(&gpu, 2, 576);
    let (x, gain) = (&norm.inputs[0], &norm.inputs[1]);
    gpu.launch("rms_norm", Shape::blocks(2), args![x, x, gain, 576usize, EPSILON]);
    assert!(worst(&gpu.download(x), &norm.values, 1e-3) < NORM_BUDGET);
}

#[test]
fn far_negative_gates_give_nearly_nothing() {
    let gpu = Gpu::new(ROWS);
    let x = gpu.upload(&[-1e30f32, -200.0, -90.0, 90.0, 2.0, 2.0, 2.0, 2.0]);
    let out = gpu.output::<f32>(4);
    gpu.launch("gated_silu", Shape::blocks(1), args![&out, &x, 4usize]);
    let out = gpu.download(&out);
    assert!(out[1].abs() < 1e-30 && out[2].abs() < 1e-30, "{out:?}");
    assert!(out[0].is_finite() && (out[3] - 180.0).abs() < 1e-3, "{out:?}");
}

#[test]
fn bf16_rows_are_rounded_to_even_and_padded_with_zeros() {
    let gpu = Gpu::new(ROWS);
    for (rows, width) in SHAPES {
        for source in Source::all(&gpu, rows, width) {
            let pitch = width.next_multiple_of(16);
            let codes = gpu.output::<u16>(rows * pitch);
            source.launch(&gpu, "bf16", rows, args![&codes], args![width, pitch]);
            for (row, expected) in gpu.download(&codes).chunks_exact(pitch).zip(source.values.chunks_exact(width)) {
                assert!(row[width..].iter().all(|code| *code == 0), "{} {width}", source.prefix);
                for (code, value) in row.iter().zip(expected) {
                    let decoded = bf16::from_bits(*code).to_f32();
                    assert!(is_nearest(*value, decoded, value.abs() / 256.0, source.budget), "{value} {decoded}");
                    if source.budget == 0.0 {
                        assert_eq!(*code, bf16::from_f32(*value).to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_bytes_have_the_scale_of_their_largest_magnitude_and_the_nearest_codes() {
    let gpu = Gpu::new(ROWS);
    for (rows, width) in SHAPES {
        for source in Source::all(&gpu, rows, width) {
            let pitch = width.next_multiple_of(16);
            for (form, largest) in [("e4m3", e4m3::MAX), ("int8", 127.0)] {
                let codes = gpu.output::<u8>(rows * pitch);
                let scales = gpu.output::<f32>(rows);
                source.launch(&gpu, form, rows, args![&codes, &scales], args![width, pitch]);
                let (codes, scales) = (gpu.download(&codes), gpu.download(&scales));
                for (row, expected) in source.values.chunks_exact(width).enumerate() {
                    let (scale, codes) = (scales[row], &codes[row * pitch..(row + 1) * pitch]);
                    let of_definition = (absmax(expected) / largest).max(1e-12);
                    assert!((scale / of_definition - 1.0).abs() <= source.budget, "{scale} {of_definition}");
                    assert!(codes[width..].iter().all(|code| *code == 0), "{} {form}", source.prefix);
                    for (code, value) in codes.iter().zip(expected) {
                        let (decoded, half_step, exact) = if form == "e4m3" {
                            let exact = e4m3::encode(value * (1.0 / scale));
                            (scale * e4m3::decode(*code), e4m3_half_step(*value, scale), exact)
                        } else {
                            let exact = (value * (1.0 / scale)).round_ties_even() as i8 as u8;
                            (scale * f32::from(*code as i8), scale / 2.0, exact)
                        };
                        assert!(is_nearest(*value, decoded, half_step, source.budget), "{form}: {value} {decoded}");
                        if source.budget == 0.0 {
                            assert_eq!(*code, exact, "{form}: {value}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_given_scale_saturates() {
    let gpu = Gpu::new(ROWS);
    for (rows, width) in SHAPES {
        for source in Source::all(&gpu, rows, width) {
            let pitch = width.next_multiple_of(16);
            // A quarter of the range of the values.
            let scale = absmax(&source.values) / e4m3::MAX / 4.0;
            let (codes, on_device) = (gpu.output::<u8>(rows * pitch), gpu.upload(&[scale]));
            source.launch(&gpu, "e4m3_static", rows, args![&codes, &on_device], args![width, pitch]);
            let codes = gpu.download(&codes);
            let mut saturated = 0;
            for (row, expected) in codes.chunks_exact(pitch).zip(source.values.chunks_exact(width)) {
                assert!(row[width..].iter().all(|code| *code == 0));
                for (code, value) in row.iter().zip(expected) {
                    let decoded = scale * e4m3::decode(*code);
                    if value.abs() > scale * e4m3::MAX {
                        saturated += 1;
                        assert_eq!(decoded.abs(), scale * e4m3::MAX, "{value}");
                    }
                    let kept = value.clamp(-scale * e4m3::MAX, scale * e4m3::MAX);
                    assert!(is_nearest(kept, decoded, e4m3_half_step(kept, scale), source.budget), "{value} {decoded}");
                }
            }
            assert!(saturated > 0, "{} {rows} x {width}", source.prefix);
        }
    }
}

#[test]
fn blocks_of_128_have_scales_of_their_own() {
    let gpu = Gpu::new(ROWS);
    for (rows, width) in [(1, 128), (3, 384), (2, 1280)] {
        for source in Source::all(&gpu, rows, width) {
            let codes = gpu.output::<u8>(rows * width);
            let scales = gpu.output::<f32>(rows * width / 128);
            source.launch(&gpu, "e4m3_block", rows, args![&codes, &scales], args![width]);
            let (codes, scales) = (gpu.download(&codes), gpu.download(&scales));
            for (block, expected) in source.values.chunks_exact(128).enumerate() {
                let scale = scales[block];
                assert!((scale / (absmax(expected) / e4m3::MAX) - 1.0).abs() <= source.budget, "{block}");
                for (code, value) in codes[block * 128..].iter().zip(expected) {
                    let decoded = scale * e4m3::decode(*code);
                    assert!(is_nearest(*value, decoded, e4m3_half_step(*value, scale), source.budget), "{value}");
                }
            }
        }
    }
}

#[test]
fn zeros_have_the_smallest_scale_and_nan_shows() {
    let gpu = Gpu::new(ROWS);
    let mut x = vec![0.0f32; 2 * 64];
    x[64 + 7] = f32::NAN;
    x[64 + 9] = 2.0;
    let x = gpu.upload(&x);
    for form in ["e4m3", "int8"] {
        let (codes, scales) = (gpu.output::<u8>(2 * 64), gpu.output::<f32>(2));
        gpu.launch(&format!("quantize_{form}"), Shape::blocks(2), args![&codes, &scales, &x, 64usize, 64usize]);
        let (codes, scales) = (gpu.download(&codes), gpu.download(&scales));
        assert_eq!(scales[0], 1e-12);
        assert!(codes[..64].iter().all(|code| *code == 0));
        if form == "e4m3" {
            assert!(e4m3::decode(codes[64 + 7]).is_nan());
            assert_eq!(codes[64 + 9], 0x7e);
        }
    }
}

#[test]
fn outlier_columns_are_split_off() {
    let gpu = Gpu::new(ROWS);
    let (rows, width) = (3, 580);
    let pitch = 592;
    let mut x = activations(rows * width, 5);
    for columns in [vec![], vec![0u32], vec![3, 4, 5, 6, 300, 579]] {
        for (row, values) in x.chunks_exact_mut(width).enumerate() {
            for column in &columns {
                values[*column as usize] = 1000.0 + row as f32;
            }
        }
        let picked_pitch = 16;
        let on_device = gpu.upload(&x);
        let list = gpu.upload(if columns.is_empty() { &[u32::MAX] } else { &columns[..] });
        let (codes, scales) = (gpu.output::<u8>(rows * pitch), gpu.output::<f32>(rows));
        let picked = gpu.output::<u16>(rows * picked_pitch);
        gpu.launch(
            "quantize_int8_outliers",
            Shape { shared: width, ..Shape::blocks(rows) },
            args![&codes, &scales, &picked, &on_device, &list, width, pitch, columns.len(), picked_pitch],
        );
        let (codes, scales, picked) = (gpu.download(&codes), gpu.download(&scales), gpu.download(&picked));
        for (row, values) in x.chunks_exact(width).enumerate() {
            let mut rest = values.to_vec();
            for column in &columns {
                rest[*column as usize] = 0.0;
            }
            assert_eq!(scales[row], (absmax(&rest) / 127.0).max(1e-12));
            let expected: Vec<u8> =
                rest.iter().map(|v| (v * (1.0 / scales[row])).round_ties_even() as i8 as u8).collect();
            assert_eq!(codes[row * pitch..row * pitch + width], expected, "{columns:?}");
            assert!(codes[row * pitch + width..(row + 1) * pitch].iter().all(|code| *code == 0));
            let mut outliers = vec![0u16; picked_pitch];
            for (outlier, column) in outliers.iter_mut().zip(&columns) {
                *outlier = bf16::from_f32(values[*column as usize]).to_bits();
            }
            assert_eq!(picked[row * picked_pitch..(row + 1) * picked_pitch], outliers, "{columns:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------------------ embeddings

/// Rows of `pitch` codes from rows of `k`, zeros behind.
fn pitched<T: Copy + Default>(codes: &[T], k: usize, pitch: usize) -> Vec<T> {
    codes
        .chunks_exact(k)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(T::default(), pitch - k)))
        .collect()
}

/// A group-wise weight as products on the GPU read it: strips of 32 rows, units of 32 inputs, planes of nibbles.
fn group_wise(n: usize, k: usize, bits: u8, group: usize, codes: &[u8], scales: [&[f16]; 2]) -> (Vec<u8>, Vec<u8>) {
    let strips = n.div_ceil(32);
    let planes = usize::from(bits) / 4;
    let mut out = vec![0u8; strips * (k / 32) * 512 * planes];
    let mut out_scales = vec![0u8; strips * (k / group) * 128];
    for row in 0..n {
        for input in 0..k {
            let unit = ((row / 32) * (k / 32) + input / 32) * 512 * planes;
            let word = ((row % 8) * 4 + (input % 32) / 8) * 4 + (row % 32) / 8;
            let bit = 4 * (input % 8 / 2) + 16 * (input % 2);
            for plane in 0..planes {
                let nibble = codes[row * k + input] >> (4 * plane) & 15;
                out[unit + plane * 512 + word * 4 + bit / 8] |= nibble << (bit % 8);
            }
        }
        for index in 0..k / group {
            let at = ((row / 32) * (k / group) + index) * 128 + row % 8 * 16 + (row % 32) / 8 * 2;
            for (which, values) in scales.iter().enumerate() {
                let bytes = values[row * (k / group) + index].to_bits().to_le_bytes();
                out_scales[at + 8 * which..at + 8 * which + 2].copy_from_slice(&bytes);
            }
        }
    }
    (out, out_scales)
}

#[test]
fn embeddings_are_the_dequantized_rows_bit_by_bit() {
    let gpu = Gpu::new(ROWS);
    let mut cpu = cpu();
    let kinds = [
        WeightKind::Bf16,
        WeightKind::Fp8,
        WeightKind::Fp8Block,
        WeightKind::Int8,
        WeightKind::Int4 { group: 32 },
        WeightKind::Int4 { group: 128 },
        WeightKind::Int8Group { group: 64 },
    ];
    for (vocab, k) in [(37, 128), (70, 2176)] {
        let tokens = [0, 31, 32, vocab as u32 - 1, 5];
        for kind in kinds {
            let host = rtn::quantize(kind, Grid::Minimum, vocab, k, &activations(vocab * k, 6)).unwrap();
            let pitch = k + 16;
            let on_device = gpu.upload(&tokens);
            let out = gpu.output::<f32>(tokens.len() * k);
            let blocks = Shape::blocks(tokens.len());
            match &host {
                HostWeight::Bf16 { values, .. } => {
                    let bits: Vec<u16> = values.iter().map(|v| v.to_bits()).collect();
                    let table = gpu.upload(&pitched(&bits, k, pitch));
                    gpu.launch("embed_bf16", blocks, args![&out, &on_device, &table, vocab, 0u32, f32::NAN, k, pitch]);
                }
                HostWeight::Fp8 { codes, scales, .. } => {
                    let (codes, scales) = (gpu.upload(&pitched(codes, k, pitch)), gpu.upload(scales));
                    gpu.launch(
                        "embed_e4m3",
                        blocks,
                        args![&out, &on_device, &codes, &scales, vocab, 0u32, f32::NAN, k, pitch],
                    );
                }
                HostWeight::Fp8Block { codes, scales, .. } => {
                    let (codes, scales) = (gpu.upload(&pitched(codes, k, pitch)), gpu.upload(scales));
                    gpu.launch(
                        "embed_e4m3_block",
                        blocks,
                        args![&out, &on_device, &codes, &scales, vocab, 0u32, f32::NAN, k, pitch],
                    );
                }
                HostWeight::Int8 { codes, scales, .. } => {
                    let codes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
                    let (codes, scales) = (gpu.upload(&pitched(&codes, k, pitch)), gpu.upload(scales));
                    gpu.launch(
                        "embed_int8",
                        blocks,
                        args![&out, &on_device, &codes, &scales, vocab, 0u32, f32::NAN, k, pitch],
                    );
                }
                HostWeight::Grouped { bits, group, codes, scales, mins, row_scales, .. } => {
                    let (codes, scales) = group_wise(vocab, k, *bits, *group, codes, [scales, mins]);
                    let (codes, scales, row_scales) = (gpu.upload(&codes), gpu.upload(&scales), gpu.upload(row_scales));
                    let planes = usize::from(*bits) / 4;
                    let args =
                        args![&out, &on_device, &codes, &scales, &row_scales, vocab, 0u32, f32::NAN, k, *group, planes];
                    gpu.launch("embed_grouped", blocks, args);
                }
                _ => unreachable!("not among the kinds"),
            }
            let found = gpu.download(&out);
            let mut expected = vec![0.0; k];
            for (token, row) in tokens.iter().zip(found.chunks_exact(k)) {
                host.dequantize_row(*token as usize, &mut expected);
                assert_eq!(row, expected, "{kind:?} token {token}");
            }
            let mut of_cpu = cpu.buffer(tokens.len(), k).unwrap();
            let plan = StepPlan {
                tokens: tokens.to_vec(),
                sequences: vec![modelprofile_kernels::SequenceSpan {
                    first_row: 0,
                    rows: tokens.len(),
                    first_position: 0,
                    blocks: vec![0],
                }],
                logit_rows: vec![],
            };
            let step = cpu.begin(&plan).unwrap();
            let weight = cpu.weight(&pack(&host).unwrap(), Split::Replicated).unwrap();
            cpu.embed(&step, &weight, &mut of_cpu).unwrap();
            assert_eq!(found, values(&cpu, &of_cpu, tokens.len()), "{kind:?}");
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_gives_nan() {
    let gpu = Gpu::new(ROWS);
    let table = gpu.upload(&[0u16; 4 * 64]);
    let tokens = gpu.upload(&[4u32, u32::MAX, 3]);
    let out = gpu.output::<f32>(3 * 64);
    let args = args![&out, &tokens, &table, 4usize, 0u32, f32::NAN, 64usize, 64usize];
    gpu.launch("embed_bf16", Shape::blocks(3), args);
    let out = gpu.download(&out);
    assert!(out[..128].iter().all(|v| v.is_nan()) && out[128..].iter().all(|v| *v == 0.0));
}

#[test]
fn a_part_of_a_table_gives_its_tokens_and_zeros_for_those_of_others() {
    let gpu = Gpu::new(ROWS);
    let (first, k) = (40u32, 128);
    let tokens = [39u32, 40, 43, 44, 0, 42];
    for kind in [WeightKind::Bf16, WeightKind::Int4 { group: 64 }] {
        let host = rtn::quantize(kind, Grid::Minimum, 4, k, &activations(4 * k, 6)).unwrap();
        let (on_device, out) = (gpu.upload(&tokens), gpu.output::<f32>(tokens.len() * k));
        match &host {
            HostWeight::Bf16 { values, .. } => {
                let table = gpu.upload(&values.iter().map(|v| v.to_bits()).collect::<Vec<u16>>());
                let args = args![&out, &on_device, &table, 4usize, first, 0.0f32, k, k];
                gpu.launch("embed_bf16", Shape::blocks(tokens.len()), args);
            }
            HostWeight::Grouped { bits, group, codes, scales, mins, row_scales, .. } => {
                let (codes, scales) = group_wise(4, k, *bits, *group, codes, [scales, mins]);
                let (codes, scales, row_scales) = (gpu.upload(&codes), gpu.upload(&scales), gpu.upload(row_scales));
                let args =
                    args![&out, &on_device, &codes, &scales, &row_scales, 4usize, first, 0.0f32, k, *group, 1usize];
                gpu.launch("embed_grouped", Shape::blocks(tokens.len()), args);
            }
            _ => unreachable!("not among the kinds"),
        }
        let found = gpu.download(&out);
        for (token, row) in tokens.iter().zip(found.chunks_exact(k)) {
            let mut expected = vec![0.0; k];
            if let Some(local) = token.checked_sub(first).filter(|local| *local < 4) {
                host.dequantize_row(local as usize, &mut expected);
            }
            assert_eq!(row, expected, "{kind:?} token {token}");
        }
    }
}

// ----------------------------------------------------------------------------------------------- gathers and moves

#[test]
fn wanted_rows_are_packed_together() {
    let gpu = Gpu::new(ROWS);
    for width in [4, 576, 1300] {
        let x = activations(7 * width, 7);
        let wanted = [1u32, 2, 6];
        let (on_device, list) = (gpu.upload(&x), gpu.upload(&wanted));
        let out = gpu.output::<f32>(2 * width);
        // The second and third of the list.
        gpu.launch("gather_rows", Shape::blocks(2), args![&out, &on_device, list.at(1), width]);
        let expected = [&x[2 * width..3 * width], &x[6 * width..7 * width]].concat();
        assert_eq!(gpu.download(&out), expected, "{width}");
    }
}

#[test]
fn blocks_move_in_the_order_of_the_list() {
    let gpu = Gpu::new(ROWS);
    let lists: [&[[u32; 2]]; 5] = [
        &[[5, 0]],
        // Each reads what the one before wrote.
        &[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]],
        // Independent, more than are loaded together.
        &[[6, 0], [7, 1], [8, 2], [9, 3], [10, 4], [11, 5]],
        // The last of four reads the first's; two write one block, which a third then reads.
        &[[3, 1], [4, 2], [5, 6], [1, 7], [8, 9], [10, 9], [9, 0]],
        &[],
    ];
    for block_bytes in [16, 4096, 4096 + 48] {
        for moves in lists {
            let mut pool: Vec<u8> = (0..12 * block_bytes).map(|i| (i * 7919 % 251) as u8).collect();
            let on_device = gpu.upload(&pool);
            let list = gpu.upload(if moves.is_empty() { &[u32::MAX] } else { moves.as_flattened() });
            let columns = (block_bytes / 16usize).div_ceil(256);
            let args = args![&on_device, &list, block_bytes as u64, moves.len()];
            gpu.launch("kv_move", Shape::blocks(columns), args);
            for [from, to] in moves {
                let from = *from as usize * block_bytes;
                pool.copy_within(from..from + block_bytes, *to as usize * block_bytes);
            }
            assert_eq!(gpu.download(&on_device), pool, "{moves:?} of {block_bytes}");
        }
    }
}
