//! Paged attention on every instruction set and cache format against the formula in FP64.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, Backend, Device, GroupedActivations, HostTensor, KvFormat, KvLayout, KvScales,
    Rotary, SequenceSpan, StepPlan,
    cpu::{Cpu, CpuOptions, Isa},
    format::{e4m3, e5m2},
};

const FORMATS: [KvFormat; 4] = [KvFormat::Bf16, KvFormat::Fp16, KvFormat::Fp8E4m3, KvFormat::Fp8E5m2];
/// Blocks of the pool.
const BLOCKS: usize = 24;
/// Scale of every head's keys and values in the E4M3 cache.
const SCALE: f32 = 0.25;

/// Reproducible values in -1..1.
fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| {
            let mut x = (i * 2_654_435_761 + seed * 40_503 + 12_345) as u32;
            x ^= x >> 15;
            x = x.wrapping_mul(2_246_822_519);
            x ^= x >> 13;
            x as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// A sequence with known queries, keys and values of all its tokens.
struct Sequence {
    blocks: Vec<u32>,
    tokens: usize,
    qkv: Vec<f32>,
}

struct Rig {
    cpu: Cpu,
    kv: <Cpu as Device>::Kv,
    shape: AttentionShape,
    format: KvFormat,
}

impl Rig {
    fn new(isa: Isa, format: KvFormat, shape: AttentionShape) -> Self {
        let options = CpuOptions { threads: 2, isa: Some(isa), grouped_activations: GroupedActivations::Int8 };
        let cpu = Cpu::new(options).unwrap();
        let layout = KvLayout { layers: 2, kv_heads: shape.kv_heads, head_dim: shape.head_dim, format };
        let mut scales = KvScales::unit(&layout);
        if format == KvFormat::Fp8E4m3 {
            scales.k.fill(SCALE);
            scales.v.fill(SCALE);
        }
        let kv = cpu.kv(layout, &scales, BLOCKS, BLOCKS).unwrap();
        Self { cpu, kv, shape, format }
    }

    fn width(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    fn sequence(&self, blocks: &[u32], tokens: usize, seed: usize) -> Sequence {
        Sequence { blocks: blocks.to_vec(), tokens, qkv: noise(tokens * self.width(), seed) }
    }

    /// One step over parts of sequences (each from a position, some rows), stored to the cache and attended in layer 1.
    fn step(&mut self, parts: &[(&Sequence, usize, usize)]) -> Vec<f32> {
        let (mut plan, mut qkv, width) = (StepPlan::default(), Vec::new(), self.width());
        for (sequence, first, rows) in parts {
            plan.sequences.push(SequenceSpan {
                first_row: plan.tokens.len(),
                rows: *rows,
                first_position: *first,
                blocks: sequence.blocks.clone(),
            });
            plan.tokens.extend(vec![0; *rows]);
            qkv.extend_from_slice(&sequence.qkv[first * width..(first + rows) * width]);
        }
        let rows = plan.rows();
        let step = self.cpu.begin(&plan).unwrap();
        let mut qkv = self.cpu.upload(&HostTensor { rows, width, data: qkv }).unwrap();
        // Frequencies of zero rotate by nothing.
        let frequencies = HostTensor { rows: 1, width: 1, data: vec![0.0] };
        let rotary = Rotary {
            inverse_frequencies: &self.cpu.upload(&frequencies).unwrap(),
            attention_factor: 1.0,
            query_norm: None,
            key_norm: None,
            norm_epsilon: 1e-5,
        };
        self.cpu.rotate_and_store(&step, &mut qkv, &self.shape, &rotary, &mut self.kv, 1).unwrap();
        let mut out = self.cpu.buffer(rows, self.shape.heads * self.shape.head_dim).unwrap();
        self.cpu.attention(&step, &qkv, &self.shape, &self.kv, 1, &mut out).unwrap();
        let mut host = HostTensor::default();
        self.cpu.download(&out, rows, &mut host).unwrap();
        host.data
    }

    /// What the cache makes of a value.
    fn stored(&self, x: f32) -> f64 {
        f64::from(match self.format {
            KvFormat::Bf16 => half::bf16::from_f32(x).to_f32(),
            KvFormat::Fp16 => half::f16::from_f32(x).to_f32(),
            KvFormat::Fp8E4m3 => SCALE * e4m3::decode(e4m3::encode(x / SCALE)),
            KvFormat::Fp8E5m2 => e5m2::decode(e5m2::encode(x)),
        })
    }

    /// Attention of one row by its definition.
    fn reference(&self, sequence: &Sequence, position: usize) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim: dim, sliding_window, scale } = self.shape;
        let at = |token: usize, head: usize, i: usize| sequence.qkv[token * self.width() + head * dim + i];
        let oldest = sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let score = |token: usize| -> f64 {
                let products =
                    (0..dim).map(|i| f64::from(at(position, head, i)) * self.stored(at(token, heads + kv_head, i)));
                products.sum::<f64>() * f64::from(scale)
            };
            let weights: Vec<f64> = (oldest..=position).map(|token| score(token).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..dim {
                let value = |token: usize| self.stored(at(token, heads + kv_heads + kv_head, i));
                out.push((oldest..=position).zip(&weights).map(|(t, w)| w / total * value(t)).sum());
            }
        }
        out
    }

    fn check(&self, found: &[f32], sequence: &Sequence, positions: std::ops::Range<usize>) {
        let width = self.shape.heads * self.shape.head_dim;
        for (row, position) in positions.enumerate() {
            for (i, expected) in self.reference(sequence, position).iter().enumerate() {
                let found = f64::from(found[row * width + i]);
                // Queries and probabilities are rounded to BF16: half of 2^-8 of a value of at most 1, with margin.
                assert!((found - expected).abs() < 6e-3, "position {position}, element {i}: {found}, not {expected}");
            }
        }
    }
}

fn shapes() -> Vec<AttentionShape> {
    let shape = |heads, kv_heads, head_dim, sliding_window| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        sliding_window,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    vec![
        shape(9, 3, 64, None),
        shape(4, 4, 128, None),
        shape(5, 1, 80, Some(21)),
        shape(8, 2, 16, Some(64)),
        shape(2, 1, 20, None),
        // One and three registers of AVX2 beside whole spans of four; groups that fill no three lines.
        shape(6, 2, 40, None),
        shape(4, 1, 24, Some(21)),
    ]
}

/// Physical blocks in an order that is not their own.
fn scattered(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).rev().collect()
}

#[test]
fn prefill_and_decode_are_the_formula_on_every_instruction_set_and_format() {
    for isa in Isa::available() {
        for format in FORMATS {
            for shape in shapes() {
                let mut rig = Rig::new(isa, format, shape);
                let one = rig.sequence(&scattered(0, 7), 100, 1);
                let other = rig.sequence(&scattered(7, 4), 50, 2);
                let found = rig.step(&[(&one, 0, 90), (&other, 0, 17)]);
                let width = shape.heads * shape.head_dim;
                rig.check(&found[..90 * width], &one, 0..90);
                rig.check(&found[90 * width..], &other, 0..17);
                // A decode beside a chunk of a prompt.
                let found = rig.step(&[(&one, 90, 1), (&other, 17, 33)]);
                rig.check(&found[..width], &one, 90..91);
                rig.check(&found[width..], &other, 17..50);
                assert_eq!(one.tokens + other.tokens, 150);
            }
        }
    }
}

#[test]
fn a_row_is_bit_for_bit_the_same_however_a_prompt_is_cut() {
    for isa in Isa::available() {
        for format in FORMATS {
            for shape in shapes() {
                let mut rig = Rig::new(isa, format, shape);
                let whole = rig.sequence(&scattered(0, 5), 70, 3);
                let parts = Sequence { blocks: scattered(5, 5), tokens: 70, qkv: whole.qkv.clone() };
                let other = rig.sequence(&scattered(10, 2), 20, 4);
                let expected = rig.step(&[(&whole, 0, 70)]);
                let mut found = Vec::new();
                let width = shape.heads * shape.head_dim;
                for (first, rows) in [(0, 1), (1, 15), (16, 3), (19, 40), (59, 11)] {
                    let step = rig.step(&[(&other, 0, 20), (&parts, first, rows)]);
                    found.extend_from_slice(&step[20 * width..]);
                }
                let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!((found.len(), differs), (expected.len(), None), "{isa:?} {format:?} {shape:?}");
            }
        }
    }
}

#[test]
fn what_another_request_left_in_a_block_is_never_seen() {
    for isa in Isa::available() {
        for format in [KvFormat::Bf16, KvFormat::Fp16] {
            for shape in shapes() {
                let mut rig = Rig::new(isa, format, shape);
                let mut poison = rig.sequence(&[4, 9], 2 * BLOCK_TOKENS, 5);
                poison.qkv.fill(f32::NAN);
                rig.step(&[(&poison, 0, 2 * BLOCK_TOKENS)]);
                let clean = rig.sequence(&[9, 4], 21, 6);
                let found = rig.step(&[(&clean, 0, 21)]);
                rig.check(&found, &clean, 0..21);
            }
        }
    }
}

#[test]
fn a_damaged_token_damages_what_attends_to_it() {
    let cases = Isa::available().into_iter().flat_map(|isa| [(isa, KvFormat::Bf16), (isa, KvFormat::Fp16)]);
    for (isa, format) in cases {
        let mut rig = Rig::new(isa, format, shapes()[0]);
        let mut sequence = rig.sequence(&scattered(0, 3), 40, 7);
        let width = rig.width();
        sequence.qkv[5 * width..6 * width].fill(f32::NAN);
        let found = rig.step(&[(&sequence, 0, 40)]);
        let row = rig.shape.heads * rig.shape.head_dim;
        assert!(found[..5 * row].iter().all(|x| x.is_finite()), "{isa:?}");
        assert!(found[39 * row..].iter().all(|x| x.is_nan()), "{isa:?}: damage must not be hidden");
    }
}
