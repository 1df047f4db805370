//! The kernels of a step with their modelled times.

use anyhow::{Context, ensure};
use modelprofile_api as api;
use modelprofile_engine::{
    ModelConfig, WeightFormat,
    model::{Forget, Model, ProfileWeights, weights::LayerWeights},
};
use modelprofile_kernels::{
    BLOCK_TOKENS, Device as _, HostTensor, KvFormat, KvScales, SequenceSpan, Split, StepPlan, WeightKind, WeightSpec,
    cuda::{Cores, MMA_SYNC_SHARE, PlanOptions, Planned, Planner, What},
};
use modelprofile_roofline::{Batch, Ceilings, Constants, Cost, Hardware, Precision, Roofline, Unit};

use super::{Profile, shape, share};

/// Rows that the engine's buffers have at the least, so that decode steps are padded as they are in a worker.
const LEAST_ROWS: usize = 64;

/// Kernels of one name, grid and work, and the time of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// One of them.
    pub planned: Planned,
    /// How many the step has.
    pub count: usize,
    /// The time of one.
    pub cost: Cost,
}

impl Entry {
    /// Seconds of all of them.
    pub fn seconds(&self) -> f64 {
        self.cost.seconds * self.count as f64
    }
}

/// A step, kernel by kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// `decode` or `prefill`.
    pub kind: &'static str,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each in the cache before the step.
    pub context: usize,
    /// Rows of each.
    pub rows: usize,
    /// Its kernels, copies and exchanges, each kind once.
    pub entries: Vec<Entry>,
    /// Seconds of everything that gives `tokens`: this step, or all chunks of a prompt of which this is the last.
    pub all_seconds: f64,
    /// Tokens that all of it gives: new ones, or those of the prompt.
    pub tokens: usize,
    /// Seconds of this step by the simulator, which does not look at kernels.
    pub simulated_seconds: f64,
}

impl Step {
    /// Seconds of the step.
    pub fn seconds(&self) -> f64 {
        self.entries.iter().map(Entry::seconds).sum()
    }

    /// Tokens per second, modelled.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.all_seconds
    }
}

/// A GPU, and its share of the model in a precision.
pub struct Device {
    config: ModelConfig,
    profile: Profile,
    options: PlanOptions,
    ceilings: Ceilings,
    simulated: Roofline,
}

impl Device {
    /// # Errors
    /// The model cannot be divided over the profile's GPUs.
    pub fn new(hardware: &Hardware, config: &ModelConfig, profile: &Profile) -> anyhow::Result<Self> {
        let constants = Constants::default();
        let options = PlanOptions { devices: profile.devices, ..PlanOptions::new(hardware.multiprocessors as usize) };
        Ok(Self {
            config: share(config, profile.devices)?,
            profile: profile.clone(),
            options,
            ceilings: Ceilings::new(hardware, constants),
            simulated: Roofline::new(hardware, &shape(config), precision(profile), constants),
        })
    }

    /// What its hardware reaches.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// One more token for each of `batch` sequences that have `context`.
    ///
    /// # Errors
    /// The backend's: it has no kernel for such a model.
    pub fn decode(&self, batch: usize, context: usize) -> anyhow::Result<Step> {
        ensure!(batch > 0, "a batch of no sequences");
        let entries = self.entries(batch, context, 1)?;
        let seconds = entries.iter().map(Entry::seconds).sum();
        let simulated =
            Batch { decode: batch as f64, decode_context: (batch * (context + 1)) as f64, ..Batch::default() };
        Ok(Step {
            kind: "decode",
            batch,
            context,
            rows: 1,
            entries,
            all_seconds: seconds,
            tokens: batch,
            simulated_seconds: self.simulated.step_seconds(simulated),
        })
    }

    /// A prompt in chunks: the last chunk's kernels, and the time of all.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn prefill(&self, prompt: usize, chunk: usize) -> anyhow::Result<Step> {
        ensure!(prompt > 0 && chunk > 0, "a prompt or a chunk of no tokens");
        let (mut all_seconds, mut last) = (0.0, (0, 0, Vec::new()));
        for first in (0..prompt).step_by(chunk) {
            let rows = chunk.min(prompt - first);
            let entries = self.entries(1, first, rows)?;
            all_seconds += entries.iter().map(Entry::seconds).sum::<f64>();
            last = (first, rows, entries);
        }
        let (context, rows, entries) = last;
        let simulated = Batch {
            prefill: rows as f64,
            prefill_context: (context * rows + rows * (rows + 1) / 2) as f64,
            ..Batch::default()
        };
        Ok(Step {
            kind: "prefill",
            batch: 1,
            context,
            rows,
            entries,
            all_seconds,
            tokens: prompt,
            simulated_seconds: self.simulated.step_seconds(simulated),
        })
    }

    /// Bytes of all weights on one GPU, as they are packed for it.
    ///
    /// # Errors
    /// The format cannot hold a weight's shape.
    pub fn weight_bytes(&self) -> anyhow::Result<u64> {
        let planner = Planner::new(self.options);
        let bytes = |spec: &WeightSpec, split| anyhow::Ok(planner.weight_bytes(spec, split)? as u64);
        let shapes = Shapes::new(&self.config, self.profile.weights);
        let layer: u64 =
            shapes.layer().iter().map(|(_, spec, split)| bytes(spec, *split)).sum::<anyhow::Result<_>>()?;
        let ends = if self.config.tied_embeddings { 1 } else { 2 };
        Ok(self.config.layers as u64 * layer + ends * bytes(&shapes.ends, Split::Outputs)?)
    }

    /// The kernels of a step of `batch` sequences with `rows` rows each behind `first` tokens.
    fn entries(&self, batch: usize, first: usize, rows: usize) -> anyhow::Result<Vec<Entry>> {
        let planned = self.planned(batch, first, rows).with_context(|| format!("profile {}", self.profile.name))?;
        let mut entries: Vec<Entry> = Vec::new();
        for planned in planned {
            match entries.iter_mut().find(|entry| entry.planned == planned) {
                Some(entry) => entry.count += 1,
                None => entries.push(Entry { cost: self.cost(&planned), planned, count: 1 }),
            }
        }
        Ok(entries)
    }

    fn planned(&self, batch: usize, first: usize, rows: usize) -> anyhow::Result<Vec<Planned>> {
        let mut planner = Planner::new(self.options);
        let blocks = (first + rows).div_ceil(BLOCK_TOKENS);
        let layout = self.config.kv_layout(self.profile.kv);
        let mut kv = planner.kv(layout, &KvScales::unit(&layout), batch * blocks, batch * blocks)?;
        let weights = profile_weights(&planner, &self.config, self.profile.weights, |name, spec, split| {
            Ok(planner.planned_weight(name, spec, split)?)
        })?;
        let mut model = Model::new(&planner, &self.config, (batch * rows).max(LEAST_ROWS))?;
        let plan = step_plan(batch, first, rows, 1);
        planner.take();
        model.step(&mut planner, &weights, &[], &mut kv, &plan, &mut Forget)?;
        Ok(planner.take())
    }

    fn cost(&self, planned: &Planned) -> Cost {
        cost(&self.ceilings, self.profile.devices as u32, planned)
    }
}

/// A step of `batch` sequences with `rows` rows each behind `first` tokens; each sequence has blocks of its own, and what
/// follows its last row is wanted. Tokens are spread over the vocabulary.
pub fn step_plan(batch: usize, first: usize, rows: usize, vocab: usize) -> StepPlan {
    let blocks = (first + rows).div_ceil(BLOCK_TOKENS);
    StepPlan {
        tokens: (0..batch * rows).map(|i| ((i * 7919 + first * 104_729) % vocab) as u32).collect(),
        sequences: (0..batch)
            .map(|s| SequenceSpan {
                first_row: s * rows,
                rows,
                first_position: first,
                blocks: (s * blocks..(s + 1) * blocks).map(|block| block as u32).collect(),
            })
            .collect(),
        logit_rows: (0..batch).map(|s| s * rows + rows - 1).collect(),
    }
}

/// A profile's weights on a device, made one by one from their names and shapes; norm gains are one.
///
/// # Errors
/// Of `weight`, and the device's.
pub fn profile_weights<D: modelprofile_kernels::Device>(
    device: &D,
    config: &ModelConfig,
    format: WeightFormat,
    mut weight: impl FnMut(&'static str, &WeightSpec, Split) -> anyhow::Result<D::Weight>,
) -> anyhow::Result<ProfileWeights<D>> {
    let shapes = Shapes::new(config, format);
    let vector = |width: usize| device.upload(&HostTensor { rows: 1, width, data: vec![1.0; width] });
    let optional = |width: usize, wanted: bool| wanted.then(|| vector(width)).transpose();
    let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
    let mut layers = Vec::with_capacity(config.layers);
    for _ in 0..config.layers {
        let [qkv, attention_output, gate_up, down] =
            shapes.layer().map(|(name, spec, split)| weight(name, &spec, split));
        layers.push(LayerWeights {
            attention_norm: vector(config.hidden)?,
            qkv: qkv?,
            qkv_bias: optional(width, config.qkv_bias)?,
            query_norm: optional(config.head_dim, config.qk_norm)?,
            key_norm: optional(config.head_dim, config.qk_norm)?,
            attention_output: attention_output?,
            mlp_norm: vector(config.hidden)?,
            gate_up: gate_up?,
            down: down?,
        });
    }
    let mut ends = |name| weight(name, &shapes.ends, Split::Outputs);
    Ok(ProfileWeights {
        embedding: ends(if config.tied_embeddings { "output" } else { "embedding" })?,
        output: if config.tied_embeddings { None } else { Some(ends("output")?) },
        final_norm: vector(config.hidden)?,
        layers,
    })
}

/// The time of an entry on hardware with these ceilings.
pub fn cost(ceilings: &Ceilings, devices: u32, planned: &Planned) -> Cost {
    let work = planned.work;
    let moved = work.moved() as f64;
    let (unit, share) = match work.cores {
        Cores::None | Cores::LibraryBf16 => (Unit::Bf16, 1.0),
        Cores::Mma => (Unit::Bf16, MMA_SYNC_SHARE),
        Cores::MmaInt8 => (Unit::Int8, MMA_SYNC_SHARE),
        Cores::LibraryFp8 => (Unit::Fp8, 1.0),
        Cores::LibraryInt8 => (Unit::Int8, 1.0),
    };
    match planned.what {
        What::Kernel | What::Library | What::Fill => ceilings.kernel(moved, work.operations as f64, unit, share),
        What::HostCopy => ceilings.host_copy(moved),
        What::AllReduce => ceilings.all_reduce(moved, devices),
    }
}

/// The weights of one GPU.
pub struct Shapes {
    layer: [(&'static str, WeightSpec, Split); 4],
    /// The embedding, and the output layer where it is another weight.
    pub ends: WeightSpec,
}

impl Shapes {
    /// Of a GPU's share of a model.
    pub fn new(share: &ModelConfig, format: WeightFormat) -> Self {
        let &ModelConfig { hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = share;
        let spec = |n, k| WeightSpec { kind: format.kind(), n, k };
        Self {
            layer: [
                ("qkv", spec((heads + 2 * kv_heads) * head_dim, hidden), Split::Heads { heads, kv_heads, head_dim }),
                ("attention output", spec(hidden, heads * head_dim), Split::Inputs),
                ("gate and up", spec(2 * intermediate, hidden), Split::Halves),
                ("down", spec(hidden, intermediate), Split::Inputs),
            ],
            ends: WeightSpec { kind: format.output_kind(hidden), n: vocab, k: hidden },
        }
    }

    /// One layer's, in the order in which they are multiplied.
    pub fn layer(&self) -> [(&'static str, WeightSpec, Split); 4] {
        self.layer
    }
}

/// A profile as the simulator knows it.
pub(super) fn precision(profile: &Profile) -> Precision {
    use api::WeightFormat as Api;
    let (weights, group) = match profile.weights {
        WeightFormat::Bf16 => (Api::Bf16, 128),
        WeightFormat::Fp8 | WeightFormat::Fp8Tensor | WeightFormat::Fp8Static | WeightFormat::Fp8Block => {
            (Api::Fp8, 128)
        }
        WeightFormat::Int8 => (Api::Int8, 128),
        WeightFormat::Int4 { group, .. } => (Api::Int4, u32::from(group)),
        // As they are kept in memory, which is not as in the file: 4 bits with a scale and a minimum for 32.
        WeightFormat::Q4_1 | WeightFormat::Q4_0 => (Api::Int4, 32),
        WeightFormat::Q8_0 => (Api::Q8_0, 32),
    };
    let kv = match profile.kv {
        KvFormat::Bf16 => api::KvCacheFormat::Bf16,
        KvFormat::Fp16 => api::KvCacheFormat::Fp16,
        KvFormat::Fp8E4m3 => api::KvCacheFormat::Fp8E4m3,
        KvFormat::Fp8E5m2 => api::KvCacheFormat::Fp8E5m2,
    };
    Precision { weights, group, kv, tensor_parallel: profile.devices as u32 }
}

/// Whether a kind's codes come in groups.
pub(super) fn is_grouped(kind: WeightKind) -> bool {
    matches!(kind, WeightKind::Int4 { .. } | WeightKind::Int8Group { .. })
}
