//! Paged attention against its formula in FP64, and against the CPU.

use cudarc::driver::DeviceRepr;
use half::{bf16, f16};
use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, Backend, Device, GroupedActivations, HostTensor, KvFormat, KvLayout, KvScales,
    Rotary, SequenceSpan, StepPlan,
    cpu::{Cpu, CpuOptions},
    format::{e4m3, e5m2},
};

use crate::device::{Gpu, Memory, Shape, noise};

const ATTENTION: &[&str] = &["attention_64", "attention_96", "attention_128", "attention_256"];

const FORMATS: [KvFormat; 4] = [KvFormat::Bf16, KvFormat::Fp16, KvFormat::Fp8E4m3, KvFormat::Fp8E5m2];
/// The layer that is computed, of two.
const LAYER: usize = 1;

/// Queries and probabilities rounded to BF16: half of 2^-8 of values of at most 1, in both factors, with margin.
const BF16_BUDGET: f64 = 6e-3;
/// The same for FP16, 2^-11.
const FP16_BUDGET: f64 = 8e-4;

fn budget(format: KvFormat) -> f64 {
    if format == KvFormat::Bf16 { BF16_BUDGET } else { FP16_BUDGET }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, sliding_window: Option<usize>) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, sliding_window, scale: 1.0 / (head_dim as f32).sqrt() }
}

/// Groups of 1, 3, 4 and 8 queries, every size of head, windows that cut blocks.
fn shapes() -> Vec<AttentionShape> {
    vec![
        shape(2, 2, 64, None),
        shape(6, 2, 96, Some(21)),
        shape(8, 2, 128, None),
        shape(8, 1, 256, None),
        shape(8, 2, 128, Some(64)),
    ]
}

// ---------------------------------------------------------------------------------------------------------------- rig

/// `struct Attention` of attention.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Parameters {
    out: u64,
    partial: u64,
    partial_state: u64,
    qkv: u64,
    kv: u64,
    k_scales: u64,
    v_scales: u64,
    tables: u64,
    table_start: u64,
    first_row: u64,
    row_count: u64,
    first_position: u64,
    block_bytes: u64,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    window: u32,
    splits: u32,
    scale: f32,
}
const _: () = assert!(size_of::<Parameters>() == 128);

// SAFETY: plain numbers in C's layout, the kernel's own struct.
unsafe impl DeviceRepr for Parameters {}

/// A sequence with known queries, keys and values of all its tokens.
struct Sequence {
    blocks: Vec<u32>,
    /// `[tokens, (heads + 2 kv_heads) head_dim]`.
    qkv: Vec<f32>,
}

/// A part of a sequence in a step; no rows stand for a place that pads the step.
#[derive(Clone, Copy)]
struct Part<'a> {
    sequence: &'a Sequence,
    first: usize,
    rows: usize,
}

/// Geometry and pool.
struct Rig<'g> {
    gpu: &'g Gpu,
    format: KvFormat,
    shape: AttentionShape,
    layout: KvLayout,
    scales: KvScales,
    pool: Vec<u8>,
}

impl<'g> Rig<'g> {
    fn new(gpu: &'g Gpu, format: KvFormat, shape: AttentionShape, blocks: usize) -> Self {
        let layout = KvLayout { layers: 2, kv_heads: shape.kv_heads, head_dim: shape.head_dim, format };
        let mut scales = KvScales::unit(&layout);
        if format == KvFormat::Fp8E4m3 {
            for (i, (k, v)) in scales.k.iter_mut().zip(&mut scales.v).enumerate() {
                (*k, *v) = (0.25 + 0.125 * i as f32, 0.5 - 0.0625 * i as f32);
            }
        }
        // NaN in every format: what no token was written to must not be seen.
        let pool = vec![0xff; blocks * layout.block_bytes()];
        Self { gpu, format, shape, layout, scales, pool }
    }

    fn width(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    fn out_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// A sequence in the pool, in physical blocks that are not in order.
    fn sequence(&mut self, first_block: usize, tokens: usize, seed: u32) -> Sequence {
        let count = tokens.div_ceil(BLOCK_TOKENS);
        let blocks = (0..count).map(|i| (first_block + (i * 7 + 3) % count) as u32).collect::<Vec<_>>();
        let blocks = if distinct(&blocks) { blocks } else { (first_block as u32..).take(count).collect() };
        let sequence = Sequence { blocks, qkv: noise(tokens * self.width(), seed) };
        for token in 0..tokens {
            self.store(&sequence, token);
        }
        sequence
    }

    /// Codes of a token's keys and values go to their places: `[layer][K | V][head][16 tokens][head_dim]` of its block.
    fn store(&mut self, sequence: &Sequence, token: usize) {
        let AttentionShape { heads, kv_heads, head_dim: dim, .. } = self.shape;
        let bytes = self.format.bytes();
        let width = self.width();
        for kv in 0..2 {
            for head in 0..kv_heads {
                let block = sequence.blocks[token / BLOCK_TOKENS] as usize * self.layout.block_bytes();
                let place = ((LAYER * 2 + kv) * kv_heads + head) * BLOCK_TOKENS + token % BLOCK_TOKENS;
                let at = block + place * dim * bytes;
                for i in 0..dim {
                    let x = sequence.qkv[token * width + (heads + kv * kv_heads + head) * dim + i];
                    let scale = self.scale(kv == 1, head);
                    let code = match self.format {
                        KvFormat::Bf16 => bf16::from_f32(x).to_le_bytes(),
                        KvFormat::Fp16 => f16::from_f32(x).to_le_bytes(),
                        KvFormat::Fp8E4m3 => [e4m3::encode(x * (1.0 / scale)), 0],
                        KvFormat::Fp8E5m2 => [e5m2::encode(x), 0],
                    };
                    self.pool[at + i * bytes..][..bytes].copy_from_slice(&code[..bytes]);
                }
            }
        }
    }

    fn scale(&self, value: bool, head: usize) -> f32 {
        let scales = if value { &self.scales.v } else { &self.scales.k };
        scales[LAYER * self.shape.kv_heads + head]
    }

    /// What the cache makes of a key or value.
    fn stored(&self, x: f32, scale: f32) -> f64 {
        f64::from(match self.format {
            KvFormat::Bf16 => bf16::from_f32(x).to_f32(),
            KvFormat::Fp16 => f16::from_f32(x).to_f32(),
            KvFormat::Fp8E4m3 => scale * e4m3::decode(e4m3::encode(x * (1.0 / scale))),
            KvFormat::Fp8E5m2 => e5m2::decode(e5m2::encode(x)),
        })
    }

    fn suffix(&self) -> String {
        let format = match self.format {
            KvFormat::Bf16 => "bf16",
            KvFormat::Fp16 => "fp16",
            KvFormat::Fp8E4m3 => "e4m3",
            KvFormat::Fp8E5m2 => "e5m2",
        };
        format!("{format}_{}", self.shape.head_dim)
    }

    /// Launches all attention kernels over a step: rows of decodes by one, of chunks by the other.
    fn step(&self, parts: &[Part<'_>], splits: usize) -> Vec<f32> {
        let AttentionShape { heads, kv_heads, head_dim: dim, sliding_window, scale } = self.shape;
        let (gpu, width) = (self.gpu, self.width());
        let (mut tables, mut qkv) = (Vec::<u32>::new(), Vec::new());
        let mut lists: [Vec<u32>; 4] = Default::default();
        let mut rows = 0;
        for part in parts {
            // Entries of a table that are not read name no block.
            for (list, value) in lists.iter_mut().zip([tables.len(), rows, part.rows, part.first]) {
                list.push(value as u32);
            }
            let blocks = (part.first + part.rows).div_ceil(BLOCK_TOKENS);
            tables.extend(&part.sequence.blocks[..blocks]);
            tables.push(u32::MAX);
            qkv.extend_from_slice(&part.sequence.qkv[part.first * width..(part.first + part.rows) * width]);
            rows += part.rows;
        }
        let heads_of = |scales: &[f32]| gpu.upload(&scales[LAYER * kv_heads..(LAYER + 1) * kv_heads]);
        let (pool, qkv, tables) = (gpu.upload(&self.pool), gpu.upload(&qkv), gpu.upload(&tables));
        let lists = lists.map(|list| gpu.upload(&list));
        let (k_scales, v_scales) = (heads_of(&self.scales.k), heads_of(&self.scales.v));
        let out: Memory<f32> = gpu.output(rows * heads * dim);
        let partial: Memory<f32> = gpu.output(parts.len() * heads * splits * dim);
        let partial_state: Memory<f32> = gpu.output(parts.len() * heads * splits * 2);
        let parameters = Parameters {
            out: out.address(),
            partial: partial.address(),
            partial_state: partial_state.address(),
            qkv: qkv.address(),
            kv: pool.address() + (LAYER * self.layout.layer_bytes()) as u64,
            k_scales: k_scales.address(),
            v_scales: v_scales.address(),
            tables: tables.address(),
            table_start: lists[0].address(),
            first_row: lists[1].address(),
            row_count: lists[2].address(),
            first_position: lists[3].address(),
            block_bytes: self.layout.block_bytes() as u64,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            dim: dim as u32,
            window: sliding_window.unwrap_or(0) as u32,
            splits: splits as u32,
            scale,
        };
        let group = heads / kv_heads;
        let bytes = self.format.bytes();
        let query = if 2 * dim % 128 == 64 { 2 * dim } else { 2 * dim + 64 };
        let eight_bit = if dim % 64 == 32 { dim } else { dim + 32 };
        let key = if bytes == 2 { query } else { eight_bit };
        let block = BLOCK_TOKENS * (key + dim * bytes + 16);
        let launch = |name: &str, grid, shared| {
            gpu.launch_struct(name, Shape { grid, threads: 128, shared }, &parameters);
        };
        let longest = parts.iter().map(|part| part.rows).max().unwrap_or(0);
        if parts.iter().any(|part| part.rows == 1) {
            let grid = (splits, kv_heads * group.div_ceil(16), parts.len());
            launch(&format!("attention_decode_{}", self.suffix()), grid, 16 * query + 12 * block);
            launch("attention_reduce", (heads, parts.len(), 1), 0);
        }
        if longest > 1 {
            // One tile more than there are rows for, as a step has that was padded.
            let (lines, tokens) = if dim <= 128 { (128, 32) } else { (64, 16) };
            let (tiles, pieces) = if bytes == 1 { (2, 4 * tokens * dim) } else { (3, 0) };
            let grid = (longest.div_ceil(lines / group) + 1, kv_heads, parts.len());
            let shared = (lines + tiles * 2 * tokens) * (2 * dim + 16) + pieces;
            launch(&format!("attention_prefill_{}", self.suffix()), grid, shared);
        }
        gpu.download(&out)
    }

    /// Attention of one row by its definition.
    fn reference(&self, sequence: &Sequence, position: usize) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim: dim, sliding_window, scale } = self.shape;
        let width = self.width();
        let row = |token: usize, head: usize| &sequence.qkv[token * width + head * dim..][..dim];
        let oldest = sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let (k_scale, v_scale) = (self.scale(false, kv_head), self.scale(true, kv_head));
            let score = |token: usize| -> f64 {
                let pairs = row(position, head).iter().zip(row(token, heads + kv_head));
                pairs.map(|(q, k)| f64::from(*q) * self.stored(*k, k_scale)).sum::<f64>() * f64::from(scale)
            };
            let scores: Vec<f64> = (oldest..=position).map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut values = vec![0.0; dim];
            for (token, weight) in (oldest..).zip(&weights) {
                for (sum, v) in values.iter_mut().zip(row(token, heads + kv_heads + kv_head)) {
                    *sum += weight / total * self.stored(*v, v_scale);
                }
            }
            out.extend(values);
        }
        out
    }

    fn check(&self, found: &[f32], parts: &[Part<'_>], what: &str) {
        let mut rows = found.chunks_exact(self.out_width());
        for part in parts {
            for position in part.first..part.first + part.rows {
                let found = rows.next().unwrap();
                for (i, expected) in self.reference(part.sequence, position).iter().enumerate() {
                    let error = (f64::from(found[i]) - expected).abs();
                    assert!(
                        error < budget(self.format),
                        "{what} {:?} {:?} position {position}, element {i}: {} instead of {expected}",
                        self.format,
                        self.shape,
                        found[i]
                    );
                }
            }
        }
        assert!(rows.next().is_none());
    }

    /// The same step on the CPU: its cache is filled by steps of its own.
    fn on_cpu(&self, parts: &[Part<'_>], blocks: usize) -> Vec<f32> {
        let options = CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Bf16 };
        let mut cpu = Cpu::new(options).unwrap();
        let mut kv = cpu.kv(self.layout, &self.scales, blocks, blocks).unwrap();
        let mut out = Vec::new();
        for part in parts {
            let tokens = part.first + part.rows;
            let plan = StepPlan {
                tokens: vec![0; tokens],
                sequences: vec![SequenceSpan {
                    first_row: 0,
                    rows: tokens,
                    first_position: 0,
                    blocks: part.sequence.blocks.clone(),
                }],
                logit_rows: vec![],
            };
            let step = cpu.begin(&plan).unwrap();
            let data = part.sequence.qkv[..tokens * self.width()].to_vec();
            let mut qkv = cpu.upload(&HostTensor { rows: tokens, width: self.width(), data }).unwrap();
            // Frequencies of zero rotate by nothing.
            let still = cpu.upload(&HostTensor { rows: 1, width: 1, data: vec![0.0] }).unwrap();
            let rotary = Rotary {
                inverse_frequencies: &still,
                attention_factor: 1.0,
                query_norm: None,
                key_norm: None,
                norm_epsilon: 1e-5,
            };
            cpu.rotate_and_store(&step, &mut qkv, &self.shape, &rotary, &mut kv, LAYER).unwrap();
            let mut buffer = cpu.buffer(tokens, self.out_width()).unwrap();
            cpu.attention(&step, &qkv, &self.shape, &kv, LAYER, &mut buffer).unwrap();
            let mut host = HostTensor::default();
            cpu.download(&buffer, tokens, &mut host).unwrap();
            out.extend_from_slice(&host.data[part.first * self.out_width()..]);
        }
        out
    }
}

fn distinct(blocks: &[u32]) -> bool {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

// --------------------------------------------------------------------------------------------------------------- tests

#[test]
fn decode_is_the_formula_for_every_format_and_length() {
    let gpu = Gpu::new(ATTENTION);
    for format in FORMATS {
        for shape in shapes() {
            let mut rig = Rig::new(&gpu, format, shape, 40);
            let lengths = [1, 15, 16, 17, 500];
            let mut first_block = 0;
            let mut sequences = Vec::new();
            for (seed, tokens) in lengths.iter().enumerate() {
                sequences.push(rig.sequence(first_block, *tokens, seed as u32 + 1));
                first_block += tokens.div_ceil(BLOCK_TOKENS);
            }
            let mut parts: Vec<Part<'_>> = sequences
                .iter()
                .zip(lengths)
                .map(|(sequence, tokens)| Part { sequence, first: tokens - 1, rows: 1 })
                .collect();
            parts.insert(2, Part { sequence: &sequences[0], first: 0, rows: 0 });
            rig.check(&rig.step(&parts, 4), &parts, "decode");
        }
    }
}

#[test]
fn chunks_of_prompts_are_the_formula_for_every_format() {
    let gpu = Gpu::new(ATTENTION);
    for format in FORMATS {
        for shape in shapes() {
            let mut rig = Rig::new(&gpu, format, shape, 24);
            let (one, other) = (rig.sequence(0, 100, 11), rig.sequence(7, 70, 12));
            let third = rig.sequence(12, 33, 13);
            let parts = [
                Part { sequence: &one, first: 0, rows: 70 },
                // No places, and a decode, between chunks.
                Part { sequence: &one, first: 0, rows: 0 },
                Part { sequence: &third, first: 32, rows: 1 },
                Part { sequence: &other, first: 17, rows: 53 },
                Part { sequence: &third, first: 15, rows: 2 },
            ];
            rig.check(&rig.step(&parts, 2), &parts, "prefill");
        }
    }
}

#[test]
fn attention_is_that_of_the_cpu() {
    let gpu = Gpu::new(ATTENTION);
    for format in FORMATS {
        for shape in [shape(6, 2, 64, Some(40)), shape(8, 1, 128, None)] {
            let mut rig = Rig::new(&gpu, format, shape, 16);
            let (one, other) = (rig.sequence(0, 90, 21), rig.sequence(6, 60, 22));
            let parts = [Part { sequence: &one, first: 89, rows: 1 }, Part { sequence: &other, first: 3, rows: 57 }];
            let (found, expected) = (rig.step(&parts, 2), rig.on_cpu(&parts, 16));
            // The CPU rounds queries and probabilities to BF16.
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = f64::from((found - expected).abs());
                assert!(error < BF16_BUDGET, "{format:?} {shape:?} element {i}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn more_queries_than_a_tile_share_a_head() {
    let gpu = Gpu::new(ATTENTION);
    for heads in [17, 20, 64] {
        let mut rig = Rig::new(&gpu, KvFormat::Fp8E4m3, shape(heads, 1, 64, None), 4);
        let sequence = rig.sequence(0, 40, 31);
        for rows in [1, 5] {
            let parts = [Part { sequence: &sequence, first: 40 - rows, rows }];
            rig.check(&rig.step(&parts, 1), &parts, "many queries");
        }
    }
}

#[test]
fn a_row_of_a_chunk_is_bit_for_bit_the_same_however_the_prompt_is_cut() {
    let gpu = Gpu::new(ATTENTION);
    for format in [KvFormat::Bf16, KvFormat::Fp8E4m3] {
        for shape in [shape(6, 2, 64, Some(21)), shape(4, 1, 128, None)] {
            let mut rig = Rig::new(&gpu, format, shape, 16);
            let (one, other) = (rig.sequence(0, 100, 41), rig.sequence(8, 40, 42));
            let whole = rig.step(&[Part { sequence: &one, first: 0, rows: 100 }], 1);
            let mut found = Vec::new();
            for (first, rows) in [(0, 2), (2, 13), (15, 50), (65, 35)] {
                let other = Part { sequence: &other, first: 0, rows: 40 };
                let step = rig.step(&[other, Part { sequence: &one, first, rows }], 1);
                found.extend_from_slice(&step[40 * rig.out_width()..]);
            }
            assert_eq!(bits(&found), bits(&whole), "{format:?} {shape:?}");
        }
    }
}

#[test]
fn a_decode_is_bit_for_bit_the_same_beside_others() {
    let gpu = Gpu::new(ATTENTION);
    for format in [KvFormat::Fp16, KvFormat::Fp8E5m2] {
        let mut rig = Rig::new(&gpu, format, shape(4, 1, 128, Some(300)), 48);
        let (one, other) = (rig.sequence(0, 400, 51), rig.sequence(25, 220, 52));
        let one = Part { sequence: &one, first: 399, rows: 1 };
        let alone = rig.step(&[one], 3);
        let other = Part { sequence: &other, first: 219, rows: 1 };
        for parts in [vec![other, one], vec![one, other, other, other]] {
            let at = parts.iter().position(|part| part.first == 399).unwrap() * rig.out_width();
            assert_eq!(bits(&rig.step(&parts, 3)[at..at + rig.out_width()]), bits(&alone), "{format:?}");
        }
    }
}

#[test]
fn parts_of_a_sequence_give_what_the_whole_gives() {
    let gpu = Gpu::new(ATTENTION);
    let mut rig = Rig::new(&gpu, KvFormat::Fp8E4m3, shape(3, 1, 64, None), 80);
    let sequence = rig.sequence(0, 1270, 61);
    let parts = [Part { sequence: &sequence, first: 1269, rows: 1 }];
    // 80 blocks: one part, two, seven of twelve blocks, ten of eight (the shortest).
    for splits in [1, 2, 7, 10, 32] {
        rig.check(&rig.step(&parts, splits), &parts, &format!("{splits} splits"));
    }
}

#[test]
fn large_scores_do_not_overflow_and_saturated_codes_are_values() {
    let gpu = Gpu::new(ATTENTION);
    for format in FORMATS {
        let mut rig = Rig::new(&gpu, format, shape(4, 2, 64, None), 4);
        let mut sequence = rig.sequence(0, 50, 71);
        let width = rig.width();
        // One token that all attend to: scores of some thousand; its code saturates in E4M3.
        for (i, x) in sequence.qkv.iter_mut().enumerate() {
            let (token, head) = (i / width, i % width / 64);
            *x = match (token, head) {
                // Beyond what FP16 holds: one head turns away from the token, another towards it.
                (_, 1) if i % 64 < 2 => -1e6,
                (_, 2) if i % 64 < 2 => 1e6,
                (_, 0..4) => 30.0,
                (9, 4..6) => 400.0,
                (_, 6..) => *x,
                _ => 0.0,
            };
        }
        for token in 0..50 {
            rig.store(&sequence, token);
        }
        for rows in [1, 30] {
            let parts = [Part { sequence: &sequence, first: 50 - rows, rows }];
            rig.check(&rig.step(&parts, 1), &parts, "large scores");
        }
    }
}

#[test]
fn what_was_summed_shrinks_when_later_scores_are_far_above_it() {
    let gpu = Gpu::new(ATTENTION);
    for format in FORMATS {
        for shape in [shape(4, 2, 64, None), shape(4, 1, 128, None), shape(2, 1, 256, None)] {
            let mut rig = Rig::new(&gpu, format, shape, 8);
            let mut sequence = rig.sequence(0, 100, 91);
            let AttentionShape { heads, kv_heads, head_dim: dim, .. } = shape;
            let width = rig.width();
            for (i, x) in sequence.qkv.iter_mut().enumerate().filter(|(i, _)| i % dim == 0) {
                let (token, head) = (i / width, i % width / dim);
                if head < heads {
                    *x = (dim as f32).sqrt();
                } else if head < heads + kv_heads {
                    // e^6 is 403: above the 2^8 up to which prefill leaves a line's reference where it is (PREFILL_SLACK),
                    // also where noise takes some tenths from the score.
                    *x = 6.0 * (token / 32) as f32;
                }
            }
            for token in 0..100 {
                rig.store(&sequence, token);
            }
            for (first, rows) in [(99, 1), (0, 100), (30, 70)] {
                let parts = [Part { sequence: &sequence, first, rows }];
                rig.check(&rig.step(&parts, 1), &parts, "growing scores");
            }
        }
    }
}

#[test]
fn damage_shows_in_what_attends_to_it_and_nowhere_else() {
    let gpu = Gpu::new(ATTENTION);
    for format in [KvFormat::Bf16, KvFormat::Fp16] {
        let mut rig = Rig::new(&gpu, format, shape(4, 2, 64, None), 12);
        let (mut damaged, sound) = (rig.sequence(0, 40, 81), rig.sequence(4, 40, 82));
        let width = rig.width();
        damaged.qkv[5 * width..6 * width].fill(f32::NAN);
        rig.store(&damaged, 5);
        let parts = [Part { sequence: &damaged, first: 39, rows: 1 }, Part { sequence: &sound, first: 10, rows: 30 }];
        let found = rig.step(&parts, 1);
        assert!(found[..rig.out_width()].iter().all(|v| v.is_nan()), "{format:?}: damage must not be hidden");
        rig.check(&found[rig.out_width()..], &parts[1..], "sound");
        // A query that is damaged damages its own row only.
        let mut sequence = rig.sequence(8, 30, 83);
        sequence.qkv[20 * width..20 * width + 64].fill(f32::NAN);
        let found = rig.step(&[Part { sequence: &sequence, first: 0, rows: 30 }], 1);
        let row = rig.out_width();
        assert!(found[20 * row..20 * row + 64].iter().all(|v| v.is_nan()), "{format:?}");
        let others = found[..20 * row].iter().chain(&found[20 * row + 64..]);
        assert!(others.into_iter().all(|v| v.is_finite()), "{format:?}");
    }
}
