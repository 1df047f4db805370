//! A tiny transformer, written against the traits as the engine's is: what the backend's tests run on two devices.

use modelprofile_kernels::{
    AttentionShape, Backend, HostTensor, HostWeight, KvFormat, KvLayout, KvScales, Rotary, SequenceSpan, Split,
    StepPlan, Store, WeightKind, pack,
    rtn::{self, Grid},
};

use crate::device::noise;

/// Sizes. Inputs are multiples of 128, so that every kind of weight has whole groups and blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub layers: usize,
    pub window: Option<usize>,
    /// Norms of heads before the rotation, and biases of Q, K and V.
    pub extras: bool,
}

pub const TINY: Sizes = Sizes {
    hidden: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    intermediate: 256,
    vocab: 96,
    layers: 2,
    window: None,
    extras: false,
};

/// A weight of random values; FP8 with static activations has the scale of inputs up to 8, outlier columns are some few.
pub fn weight(kind: WeightKind, n: usize, k: usize, seed: u32) -> HostWeight {
    let rows: Vec<f32> = noise(n * k, seed).iter().map(|v| v * (3.0 / k as f32).sqrt()).collect();
    match kind {
        WeightKind::Fp8Static => rtn::fp8_static(n, k, &rows, rtn::fp8_scale(8.0)),
        WeightKind::Int8Outliers { columns } => {
            let columns: Vec<u32> = (0..u32::from(columns)).map(|c| 5 + c * 9).collect();
            rtn::int8_outliers(n, k, &rows, &columns)
        }
        _ => rtn::quantize(kind, Grid::Minimum, n, k, &rows),
    }
    .unwrap()
}

/// A profile's weights on a device.
pub struct Weights<B: Backend> {
    embedding: B::Weight,
    final_norm: B::Buffer,
    layers: Vec<Layer<B>>,
}

struct Layer<B: Backend> {
    attention_norm: B::Buffer,
    qkv: B::Weight,
    bias: Option<B::Buffer>,
    head_norms: Option<[B::Buffer; 2]>,
    attention_output: B::Weight,
    mlp_norm: B::Buffer,
    gate_up: B::Weight,
    down: B::Weight,
}

impl<B: Backend> Weights<B> {
    /// The layers' weights are of `kind`, the embedding (and output) of `ends`.
    pub fn new(device: &B, sizes: &Sizes, kind: WeightKind, ends: WeightKind) -> Self {
        let width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
        let make = |kind, n, k, seed, split| device.weight(&pack(&weight(kind, n, k, seed)).unwrap(), split).unwrap();
        let heads = Split::Heads { heads: sizes.heads, kv_heads: sizes.kv_heads, head_dim: sizes.head_dim };
        let vector = |width: usize, around: f32, seed: u32| {
            let data = noise(width, seed).iter().map(|v| around + v * 0.2).collect();
            device.upload(&HostTensor { rows: 1, width, data }).unwrap()
        };
        let layers = (0..sizes.layers as u32).map(|layer| {
            let seed = 100 * (layer + 1);
            Layer {
                attention_norm: vector(sizes.hidden, 1.0, seed),
                qkv: make(kind, width, sizes.hidden, seed + 1, heads),
                bias: sizes.extras.then(|| vector(width, 0.0, seed + 2)),
                head_norms: sizes.extras.then(|| [3, 4].map(|i| vector(sizes.head_dim, 1.0, seed + i))),
                attention_output: make(kind, sizes.hidden, sizes.heads * sizes.head_dim, seed + 5, Split::Inputs),
                mlp_norm: vector(sizes.hidden, 1.0, seed + 6),
                gate_up: make(kind, 2 * sizes.intermediate, sizes.hidden, seed + 7, Split::Halves),
                down: make(kind, sizes.hidden, sizes.intermediate, seed + 8, Split::Inputs),
            }
        });
        Self {
            layers: layers.collect(),
            embedding: make(ends, sizes.vocab, sizes.hidden, 1, Split::Outputs),
            final_norm: vector(sizes.hidden, 1.0, 2),
        }
    }

    pub fn each(&self, mut visit: impl FnMut(&B::Weight)) {
        visit(&self.embedding);
        for layer in &self.layers {
            [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down].into_iter().for_each(&mut visit);
        }
    }
}

/// Buffers of a model on a device, and its cache.
pub struct Model<B: Backend> {
    sizes: Sizes,
    attention: AttentionShape,
    frequencies: B::Buffer,
    residual: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    selected: B::Buffer,
    logits: B::Buffer,
    pub kv: B::Kv,
}

/// Scales that make a difference: no two heads have the same.
pub fn scales(layout: &KvLayout) -> KvScales {
    let heads = layout.layers * layout.kv_heads;
    let list = |first: f32| (0..heads).map(|head| first + head as f32 * 0.01).collect();
    KvScales { k: list(0.02), v: list(0.03) }
}

impl<B: Backend> Model<B> {
    pub fn new(device: &B, sizes: Sizes, format: KvFormat, blocks: usize, max_rows: usize) -> Self {
        let Sizes { hidden, heads, kv_heads, head_dim, intermediate, vocab, layers, window, .. } = sizes;
        let buffer = |width: usize| device.buffer(max_rows, width).unwrap();
        let pairs = head_dim / 2;
        let data = (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect();
        let layout = KvLayout { layers, kv_heads, head_dim, format };
        Self {
            sizes,
            attention: AttentionShape {
                heads,
                kv_heads,
                head_dim,
                sliding_window: window,
                scale: 1.0 / (head_dim as f32).sqrt(),
            },
            frequencies: device.upload(&HostTensor { rows: 1, width: pairs, data }).unwrap(),
            residual: buffer(hidden),
            normed: buffer(hidden),
            qkv: buffer((heads + 2 * kv_heads) * head_dim),
            attended: buffer(heads * head_dim),
            gate_up: buffer(2 * intermediate),
            activated: buffer(intermediate),
            selected: buffer(hidden),
            logits: buffer(vocab),
            kv: device.kv(layout, &scales(&layout), blocks, 4 * blocks).unwrap(),
        }
    }

    /// The logits of a step. `leaving` is released layer by layer, as the engine does it at a switch.
    pub fn step(
        &mut self,
        backend: &mut B,
        weights: &Weights<B>,
        leaving: Option<&Weights<B>>,
        plan: &StepPlan,
    ) -> modelprofile_kernels::Result<Vec<f32>> {
        let (rows, epsilon) = (plan.rows(), 1e-5);
        let step = backend.begin(plan)?;
        if let Some(leaving) = leaving {
            backend.release(&leaving.embedding);
        }
        backend.embed(&step, &weights.embedding, &mut self.residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            if let Some(leaving) = leaving {
                let Layer { qkv, attention_output, gate_up, down, .. } = &leaving.layers[index];
                for weight in [qkv, attention_output, gate_up, down] {
                    backend.release(weight);
                }
            }
            backend.rms_norm(rows, &self.residual, &layer.attention_norm, epsilon, &mut self.normed)?;
            let bias = layer.bias.as_ref();
            backend.linear(rows, &self.normed, &layer.qkv, bias, Store::Overwrite, &mut self.qkv)?;
            let rotary = Rotary {
                inverse_frequencies: &self.frequencies,
                attention_factor: 1.0,
                query_norm: layer.head_norms.as_ref().map(|norms| &norms[0]),
                key_norm: layer.head_norms.as_ref().map(|norms| &norms[1]),
                norm_epsilon: epsilon,
            };
            backend.rotate_and_store(&step, &mut self.qkv, &self.attention, &rotary, &mut self.kv, index)?;
            backend.attention(&step, &self.qkv, &self.attention, &self.kv, index, &mut self.attended)?;
            let add = Store::Add;
            backend.linear(rows, &self.attended, &layer.attention_output, None, add, &mut self.residual)?;
            backend.rms_norm(rows, &self.residual, &layer.mlp_norm, epsilon, &mut self.normed)?;
            backend.linear(rows, &self.normed, &layer.gate_up, None, Store::Overwrite, &mut self.gate_up)?;
            backend.gated_silu(rows, &self.gate_up, &mut self.activated)?;
            backend.linear(rows, &self.activated, &layer.down, None, add, &mut self.residual)?;
        }
        let wanted = plan.logit_rows.len();
        backend.gather_logit_rows(&step, &self.residual, 0..wanted, &mut self.selected)?;
        backend.rms_norm(wanted, &self.selected, &weights.final_norm, epsilon, &mut self.normed)?;
        backend.linear(wanted, &self.normed, &weights.embedding, None, Store::Overwrite, &mut self.logits)?;
        let mut host = HostTensor::default();
        backend.download(&self.logits, wanted, &mut host)?;
        assert_eq!((host.rows, host.width), (wanted, self.sizes.vocab));
        Ok(host.data)
    }
}

/// A step of sequences, each with its first position, rows and blocks; logits of every sequence's last row.
pub fn plan(spans: &[(usize, usize, Vec<u32>)], vocab: usize) -> StepPlan {
    let mut plan = StepPlan::default();
    for (first_position, rows, blocks) in spans {
        let first_row = plan.tokens.len();
        let token = |i: usize| ((first_position + i) * 31 + blocks[0] as usize * 7) % vocab;
        plan.tokens.extend((0..*rows).map(|i| token(i) as u32));
        let (rows, first_position, blocks) = (*rows, *first_position, blocks.clone());
        plan.sequences.push(SequenceSpan { first_row, rows, first_position, blocks });
        plan.logit_rows.push(plan.tokens.len() - 1);
    }
    plan
}

/// The largest difference, as a part of the largest expected magnitude; infinite for NaN.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(f32::MIN_POSITIVE, |top, v| top.max(v.abs()));
    found.iter().zip(expected).fold(0.0, |worst: f32, (found, expected)| {
        let error = (found - expected).abs() / top;
        if error.is_nan() { f32::INFINITY } else { worst.max(error) }
    })
}
