//! What a kernel has to move and to multiply at the least, by its shapes.
//!
//! Bytes are counted once for each address, however often a kernel reads it: an FP32 matrix as it lies in memory, a weight in
//! its packed size, a block of the KV cache once for all rows that see it. Operations are those of products and of attention,
//! a multiplication and an addition being two; what norms and activations compute beside their bytes is not counted.

use std::{collections::BTreeSet, fmt};

use modelprofile_kernels::{
    AttentionShape, BLOCK_TOKENS, GroupedActivations, KvLayout, StepPlan, Store, WeightKind, WeightSpec,
    cpu::probe::Machine,
};

/// A kernel with the shapes that decide about its work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// The step's metadata.
    Begin,
    /// Rows of the embedding.
    Embed(Weight),
    /// A norm of rows.
    RmsNorm {
        /// Rows.
        rows: usize,
        /// Columns.
        width: usize,
    },
    /// A product of rows and a weight, what quantizes the rows included.
    Linear(Product),
    /// Rotates queries and keys; stores keys and values.
    RotateAndStore {
        /// Heads.
        shape: AttentionShape,
        /// The cache that they go to.
        kv: KvLayout,
    },
    /// Attention over the cache.
    Attention {
        /// Heads.
        shape: AttentionShape,
        /// The cache that is read.
        kv: KvLayout,
    },
    /// The gated activation.
    GatedSilu {
        /// Rows.
        rows: usize,
        /// Columns of the result.
        width: usize,
    },
    /// Packs the rows that need logits.
    GatherLogitRows {
        /// Rows.
        rows: usize,
        /// Columns.
        width: usize,
    },
    /// Draws tokens on the device.
    Sample {
        /// Rows.
        rows: usize,
        /// The vocabulary.
        width: usize,
    },
    /// Copies rows to the host: the logits.
    Download {
        /// Rows.
        rows: usize,
        /// Columns.
        width: usize,
    },
    /// The end of the step.
    End,
}

/// A weight as far as it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Kind and shape.
    pub spec: WeightSpec,
    /// Bytes in the device's layout.
    pub bytes: usize,
}

/// A product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Which of the model's: `qkv`, `attention_output`, `gate_up`, `down`, `output`.
    pub part: &'static str,
    /// Rows that are multiplied.
    pub rows: usize,
    /// What with.
    pub weight: Weight,
    /// Whether a bias is added.
    pub bias: bool,
    /// What becomes of the output's previous content.
    pub store: Store,
    /// Activations of the group-wise kinds.
    pub grouped: GroupedActivations,
}

/// Bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations on BF16 values, or on wider ones that stand for them.
    pub bf16: u64,
    /// Operations on INT8 values.
    pub int8: u64,
}

/// The limit of the machine that a kernel meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes through the memory's bus.
    Memory,
    /// Multiplications.
    Compute,
}

impl Bound {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

impl Work {
    /// Bytes read and written.
    pub fn moved(&self) -> u64 {
        self.read + self.written
    }

    /// Operations of both kinds.
    pub fn operations(&self) -> u64 {
        self.bf16 + self.int8
    }

    /// Seconds that the machine needs at the least, and what for; `None` where nothing is moved.
    ///
    /// The bandwidth is that of reading from memory. What lies in a cache comes faster, so that a kernel may well take less than
    /// this, and writing may be slower.
    pub fn bound(&self, machine: &Machine) -> Option<(f64, Bound)> {
        if self.moved() == 0 {
            return None;
        }
        let memory = self.moved() as f64 / machine.read_bandwidth;
        let compute = self.bf16 as f64 / machine.bf16_operations + self.int8 as f64 / machine.int8_operations;
        Some(if compute > memory { (compute, Bound::Compute) } else { (memory, Bound::Memory) })
    }

    fn moves(read: usize, written: usize) -> Self {
        Self { read: read as u64, written: written as u64, ..Self::default() }
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.bf16 += other.bf16;
        self.int8 += other.int8;
    }
}

impl Kernel {
    /// Its work in a step of this plan.
    pub fn work(&self, plan: &StepPlan) -> Work {
        let rows = plan.rows();
        match *self {
            Self::Begin | Self::End => Work::default(),
            Self::Embed(table) => {
                let distinct = plan.tokens.iter().collect::<BTreeSet<_>>().len();
                Work::moves((table.bytes * distinct).div_ceil(table.spec.n), floats(rows * table.spec.k))
            }
            Self::RmsNorm { rows, width } => Work::moves(floats(rows * width + width), floats(rows * width)),
            Self::Linear(product) => product.work(),
            Self::RotateAndStore { shape, kv } => {
                // Angles and the gains of heads are a row or two: they are left out.
                let (rotated, stored) = (shape.heads + shape.kv_heads, 2 * shape.kv_heads);
                let written = floats(rotated) + stored * kv.format.bytes();
                Work::moves(rows * floats(shape.heads + stored) * shape.head_dim, rows * written * shape.head_dim)
            }
            Self::Attention { shape, kv } => {
                let queries = floats(rows * shape.heads * shape.head_dim);
                let (blocks, seen) = seen(plan, shape.sliding_window);
                let products = 4 * seen * shape.heads * shape.head_dim;
                Work { bf16: products as u64, ..Work::moves(queries + blocks * kv.layer_bytes(), queries) }
            }
            Self::GatedSilu { rows, width } => Work::moves(floats(rows * 2 * width), floats(rows * width)),
            Self::GatherLogitRows { rows, width } | Self::Download { rows, width } => {
                Work::moves(floats(rows * width), floats(rows * width))
            }
            Self::Sample { rows, width } => Work::moves(floats(rows * width), 0),
        }
    }

    /// The sort of kernel, for a viewer's colours and filters.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::RotateAndStore { .. } | Self::Attention { .. } => "attention",
            Self::Embed(_) | Self::RmsNorm { .. } | Self::GatedSilu { .. } => "elementwise",
            Self::Begin | Self::GatherLogitRows { .. } | Self::Sample { .. } | Self::Download { .. } | Self::End => {
                "host"
            }
        }
    }
}

impl Product {
    fn work(&self) -> Work {
        let WeightSpec { kind, n, k } = self.weight.spec;
        let out = floats(self.rows * n);
        let (bias, added) = (if self.bias { floats(n) } else { 0 }, if self.store == Store::Add { out } else { 0 });
        let per_input = (2 * self.rows * n) as u64;
        // Inputs that are multiplied as INT8; the others are as BF16.
        let int8 = match (kind, self.grouped) {
            (WeightKind::Int8, _)
            | (WeightKind::Int4 { .. } | WeightKind::Int8Group { .. }, GroupedActivations::Int8) => k,
            (WeightKind::Int8Outliers { columns }, _) => k - usize::from(columns),
            _ => 0,
        };
        Work {
            int8: per_input * int8 as u64,
            bf16: per_input * (k - int8) as u64,
            ..Work::moves(floats(self.rows * k) + self.weight.bytes + bias + added, out)
        }
    }
}

/// Blocks of the cache that some row of the step sees, and the tokens that all rows see together.
fn seen(plan: &StepPlan, window: Option<usize>) -> (usize, usize) {
    let (mut blocks, mut tokens) = (BTreeSet::<u32>::new(), 0);
    for sequence in &plan.sequences {
        let end = sequence.first_position + sequence.rows;
        let of = |position: usize| window.map_or(position + 1, |window| window.min(position + 1));
        tokens += (sequence.first_position..end).map(of).sum::<usize>();
        let oldest = sequence.first_position + 1 - of(sequence.first_position);
        blocks.extend(sequence.blocks.iter().take(end.div_ceil(BLOCK_TOKENS)).skip(oldest / BLOCK_TOKENS));
    }
    (blocks.len(), tokens)
}

/// Bytes of FP32 values.
const fn floats(count: usize) -> usize {
    count * size_of::<f32>()
}

/// A product with its part, shape (N x K) and format, others by their name: what is one line of a table.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Begin => "begin",
            Self::Embed(_) => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Linear(Product { part, weight: Weight { spec, .. }, .. }) => {
                return f.pad(&format!("{part} {}x{} {}", spec.n, spec.k, kind(spec.kind)));
            }
            Self::RotateAndStore { .. } => "rotate_and_store",
            Self::Attention { .. } => "attention",
            Self::GatedSilu { .. } => "gated_silu",
            Self::GatherLogitRows { .. } => "gather_logit_rows",
            Self::Sample { .. } => "sample",
            Self::Download { .. } => "download",
            Self::End => "end",
        })
    }
}

/// A kind as users write formats.
fn kind(kind: WeightKind) -> String {
    match kind {
        WeightKind::Bf16 => "BF16".into(),
        WeightKind::Fp8 => "FP8".into(),
        WeightKind::Fp8Static => "FP8:static".into(),
        WeightKind::Fp8Block => "FP8:block".into(),
        WeightKind::Int8 => "INT8".into(),
        WeightKind::Int8Outliers { .. } => "INT8:llm-int8".into(),
        WeightKind::Int4 { group } => format!("INT4:g{group}"),
        WeightKind::Int8Group { group } => format!("INT8:g{group}"),
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
