//! What model code needs from a device. `Cpu` implements it; a GPU implements it with its own buffers.
//!
//! All activations are `[rows, width]` FP32 matrices that live in [`Device::Buffer`]s. No signature here takes or returns
//! a CPU slice of device data: host data crosses only in [`Device::upload`], [`Device::download`] and
//! [`Device::weight`].

use std::ops::Range;

use crate::{
    BlockMove, Draw, GroupedActivations, KernelError, KvLayout, KvScales, PackedWeight, Result, StepPlan, WeightSpec,
};

/// A row-major FP32 matrix on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTensor {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub width: usize,
    /// `rows * width` values.
    pub data: Vec<f32>,
}

impl HostTensor {
    /// # Errors
    /// [`KernelError::Shape`] if the values are not as many as rows and columns say.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { rows, width, data } = self;
        if data.len() == rows * width {
            return Ok(());
        }
        Err(KernelError::Shape(format!("{} values are not {rows} x {width}", data.len())))
    }
}

/// How a weight is divided over the devices that compute one model together (tensor parallelism; Shoeybi et al. 2019,
/// "Megatron-LM", section 3). A device that computes alone holds all of it, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Each device holds all of it.
    Replicated,
    /// Outputs are query heads, then key heads, then value heads; each device has its share of the three.
    Heads {
        /// Query heads.
        heads: usize,
        /// Key heads, and as many value heads.
        kv_heads: usize,
        /// Outputs of each head.
        head_dim: usize,
    },
    /// Outputs are two matrices on top of each other (gate and up); each device has the same rows of both.
    Halves,
    /// Outputs in ranges (the vocabulary of an output layer).
    Outputs,
    /// Inputs in ranges: each device has a part of every sum, and the parts are added over the devices.
    Inputs,
}

/// Where a weight's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// On the host alone.
    Absent,
    /// On their way: work that uses the weight waits for them.
    Coming,
    /// Where they are computed with.
    Here,
}

/// What the steps of a model are like, at most: what a device's scratch depends on. Shapes without kinds, because a profile of
/// other kinds may join a ladder that serves.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Rows of a step.
    pub rows: usize,
    /// Rows whose logits are computed at once.
    pub logit_rows: usize,
    /// Shapes (outputs, inputs) of the weights that all rows are multiplied with.
    pub products: Vec<(usize, usize)>,
    /// Shape of the output layer.
    pub output: (usize, usize),
    /// Geometry of the attention.
    pub attention: AttentionShape,
    /// Sequences of a step.
    pub sequences: usize,
    /// Tokens of a sequence, prompt and output.
    pub tokens: usize,
    /// Blocks of the KV pool.
    pub blocks: usize,
}

/// Memory of a device: buffers, resident weights, the KV pool.
pub trait Device: Send + 'static {
    /// An FP32 matrix `[rows, width]`.
    type Buffer: Send;
    /// A packed linear weight that can be computed with.
    type Weight: Send;
    /// The paged KV pool of all layers.
    type Kv: Send;

    /// What it is, for people.
    fn name(&self) -> String;
    /// A zeroed buffer.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer>;
    /// Copies a host matrix to the device (norm gains, biases, rotary tables).
    fn upload(&self, host: &HostTensor) -> Result<Self::Buffer>;
    /// Copies the first `rows` rows to the host, after all work that writes them.
    fn download(&self, buffer: &Self::Buffer, rows: usize, host: &mut HostTensor) -> Result<()>;
    /// Makes a packed weight usable. On the CPU this is a view of the mapped file: its pages are read at first use.
    fn weight(&self, packed: &PackedWeight, split: Split) -> Result<Self::Weight>;
    /// Bytes of such a weight on one device.
    fn weight_bytes(&self, spec: &WeightSpec, split: Split) -> Result<usize>;
    /// Bytes of one block of a KV pool on one device.
    fn kv_block_bytes(&self, layout: &KvLayout) -> usize {
        layout.block_bytes()
    }
    /// What the group-wise kinds are multiplied with here. On a GPU that is BF16, the W4A16 definition, whatever was asked for.
    fn grouped_activations(&self) -> GroupedActivations {
        GroupedActivations::Bf16
    }
    /// Bytes a second that come from the host's memory, modelled, on a device with a memory of its own: there [`Self::release`]
    /// takes a weight's memory once the work submitted before is done, [`Self::prefetch`] is a copy beside the computation,
    /// and a switch of profiles goes layer by layer. `None` where weights are used where they lie.
    fn host_bandwidth(&self) -> Option<f64> {
        None
    }
    /// Sets scratch aside for steps like these, so that none of them has to find any.
    ///
    /// Returns the bytes of this device that are neither weights nor cache nor the caller's buffers, at most: scratch, and what
    /// is lost where memory comes in large pieces, while a switch is under way, too. With the three they must fit the budget.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when the budget does not even hold the scratch.
    fn reserve(&self, workload: &Workload) -> Result<usize> {
        let _ = workload;
        Ok(0)
    }
    /// Starts reading the weight's bytes toward the device, without waiting and without making them resident for good. A device
    /// without room for them now leaves them where they are.
    fn prefetch(&self, weight: &Self::Weight);
    /// Where the weight's bytes are now; does not wait.
    fn presence(&self, weight: &Self::Weight) -> Presence {
        let _ = weight;
        Presence::Here
    }
    /// Gives the weight's resident memory back; it stays usable and is read again at its next use.
    fn release(&self, weight: &Self::Weight);
    /// A pool with `blocks` usable blocks, able to grow to `max_blocks` without moving.
    fn kv(&self, layout: KvLayout, scales: &KvScales, blocks: usize, max_blocks: usize) -> Result<Self::Kv>;
    /// Changes the number of usable blocks; memory of blocks above it goes back to the system.
    fn kv_resize(&self, kv: &mut Self::Kv, blocks: usize) -> Result<()>;
    /// Copies blocks, in order.
    fn kv_move(&self, kv: &mut Self::Kv, moves: &[BlockMove]) -> Result<()>;
}

/// Attention geometry of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Positions older than this many are not attended (Mistral); `None` attends all.
    pub sliding_window: Option<usize>,
    /// Factor on the logits, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Rotary embedding and the optional per-head norms before it (Qwen3).
#[derive(Debug)]
pub struct Rotary<'a, B> {
    /// Inverse frequencies `[1, rotary_dim / 2]`, long-context scaling already applied. Halves are rotated as
    /// `(x[i], x[i + rotary_dim/2])`, the Hugging Face order.
    pub inverse_frequencies: &'a B,
    /// Factor on cos and sin (YaRN's attention factor); 1 otherwise.
    pub attention_factor: f32,
    /// RMS gain `[1, head_dim]` on each query head, before the rotation.
    pub query_norm: Option<&'a B>,
    /// RMS gain `[1, head_dim]` on each key head, before the rotation.
    pub key_norm: Option<&'a B>,
    /// Epsilon of these norms.
    pub norm_epsilon: f32,
}

/// What [`Backend::linear`] does with the output's previous content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = x w`.
    Overwrite,
    /// `y += x w` (the residual add).
    Add,
}

/// The operations of a decoder-only transformer. Each computes the rows of the current step (`step.rows()` unless it
/// says otherwise).
pub trait Backend: Device {
    /// A step's metadata on the device.
    type Step: Send;

    /// Uploads tokens, positions, cache slots and block tables of a step.
    fn begin(&mut self, plan: &StepPlan) -> Result<Self::Step>;
    /// `out[r] = table[token[r]]`, the dequantized row of an embedding `[vocab, hidden]`.
    fn embed(&mut self, step: &Self::Step, table: &Self::Weight, out: &mut Self::Buffer) -> Result<()>;
    /// `out[r] = x[r] / sqrt(mean(x[r]^2) + epsilon) * gain`.
    ///
    /// A device may compute `out` when it is first read, and for a product as a part of it. Once a product has read `out` and
    /// `x` has been written again, `out` may not be read any more: on such a device that is an error.
    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        gain: &Self::Buffer,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `out[r] (+)= w x[r] + bias` for the first `rows` rows, activations quantized as the weight's kind says.
    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Weight,
        bias: Option<&Self::Buffer>,
        store: Store,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Normalizes (optional) and rotates Q and K in `qkv` (`[rows, (heads + 2 kv_heads) head_dim]`: all query heads, then
    /// key heads, then value heads) and stores K and V of the step's rows into the pool.
    fn rotate_and_store(
        &mut self,
        step: &Self::Step,
        qkv: &mut Self::Buffer,
        shape: &AttentionShape,
        rotary: &Rotary<'_, Self::Buffer>,
        kv: &mut Self::Kv,
        layer: usize,
    ) -> Result<()>;
    /// Causal attention of the step's rows over their sequences' cached tokens, K and V read as stored:
    /// `out[r] [heads * head_dim]`.
    fn attention(
        &mut self,
        step: &Self::Step,
        qkv: &Self::Buffer,
        shape: &AttentionShape,
        kv: &Self::Kv,
        layer: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `out[r, i] = silu(x[r, i]) * x[r, width + i]` for `x` of `[rows, 2 width]`. When `out` is computed and how long it may
    /// be read is as with [`Self::rms_norm`].
    fn gated_silu(&mut self, rows: usize, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;
    /// `out[i] = x[logit_rows[range.start + i]]`: some of the rows that need logits, packed together.
    fn gather_logit_rows(
        &mut self,
        step: &Self::Step,
        x: &Self::Buffer,
        range: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Draws tokens where the logits are: of the rows of `logits`, `[rows, vocab]`, from `first` on, one for each of `draws`, in
    /// their order. An entry is `None` where a logit is NaN, or none can be drawn since all are negative infinity.
    ///
    /// `Ok(None)`: not here. Nothing was changed, and the caller downloads the rows and draws itself. A device says so of a buffer
    /// as it is (its width, how it is divided over several devices), and says the same of it every time; the default is the
    /// device without any means to draw, whose logits are in the host's memory anyway.
    ///
    /// Otherwise the rows drawn from hold anything afterwards, and the other rows what they held. It waits for what was drawn,
    /// and so ends the part of a step that may be recorded, as [`Device::download`] does.
    ///
    /// The same logits and [`Draw`] give the same token every time. Devices may differ where rounding decides: for a share of
    /// probability (`top_p`, `random`) that falls within 1e-7 of a boundary.
    ///
    /// # Errors
    /// [`KernelError::Shape`] for rows that the buffer does not have; what failed in the computation up
    /// to now, as with [`Device::download`].
    fn sample(&mut self, logits: &mut Self::Buffer, first: usize, draws: &[Draw]) -> Result<Option<Vec<Option<u32>>>> {
        let _ = (logits, first, draws);
        Ok(None)
    }
    /// Ends a step: all of it has been handed to the device, and what failed in that and was not told by an operation is told
    /// here. What fails within the computation is told by the next [`Device::download`] or [`Self::sample`].
    ///
    /// A step of which something failed need not be ended.
    fn end(&mut self, step: Self::Step) -> Result<()>;
}
