//! Calibration text through one decoder layer at a time: only that layer's weights are on the device.
//!
//! ```text
//! residual --norm--> [Qkv] --> rotate, attend --> [Output] --+--> residual, halfway
//! residual, halfway --norm--> [GateUp] --> silu --> [Down] --+--> residual of the next layer
//! ```
//!
//! What enters a stage in brackets is shown to a visitor, sequence by sequence.

use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, Calibrate, Device, HostTensor, HostWeight, KvFormat, KvLayout, KvScales, Rotary,
    SequenceSpan, Split, StepPlan, Store,
};

use super::{
    Calibration,
    dense::{DenseLayer, Stage, rounded},
};
use crate::{
    ModelConfig, Result,
    checkpoint::{Checkpoint, Role},
    model::rope,
};

/// Sees the inputs of a stage: `rows` rows of a buffer.
pub(super) type Visitor<'v, B> = dyn FnMut(&mut B, usize, &<B as Device>::Buffer) -> Result<()> + 'v;

/// A layer's weights on the device, in BF16.
pub(super) struct DeviceLayer<D: Device> {
    attention_norm: D::Buffer,
    mlp_norm: D::Buffer,
    qkv_bias: Option<D::Buffer>,
    query_norm: Option<D::Buffer>,
    key_norm: Option<D::Buffer>,
    qkv: D::Weight,
    output: D::Weight,
    gate_up: D::Weight,
    down: D::Weight,
}

impl<D: Device> DeviceLayer<D> {
    /// Uploads a layer, its matrices rounded to BF16.
    pub(super) fn new(device: &D, layer: &DenseLayer) -> Result<Self> {
        let index = layer.index;
        let vector = |role: Role| -> Result<D::Buffer> { upload(device, layer.vector(role)?) };
        let optional = |role: Role| layer.vector(role).ok().map(|values| upload(device, values)).transpose();
        let bias = [Role::QueryBias(index), Role::KeyBias(index), Role::ValueBias(index)];
        let bias: Vec<f32> = bias.into_iter().filter_map(|r| layer.vector(r).ok()).flatten().copied().collect();
        let weight = |stage| -> Result<D::Weight> { resident(device, &rounded(&layer.stacked(stage)?)) };
        Ok(Self {
            attention_norm: vector(Role::AttentionNorm(index))?,
            mlp_norm: vector(Role::MlpNorm(index))?,
            qkv_bias: (!bias.is_empty()).then(|| upload(device, &bias)).transpose()?,
            query_norm: optional(Role::QueryNorm(index))?,
            key_norm: optional(Role::KeyNorm(index))?,
            qkv: weight(Stage::Qkv)?,
            output: weight(Stage::Output)?,
            gate_up: weight(Stage::GateUp)?,
            down: weight(Stage::Down)?,
        })
    }

    /// Replaces a stage's weight.
    pub(super) fn replace(&mut self, device: &D, stage: Stage, weight: &HostWeight) -> Result<()> {
        let slot = match stage {
            Stage::Qkv => &mut self.qkv,
            Stage::Output => &mut self.output,
            Stage::GateUp => &mut self.gate_up,
            Stage::Down => &mut self.down,
        };
        *slot = resident(device, weight)?;
        Ok(())
    }
}

fn upload<D: Device>(device: &D, values: &[f32]) -> Result<D::Buffer> {
    Ok(device.upload(&HostTensor { rows: 1, width: values.len(), data: values.to_vec() })?)
}

/// A weight on the device.
pub(super) fn resident<D: Device>(device: &D, weight: &HostWeight) -> Result<D::Weight> {
    Ok(device.weight(&modelprofile_kernels::pack(weight)?, Split::Replicated)?)
}

/// The calibration text between two layers.
pub(super) struct Runner<B: Calibrate> {
    config: ModelConfig,
    attention: AttentionShape,
    frequencies: B::Buffer,
    kv: B::Kv,
    /// Tokens of each sequence.
    rows: usize,
    /// The residual stream of every sequence, `[tokens, hidden]`, on the host: a device holds one sequence at a time.
    residual: Vec<f32>,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    host: HostTensor,
}

impl<B: Calibrate> Runner<B> {
    /// Embeds the calibration text.
    ///
    /// # Errors
    /// A token that is not in the vocabulary, and the checkpoint's and the device's errors.
    pub(super) fn new(backend: &B, checkpoint: &Checkpoint, calibration: &Calibration) -> Result<Self> {
        let config = checkpoint.config().clone();
        let embedding = checkpoint.require(Role::Embedding)?;
        let mut residual = vec![0.0; calibration.tokens().len() * config.hidden];
        for (token, row) in calibration.tokens().iter().zip(residual.chunks_exact_mut(config.hidden)) {
            embedding.row_f32(*token as usize, row)?;
        }
        checkpoint.release(Role::Embedding);
        let rows = calibration.sequence_tokens();
        let layout = KvLayout { layers: 1, ..config.kv_layout(KvFormat::Bf16) };
        let blocks = rows.div_ceil(BLOCK_TOKENS);
        let frequencies = rope::inverse_frequencies(&config);
        let heads = (config.heads + 2 * config.kv_heads) * config.head_dim;
        Ok(Self {
            attention: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                sliding_window: config.sliding_window,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
            },
            frequencies: upload(backend, &frequencies)?,
            kv: backend.kv(layout, &KvScales::unit(&layout), blocks, blocks)?,
            rows,
            residual,
            normed: backend.buffer(rows, config.hidden)?,
            qkv: backend.buffer(rows, heads)?,
            attended: backend.buffer(rows, config.heads * config.head_dim)?,
            gate_up: backend.buffer(rows, 2 * config.intermediate)?,
            activated: backend.buffer(rows, config.intermediate)?,
            host: HostTensor::default(),
            config,
        })
    }

    /// Tokens in all.
    pub(super) fn tokens(&self) -> usize {
        self.residual.len() / self.config.hidden
    }

    /// The residual stream of all sequences, `[tokens, hidden]`.
    pub(super) fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// Takes another residual stream; `false`, and nothing changes, when it has another size.
    pub(super) fn set_residual(&mut self, residual: Vec<f32>) -> bool {
        let fits = residual.len() == self.residual.len();
        if fits {
            self.residual = residual;
        }
        fits
    }

    /// Shows the inputs of `stage`. The residual stream must be where the stage begins: at the layer's entry for the first
    /// two, halfway for the others.
    pub(super) fn visit(
        &mut self,
        backend: &mut B,
        layer: &DeviceLayer<B>,
        stage: Stage,
        see: &mut Visitor<'_, B>,
    ) -> Result<()> {
        match stage {
            Stage::Qkv => self.normed(backend, &layer.attention_norm, see),
            Stage::Output => self.attend(backend, layer, false, see),
            Stage::GateUp => self.normed(backend, &layer.mlp_norm, see),
            Stage::Down => self.mlp(backend, layer, false, see),
        }
    }

    /// Takes the residual stream from a layer's entry to halfway, and shows the inputs of the attention's output.
    pub(super) fn through_attention(
        &mut self,
        backend: &mut B,
        layer: &DeviceLayer<B>,
        see: &mut Visitor<'_, B>,
    ) -> Result<()> {
        self.attend(backend, layer, true, see)
    }

    /// Takes the residual stream from halfway to the next layer, and shows the inputs of the down projection.
    pub(super) fn through_mlp(
        &mut self,
        backend: &mut B,
        layer: &DeviceLayer<B>,
        see: &mut Visitor<'_, B>,
    ) -> Result<()> {
        self.mlp(backend, layer, true, see)
    }

    fn sequences(&self) -> usize {
        self.tokens() / self.rows
    }

    fn load(&self, backend: &B, sequence: usize) -> Result<B::Buffer> {
        let len = self.rows * self.config.hidden;
        let data = self.residual[sequence * len..(sequence + 1) * len].to_vec();
        Ok(backend.upload(&HostTensor { rows: self.rows, width: self.config.hidden, data })?)
    }

    fn keep(&mut self, backend: &B, sequence: usize, buffer: &B::Buffer) -> Result<()> {
        backend.download(buffer, self.rows, &mut self.host)?;
        let len = self.rows * self.config.hidden;
        self.residual[sequence * len..(sequence + 1) * len].copy_from_slice(&self.host.data);
        Ok(())
    }

    fn normed(&mut self, backend: &mut B, gain: &B::Buffer, see: &mut Visitor<'_, B>) -> Result<()> {
        for sequence in 0..self.sequences() {
            let residual = self.load(backend, sequence)?;
            backend.rms_norm(self.rows, &residual, gain, self.config.rms_epsilon, &mut self.normed)?;
            see(backend, self.rows, &self.normed)?;
        }
        Ok(())
    }

    fn attend(&mut self, backend: &mut B, layer: &DeviceLayer<B>, keep: bool, see: &mut Visitor<'_, B>) -> Result<()> {
        let (rows, epsilon) = (self.rows, self.config.rms_epsilon);
        let step = backend.begin(&StepPlan {
            // Nothing is embedded: which tokens these are does not matter.
            tokens: vec![0; rows],
            sequences: vec![SequenceSpan {
                first_row: 0,
                rows,
                first_position: 0,
                blocks: (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect(),
            }],
            logit_rows: Vec::new(),
        })?;
        for sequence in 0..self.sequences() {
            let mut residual = self.load(backend, sequence)?;
            backend.rms_norm(rows, &residual, &layer.attention_norm, epsilon, &mut self.normed)?;
            let bias = layer.qkv_bias.as_ref();
            backend.linear(rows, &self.normed, &layer.qkv, bias, Store::Overwrite, &mut self.qkv)?;
            let rotary = Rotary {
                inverse_frequencies: &self.frequencies,
                attention_factor: 1.0,
                query_norm: layer.query_norm.as_ref(),
                key_norm: layer.key_norm.as_ref(),
                norm_epsilon: epsilon,
            };
            backend.rotate_and_store(&step, &mut self.qkv, &self.attention, &rotary, &mut self.kv, 0)?;
            backend.attention(&step, &self.qkv, &self.attention, &self.kv, 0, &mut self.attended)?;
            see(backend, rows, &self.attended)?;
            if keep {
                backend.linear(rows, &self.attended, &layer.output, None, Store::Add, &mut residual)?;
                self.keep(backend, sequence, &residual)?;
            }
        }
        Ok(backend.end(step)?)
    }

    fn mlp(&mut self, backend: &mut B, layer: &DeviceLayer<B>, keep: bool, see: &mut Visitor<'_, B>) -> Result<()> {
        let rows = self.rows;
        for sequence in 0..self.sequences() {
            let mut residual = self.load(backend, sequence)?;
            backend.rms_norm(rows, &residual, &layer.mlp_norm, self.config.rms_epsilon, &mut self.normed)?;
            backend.linear(rows, &self.normed, &layer.gate_up, None, Store::Overwrite, &mut self.gate_up)?;
            backend.gated_silu(rows, &self.gate_up, &mut self.activated)?;
            see(backend, rows, &self.activated)?;
            if keep {
                backend.linear(rows, &self.activated, &layer.down, None, Store::Add, &mut residual)?;
                self.keep(backend, sequence, &residual)?;
            }
        }
        Ok(())
    }
}
