//! Rotation, norms per head, and the store of K and V.

use half::{bf16, f16};
use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, Backend, Device, GroupedActivations, HostTensor, KvFormat, KvLayout, KvScales,
    Rotary, SequenceSpan, StepPlan,
    cpu::{Cpu, CpuOptions},
    format::{e4m3, e5m2},
};

use crate::device::{Arg, Gpu, Memory, NULL, Shape, activations, noise, worst};

const ROTARY: &[&str] = &["rotary"];

/// Two FP32 products and a sum of values of some units, angles that are off by 2 ulp: absolute, per unit.
const BUDGET: f32 = 2e-6;
const EPSILON: f32 = 1e-6;
const NO_SLOT: u32 = u32::MAX;

/// A model's attention and a step of one sequence, rows of which may be padding.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    normed: bool,
    rows: usize,
    first_position: usize,
}

impl Case {
    fn heads_in_row(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    fn width(&self) -> usize {
        self.heads_in_row() * self.head_dim
    }

    /// Heads that a block of 256 threads takes.
    fn heads_of_block(&self) -> usize {
        match self.head_dim {
            0..=64 => 32,
            65..=128 => 16,
            _ => 8,
        }
    }
}

const CASES: [Case; 7] = [
    Case { heads: 2, kv_heads: 1, head_dim: 64, rotary_dim: 64, normed: false, rows: 1, first_position: 0 },
    Case { heads: 9, kv_heads: 3, head_dim: 64, rotary_dim: 64, normed: true, rows: 5, first_position: 13 },
    Case { heads: 4, kv_heads: 2, head_dim: 96, rotary_dim: 96, normed: true, rows: 3, first_position: 30 },
    Case { heads: 32, kv_heads: 8, head_dim: 128, rotary_dim: 128, normed: true, rows: 3, first_position: 131_000 },
    Case { heads: 3, kv_heads: 1, head_dim: 128, rotary_dim: 32, normed: false, rows: 4, first_position: 7 },
    Case { heads: 4, kv_heads: 4, head_dim: 256, rotary_dim: 64, normed: true, rows: 2, first_position: 100 },
    Case { heads: 5, kv_heads: 1, head_dim: 256, rotary_dim: 256, normed: false, rows: 2, first_position: 4000 },
];

fn frequencies(rotary_dim: usize) -> Vec<f32> {
    (0..rotary_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary_dim as f32)).collect()
}

/// Queries, keys and values, and the gains of both norms.
struct Inputs {
    qkv: Vec<f32>,
    gains: [Vec<f32>; 2],
}

impl Inputs {
    fn of(case: &Case) -> Self {
        let gain = |seed| noise(case.head_dim, seed).iter().map(|v| 1.0 + 0.5 * v).collect();
        Self { qkv: activations(case.rows * case.width(), 11), gains: [gain(12), gain(13)] }
    }

    /// The definition, in FP64.
    fn rotated(&self, case: &Case, factor: f32) -> Vec<f32> {
        let mut out: Vec<f64> = self.qkv.iter().map(|v| f64::from(*v)).collect();
        let frequencies = frequencies(case.rotary_dim);
        for (row, values) in out.chunks_exact_mut(case.width()).enumerate() {
            let position = (case.first_position + row) as f32;
            for (head, values) in values.chunks_exact_mut(case.head_dim).enumerate() {
                if head >= case.heads + case.kv_heads {
                    continue;
                }
                if case.normed {
                    let gain = &self.gains[usize::from(head >= case.heads)];
                    let mean = values.iter().map(|v| v * v).sum::<f64>() / case.head_dim as f64;
                    let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                    values.iter_mut().zip(gain).for_each(|(v, g)| *v *= scale * f64::from(*g));
                }
                let pairs = case.rotary_dim / 2;
                for (i, frequency) in frequencies.iter().enumerate() {
                    // The angle is an FP32 product by definition: positions are large.
                    let (sin, cos) = f64::from(position * frequency).sin_cos();
                    let (sin, cos) = (sin * f64::from(factor), cos * f64::from(factor));
                    let (a, b) = (values[i], values[i + pairs]);
                    values[i] = a * cos - b * sin;
                    values[i + pairs] = b * cos + a * sin;
                }
            }
        }
        out.iter().map(|v| *v as f32).collect()
    }
}

fn angles(gpu: &Gpu, case: &Case, factor: f32) -> Memory<f32> {
    let positions: Vec<u32> = (0..case.rows).map(|row| (case.first_position + row) as u32).collect();
    let pairs = case.rotary_dim / 2;
    let (positions, frequencies) = (gpu.upload(&positions), gpu.upload(&frequencies(case.rotary_dim)));
    let angles = gpu.output::<f32>(case.rows * 2 * pairs);
    let blocks = (case.rows * pairs).div_ceil(256);
    let args = args![&angles, &positions, &frequencies, case.rows, pairs, factor];
    gpu.launch("rotary_angles", Shape::blocks(blocks), args);
    angles
}

/// A pool on the device, every byte 0xff, and what is stored in it.
struct Pool {
    layout: KvLayout,
    layer: usize,
    scales: KvScales,
    memory: Memory<u8>,
}

const BLOCKS: usize = 4;

impl Pool {
    fn new(gpu: &Gpu, case: &Case, format: KvFormat) -> Self {
        let layout = KvLayout { layers: 3, kv_heads: case.kv_heads, head_dim: case.head_dim, format };
        let mut scales = KvScales::unit(&layout);
        if format == KvFormat::Fp8E4m3 {
            for (index, (k, v)) in scales.k.iter_mut().zip(&mut scales.v).enumerate() {
                // Some heads saturate.
                (*k, *v) = (0.004 * (index % 3 + 1) as f32, 0.03 / (index % 4 + 1) as f32);
            }
        }
        let memory = gpu.output::<u8>(BLOCKS * layout.block_bytes());
        Self { layout, layer: 1, scales, memory }
    }

    /// Bytes of a token's head.
    fn place(&self, slot: u32, value: bool, head: usize) -> std::ops::Range<usize> {
        let token_bytes = self.layout.head_dim * self.layout.format.bytes();
        let head_bytes = token_bytes * BLOCK_TOKENS;
        let (block, token) = (slot as usize / BLOCK_TOKENS, slot as usize % BLOCK_TOKENS);
        let start = block * self.layout.block_bytes()
            + self.layer * self.layout.layer_bytes()
            + usize::from(value) * self.layout.kv_heads * head_bytes
            + head * head_bytes
            + token * token_bytes;
        start..start + token_bytes
    }

    fn scale(&self, value: bool, head: usize) -> f32 {
        let scales = if value { &self.scales.v } else { &self.scales.k };
        scales[self.layer * self.layout.kv_heads + head]
    }

    /// The stored code of a value, as bytes.
    fn encode(&self, v: f32, scale: f32) -> Vec<u8> {
        match self.layout.format {
            KvFormat::Bf16 => bf16::from_f32(v).to_bits().to_le_bytes().to_vec(),
            KvFormat::Fp16 => f16::from_f32(v.clamp(-65504.0, 65504.0)).to_bits().to_le_bytes().to_vec(),
            KvFormat::Fp8E4m3 => vec![e4m3::encode(v * (1.0 / scale))],
            KvFormat::Fp8E5m2 => vec![e5m2::encode(v)],
        }
    }

    fn decode(&self, bytes: &[u8], scale: f32) -> f32 {
        match self.layout.format {
            KvFormat::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            KvFormat::Fp16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            KvFormat::Fp8E4m3 => scale * e4m3::decode(bytes[0]),
            KvFormat::Fp8E5m2 => e5m2::decode(bytes[0]),
        }
    }

    /// Half the distance of neighbouring values, and the largest.
    fn half_step(&self, v: f32, scale: f32) -> (f32, f32) {
        let v = v.abs();
        match self.layout.format {
            KvFormat::Bf16 => (v / 256.0, f32::MAX),
            KvFormat::Fp16 => ((v / 2048.0).max(2.0f32.powi(-25)), 65504.0),
            KvFormat::Fp8E4m3 => ((v / 16.0).max(scale * 2.0f32.powi(-10)), scale * e4m3::MAX),
            KvFormat::Fp8E5m2 => ((v / 8.0).max(2.0f32.powi(-17)), e5m2::MAX),
        }
    }

    fn entry(&self) -> &'static str {
        match self.layout.format {
            KvFormat::Bf16 => "rotate_store_bf16",
            KvFormat::Fp16 => "rotate_store_f16",
            KvFormat::Fp8E4m3 => "rotate_store_e4m3",
            KvFormat::Fp8E5m2 => "rotate_store_e5m2",
        }
    }
}

/// Rotates and stores on the device; returns `qkv` and the pool's bytes afterwards.
fn rotate_and_store(gpu: &Gpu, case: &Case, inputs: &Inputs, pool: &Pool, slots: &[u32], factor: f32) -> Vec<f32> {
    let angles = angles(gpu, case, factor);
    let (qkv, slots) = (gpu.upload(&inputs.qkv), gpu.upload(slots));
    let [query, key] = [0, 1].map(|i| gpu.upload(&inputs.gains[i]));
    let norms = if case.normed { [Arg::from(&query), Arg::from(&key)] } else { [NULL, NULL] };
    let (k_scales, v_scales) = (gpu.upload(&pool.scales.k), gpu.upload(&pool.scales.v));
    let first = pool.layer * case.kv_heads;
    let mut args = args![&qkv, &pool.memory, &angles, &slots, norms[0], norms[1]].to_vec();
    if pool.layout.format == KvFormat::Fp8E4m3 {
        args.extend([k_scales.at(first), v_scales.at(first)]);
    }
    args.extend(args![case.heads, case.kv_heads, case.head_dim, case.rotary_dim, EPSILON]);
    args.extend(args![pool.layout.block_bytes() as u64, (pool.layer * pool.layout.layer_bytes()) as u64]);
    let grid = (case.rows, case.heads_in_row().div_ceil(case.heads_of_block()), 1);
    gpu.launch(pool.entry(), Shape { grid, threads: 256, shared: 0 }, &args);
    gpu.download(&qkv)
}

const FORMATS: [KvFormat; 4] = [KvFormat::Bf16, KvFormat::Fp16, KvFormat::Fp8E4m3, KvFormat::Fp8E5m2];

#[test]
fn angles_are_cosines_and_sines_of_fp32_products() {
    let gpu = Gpu::new(ROTARY);
    for case in CASES {
        let factor = 1.25;
        let found = gpu.download(&angles(&gpu, &case, factor));
        let frequencies = frequencies(case.rotary_dim);
        for (row, found) in found.chunks_exact(case.rotary_dim).enumerate() {
            let angle = |i: usize| f64::from((case.first_position + row) as f32 * frequencies[i]);
            let (cosines, sines) = found.split_at(case.rotary_dim / 2);
            for (i, (cosine, sine)) in cosines.iter().zip(sines).enumerate() {
                assert!((f64::from(*cosine) - angle(i).cos() * f64::from(factor)).abs() < 3e-7, "{case:?} {i}");
                assert!((f64::from(*sine) - angle(i).sin() * f64::from(factor)).abs() < 3e-7, "{case:?} {i}");
            }
        }
    }
}

#[test]
fn rotated_rows_are_those_of_the_definition_and_of_the_cpu() {
    let gpu = Gpu::new(ROTARY);
    for case in CASES {
        let inputs = Inputs::of(&case);
        let pool = Pool::new(&gpu, &case, KvFormat::Bf16);
        let slots: Vec<u32> = (0..case.rows as u32).collect();
        let factor = 0.75;
        let found = rotate_and_store(&gpu, &case, &inputs, &pool, &slots, factor);
        let expected = inputs.rotated(&case, factor);
        assert!(worst(&found, &expected, 1.0) < BUDGET, "{case:?}: {}", worst(&found, &expected, 1.0));
        let of_cpu = on_cpu(&case, &inputs, factor);
        assert!(worst(&found, &of_cpu, 1.0) < 2.0 * BUDGET, "{case:?}: {}", worst(&found, &of_cpu, 1.0));
    }
}

fn on_cpu(case: &Case, inputs: &Inputs, factor: f32) -> Vec<f32> {
    let options = CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Int8 };
    let mut cpu = Cpu::new(options).unwrap();
    let row = |data: &[f32]| HostTensor { rows: 1, width: data.len(), data: data.to_vec() };
    let mut qkv = cpu.upload(&HostTensor { rows: case.rows, width: case.width(), data: inputs.qkv.clone() }).unwrap();
    let frequencies = cpu.upload(&row(&frequencies(case.rotary_dim))).unwrap();
    let gains = [0, 1].map(|i| cpu.upload(&row(&inputs.gains[i])).unwrap());
    let blocks = (case.first_position + case.rows).div_ceil(BLOCK_TOKENS);
    let span = SequenceSpan {
        first_row: 0,
        rows: case.rows,
        first_position: case.first_position,
        // All positions before the step's share one block: nothing reads them.
        blocks: (0..blocks).map(|block| (block % 4) as u32).collect(),
    };
    let plan = StepPlan { tokens: vec![0; case.rows], sequences: vec![span], logit_rows: vec![] };
    let layout = KvLayout { layers: 1, kv_heads: case.kv_heads, head_dim: case.head_dim, format: KvFormat::Bf16 };
    let mut kv = cpu.kv(layout, &KvScales::unit(&layout), 4, 4).unwrap();
    let shape = AttentionShape {
        heads: case.heads,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        sliding_window: None,
        scale: 1.0,
    };
    let rotary = Rotary {
        inverse_frequencies: &frequencies,
        attention_factor: factor,
        query_norm: case.normed.then_some(&gains[0]),
        key_norm: case.normed.then_some(&gains[1]),
        norm_epsilon: EPSILON,
    };
    let step = cpu.begin(&plan).unwrap();
    cpu.rotate_and_store(&step, &mut qkv, &shape, &rotary, &mut kv, 0).unwrap();
    let mut host = HostTensor::default();
    cpu.download(&qkv, case.rows, &mut host).unwrap();
    host.data
}

#[test]
fn keys_and_values_lie_in_their_slots_and_nothing_else_is_touched() {
    let gpu = Gpu::new(ROTARY);
    for case in CASES {
        for format in FORMATS {
            let inputs = Inputs::of(&case);
            let pool = Pool::new(&gpu, &case, format);
            // Slots in no order, over several blocks; the last row is padding where there are several.
            let mut slots: Vec<u32> = (0..case.rows as u32).map(|row| (row * 37 + 21) % 64).collect();
            if case.rows > 2 {
                slots[case.rows - 1] = NO_SLOT;
            }
            rotate_and_store(&gpu, &case, &inputs, &pool, &slots, 1.0);
            let rotated = inputs.rotated(&case, 1.0);
            let mut bytes = gpu.download(&pool.memory);
            let element = format.bytes();
            for (slot, row) in slots.iter().zip(rotated.chunks_exact(case.width())) {
                if *slot == NO_SLOT {
                    continue;
                }
                let kv = row[case.heads * case.head_dim..].chunks_exact(case.head_dim);
                for (index, values) in kv.enumerate() {
                    let (is_value, head) = (index >= case.kv_heads, index % case.kv_heads);
                    let (place, scale) = (pool.place(*slot, is_value, head), pool.scale(is_value, head));
                    for (code, v) in bytes[place.clone()].chunks_exact(element).zip(values) {
                        let (half_step, largest) = pool.half_step(*v, scale);
                        let decoded = pool.decode(code, scale);
                        let kept = v.clamp(-largest, largest);
                        let error = (decoded - kept).abs();
                        assert!(error <= half_step * 1.001 + BUDGET * 2.0, "{case:?} {format:?}: {v} {decoded}");
                        if is_value {
                            assert_eq!(code, pool.encode(*v, scale), "{case:?} {format:?}: {v}");
                        }
                    }
                    bytes[place].fill(0xff);
                }
            }
            assert!(bytes.iter().all(|b| *b == 0xff), "{case:?} {format:?}");
        }
    }
}

#[test]
fn values_beyond_a_format_saturate_and_no_code_for_nan_is_stored() {
    let gpu = Gpu::new(ROTARY);
    let case = CASES[0];
    for format in FORMATS {
        let mut inputs = Inputs::of(&case);
        let value_at = (case.heads + case.kv_heads) * case.head_dim;
        inputs.qkv[value_at..value_at + 4].copy_from_slice(&[1e6, -1e6, f32::INFINITY, f32::NAN]);
        let pool = Pool::new(&gpu, &case, format);
        rotate_and_store(&gpu, &case, &inputs, &pool, &[5], 1.0);
        let (bytes, scale) = (gpu.download(&pool.memory), pool.scale(true, 0));
        let codes: Vec<f32> =
            bytes[pool.place(5, true, 0)].chunks_exact(format.bytes()).map(|code| pool.decode(code, scale)).collect();
        if format == KvFormat::Bf16 {
            assert_eq!(codes[..2], [bf16::from_f32(1e6).to_f32(), bf16::from_f32(-1e6).to_f32()]);
            continue;
        }
        let (_, largest) = pool.half_step(0.0, scale);
        assert_eq!(codes[..3], [largest, -largest, largest], "{format:?}");
        assert_eq!(codes[3].abs(), largest, "{format:?}");
    }
}
