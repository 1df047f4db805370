//! A model on the device with its cache, and the same model on paper.

use modelprofile_engine::{
    ModelConfig, WeightFormat,
    model::{Forget, Model, ProfileWeights},
};
use modelprofile_kernels::{
    BLOCK_TOKENS, Device, KernelError, KvFormat, KvScales, StepPlan,
    cuda::{Cuda, CudaKv, Planned, Profiled},
};
use modelprofile_roofline::Hardware;
use modelprofile_worker::plan::{self, Profile, profile_weights, step_plan};

use crate::{options::Options, weights::Packed};

/// The cache's format in all measurements.
pub const KV: KvFormat = KvFormat::Fp8E4m3;

/// See the module.
pub struct Rig {
    pub gpu: Cuda,
    pub config: ModelConfig,
    hardware: Hardware,
    model: Model<Cuda>,
    kv: CudaKv,
    packed: Packed,
}

impl Rig {
    /// Buffers and a cache for the largest case.
    pub fn new(gpu: Cuda, hardware: Hardware, options: &Options) -> anyhow::Result<Self> {
        let config = options.model()?;
        let batch = options.batches().iter().copied().max().unwrap_or(1);
        let prompt = options.prompts().iter().copied().max().unwrap_or(1);
        let sequence = (options.context() + options.steps() + 8).div_ceil(BLOCK_TOKENS);
        let blocks = (batch * sequence).max(prompt.div_ceil(BLOCK_TOKENS));
        let layout = config.kv_layout(KV);
        let kv = gpu.kv(layout, &KvScales::unit(&layout), blocks, blocks)?;
        let model = Model::new(&gpu, &config, prompt.max(batch).max(64))?;
        Ok(Self { gpu, config, hardware, model, kv, packed: Packed::default() })
    }

    /// Random weights of a format; on the device when they are first used.
    pub fn weights(&mut self, format: WeightFormat) -> anyhow::Result<ProfileWeights<Cuda>> {
        let packed = &mut self.packed;
        profile_weights(&self.gpu, &self.config, format, |_, spec, split| {
            Ok(self.gpu.weight(packed.get(spec)?, split)?)
        })
    }

    /// One step, its tokens drawn.
    pub fn step(&mut self, weights: &ProfileWeights<Cuda>, plan: &StepPlan) -> anyhow::Result<()> {
        self.model.step(&mut self.gpu, weights, &[], &mut self.kv, plan, &mut Forget)?;
        Ok(())
    }

    /// One step that is the first of another profile: the weights that leave are given back layer by layer.
    pub fn switch(
        &mut self,
        leaving: &ProfileWeights<Cuda>,
        weights: &ProfileWeights<Cuda>,
        plan: &StepPlan,
    ) -> anyhow::Result<()> {
        self.model.step(&mut self.gpu, weights, &[leaving], &mut self.kv, plan, &mut Forget)?;
        Ok(())
    }

    /// How long each kind of kernel of a step takes.
    pub fn profile(
        &mut self,
        weights: &ProfileWeights<Cuda>,
        plan: &StepPlan,
        repeats: usize,
    ) -> anyhow::Result<Vec<Profiled>> {
        let Self { gpu, model, kv, .. } = self;
        let profiled = gpu.profile(repeats, |gpu| {
            let done = model.step(gpu, weights, &[], kv, plan, &mut Forget);
            done.map_err(|error| KernelError::Device(error.to_string()))
        })?;
        Ok(profiled)
    }

    /// The device on paper, with this model in a format.
    pub fn on_paper(&self, name: &str, format: WeightFormat) -> anyhow::Result<plan::Device> {
        let profile = Profile { name: name.to_owned(), weights: format, kv: KV, devices: 1 };
        plan::Device::new(&self.hardware, &self.config, &profile)
    }

    /// A step of the model's vocabulary.
    pub fn plan(&self, batch: usize, first: usize, rows: usize) -> StepPlan {
        step_plan(batch, first, rows, self.config.vocab)
    }
}

/// Whether an entry of a plan is what was measured.
pub fn is_same(planned: &Planned, profiled: &Profiled) -> bool {
    (planned.name, planned.grid, planned.work) == (profiled.name, profiled.grid, profiled.work)
}
