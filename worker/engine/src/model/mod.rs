//! The transformer, written once against [`Backend`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`weights`] | one profile's weights on a device |
//! | [`rope`] | rotary frequencies with long-context scaling |
//! | [`readout`] | what becomes of a step's logits |
//! | this one | the forward pass of a step |

pub mod readout;
pub mod rope;
pub mod weights;

use std::ops::Range;

use modelprofile_kernels::{AttentionShape, Backend, HostTensor, Rotary, StepPlan, Store as Output, Workload};

pub use readout::{Forget, Readout};
pub use weights::{ProfileWeights, StepWeights};

use crate::{ModelConfig, Result};

/// Buffers and constants of a model on a device; the weights of a profile are passed to each step.
pub struct Model<B: Backend> {
    config: ModelConfig,
    attention: AttentionShape,
    inverse_frequencies: B::Buffer,
    max_rows: usize,
    logit_rows: usize,
    residual: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    selected: B::Buffer,
    logits: B::Buffer,
    host: HostTensor,
}

/// Rows whose logits are computed at once: bounds the largest buffer (rows x vocabulary).
const LOGIT_ROWS: usize = 64;

impl<B: Backend> Model<B> {
    /// Allocates the buffers for steps of up to `max_rows` rows.
    pub fn new(backend: &B, config: &ModelConfig, max_rows: usize) -> Result<Self> {
        let heads = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let logit_rows = LOGIT_ROWS.min(max_rows);
        let frequencies = rope::inverse_frequencies(config);
        let frequencies = HostTensor { rows: 1, width: frequencies.len(), data: frequencies };
        Ok(Self {
            attention: attention(config),
            inverse_frequencies: backend.upload(&frequencies)?,
            max_rows,
            logit_rows,
            residual: backend.buffer(max_rows, config.hidden)?,
            normed: backend.buffer(max_rows, config.hidden)?,
            qkv: backend.buffer(max_rows, heads)?,
            attended: backend.buffer(max_rows, config.heads * config.head_dim)?,
            gate_up: backend.buffer(max_rows, 2 * config.intermediate)?,
            activated: backend.buffer(max_rows, config.intermediate)?,
            selected: backend.buffer(logit_rows, config.hidden)?,
            logits: backend.buffer(logit_rows, config.vocab)?,
            host: HostTensor::default(),
            config: config.clone(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the buffers of a model with steps of `max_rows` rows.
    pub fn workspace_bytes(config: &ModelConfig, max_rows: usize) -> u64 {
        // The logits exist twice: on the device, and on the host where it reads them.
        Self::buffer_bytes(config, max_rows) + 4 * (LOGIT_ROWS.min(max_rows) * config.vocab) as u64
    }

    /// Those of them that are on the device.
    pub fn buffer_bytes(config: &ModelConfig, max_rows: usize) -> u64 {
        let heads = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let row = 2 * config.hidden + heads + config.heads * config.head_dim + 3 * config.intermediate;
        4 * (max_rows * row + LOGIT_ROWS.min(max_rows) * (config.hidden + config.vocab)) as u64
    }

    /// What the device needs to know of a model's steps to set scratch aside for them.
    ///
    /// `sequences` are those of a step, `tokens` those of a sequence, `blocks` those of the KV pool, each at most.
    pub fn workload(config: &ModelConfig, max_rows: usize, sequences: usize, tokens: usize, blocks: usize) -> Workload {
        let attended = config.heads * config.head_dim;
        let heads = attended + 2 * config.kv_heads * config.head_dim;
        Workload {
            rows: max_rows,
            logit_rows: LOGIT_ROWS.min(max_rows),
            products: vec![
                (heads, config.hidden),
                (config.hidden, attended),
                (2 * config.intermediate, config.hidden),
                (config.hidden, config.intermediate),
            ],
            output: (config.vocab, config.hidden),
            attention: attention(config),
            sequences,
            tokens,
            blocks,
        }
    }

    /// Most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Computes a step: every row's K and V go into the cache, and `logits` gets consecutive ranges of `plan.logit_rows`.
    ///
    /// `leaving` are the weights of other profiles, whose memory is given back layer by layer, as the layers of
    /// `weights` are first used: a swap never holds two profiles in memory.
    pub fn step(
        &mut self,
        backend: &mut B,
        weights: &ProfileWeights<B>,
        leaving: &[&ProfileWeights<B>],
        kv: &mut B::Kv,
        plan: &StepPlan,
        logits: &mut dyn Readout,
    ) -> Result<()> {
        self.step_observed(backend, &weights.into(), leaving, kv, plan, logits, &mut |_, _, _| Ok(()))
    }

    /// Like [`Self::step`], with weights that may be of two profiles; `rotated` also sees each layer's `[rows, (heads + 2 kv_heads) head_dim]` queries, keys and
    /// values as they go into the cache (calibration of its scales), which is a sign of life in a long step too.
    #[allow(
        clippy::too_many_arguments,
        clippy::type_complexity,
        reason = "a step has this many parts; few use the last"
    )]
    pub fn step_observed(
        &mut self,
        backend: &mut B,
        weights: &StepWeights<'_, B>,
        leaving: &[&ProfileWeights<B>],
        kv: &mut B::Kv,
        plan: &StepPlan,
        logits: &mut dyn Readout,
        rotated: &mut dyn FnMut(usize, &B, &B::Buffer) -> Result<()>,
    ) -> Result<()> {
        let rows = plan.rows();
        let epsilon = self.config.rms_epsilon;
        let step = backend.begin(plan)?;
        for leaving in leaving {
            leaving.release_ends(backend);
        }
        backend.embed(&step, weights.embedding, &mut self.residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            for leaving in leaving {
                leaving.layers[index].release(backend);
            }
            backend.rms_norm(rows, &self.residual, &layer.attention_norm, epsilon, &mut self.normed)?;
            let bias = layer.qkv_bias.as_ref();
            backend.linear(rows, &self.normed, &layer.qkv, bias, Output::Overwrite, &mut self.qkv)?;
            let rotary = Rotary {
                inverse_frequencies: &self.inverse_frequencies,
                attention_factor: 1.0,
                query_norm: layer.query_norm.as_ref(),
                key_norm: layer.key_norm.as_ref(),
                norm_epsilon: epsilon,
            };
            backend.rotate_and_store(&step, &mut self.qkv, &self.attention, &rotary, kv, index)?;
            rotated(index, backend, &self.qkv)?;
            backend.attention(&step, &self.qkv, &self.attention, kv, index, &mut self.attended)?;
            backend.linear(rows, &self.attended, &layer.attention_output, None, Output::Add, &mut self.residual)?;
            backend.rms_norm(rows, &self.residual, &layer.mlp_norm, epsilon, &mut self.normed)?;
            backend.linear(rows, &self.normed, &layer.gate_up, None, Output::Overwrite, &mut self.gate_up)?;
            backend.gated_silu(rows, &self.gate_up, &mut self.activated)?;
            backend.linear(rows, &self.activated, &layer.down, None, Output::Add, &mut self.residual)?;
        }
        for start in (0..plan.logit_rows.len()).step_by(self.logit_rows) {
            let range = start..plan.logit_rows.len().min(start + self.logit_rows);
            let rows = range.len();
            backend.gather_logit_rows(&step, &self.residual, range.clone(), &mut self.selected)?;
            backend.rms_norm(rows, &self.selected, weights.final_norm, epsilon, &mut self.normed)?;
            backend.linear(rows, &self.normed, weights.output, None, Output::Overwrite, &mut self.logits)?;
            self.read_out(backend, range, logits)?;
        }
        Ok(backend.end(step)?)
    }

    /// Has tokens drawn where the logits are, and copies the logits of the other rows.
    fn read_out(&mut self, backend: &mut B, range: Range<usize>, readout: &mut dyn Readout) -> Result<()> {
        let draws = readout.draws(range.clone());
        let copied = range.len() - draws.len().min(range.len());
        let drawn = if draws.is_empty() { None } else { backend.sample(&mut self.logits, copied, &draws)? };
        let copied = if drawn.is_some() { copied } else { range.len() };
        if copied > 0 {
            backend.download(&self.logits, copied, &mut self.host)?;
            readout.logits(range.start..range.start + copied, &mut self.host)?;
        }
        drawn.map_or(Ok(()), |tokens| readout.tokens(range.start + copied..range.end, &tokens))
    }
}

fn attention(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        sliding_window: config.sliding_window,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
    }
}
