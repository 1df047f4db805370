//! The memory budget: weights + KV pool + workspace <= budget, in every profile and while switching.

use modelprofile_kernels::{BLOCK_TOKENS, Backend, KvLayout};

use super::EngineConfig;
use crate::{
    EngineError, ModelConfig, Result,
    model::{Model, ProfileWeights},
};

/// What a profile's weights leave for the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The limit in bytes.
    pub budget: u64,
    /// Activations and scratch in bytes; on a device with a memory of its own also norms of all profiles, and what is lost to
    /// rounding.
    pub workspace: u64,
    /// Bytes of one block of the cache.
    pub block_bytes: u64,
}

/// Profiles whose norms a device has room for: those of the longest ladder, and one that has left it and still computes.
const NORM_SETS: usize = 5;

impl MemoryPlan {
    /// A plan for one model on a device, whose scratch is set aside with it.
    ///
    /// # Errors
    /// The device's, when the budget does not even hold the scratch.
    pub fn on<B: Backend>(device: &B, model: &ModelConfig, layout: &KvLayout, config: &EngineConfig) -> Result<Self> {
        let (budget, rows) = (config.memory_budget, config.max_batched_tokens);
        let block_bytes = device.kv_block_bytes(layout) as u64;
        if device.host_bandwidth().is_none() {
            return Ok(Self { budget, workspace: Model::<B>::workspace_bytes(model, rows), block_bytes });
        }
        let blocks = (budget / block_bytes) as usize;
        let tokens = config.max_context_tokens.unwrap_or(model.max_positions).min(blocks * BLOCK_TOKENS);
        let reserved =
            device.reserve(&Model::<B>::workload(model, rows, config.max_running.min(rows), tokens, blocks))?;
        let norms = NORM_SETS.max(config.profiles.len() + 1) as u64 * ProfileWeights::<B>::vector_bytes(model);
        let workspace = Model::<B>::buffer_bytes(model, rows) + reserved as u64 + norms;
        Ok(Self { budget, workspace, block_bytes })
    }

    /// A plan for one model.
    pub fn new(budget: u64, workspace: u64, layout: &KvLayout) -> Self {
        Self { budget, workspace, block_bytes: layout.block_bytes() as u64 }
    }

    /// Blocks that fit beside `weight_bytes`.
    pub fn blocks(&self, weight_bytes: u64) -> usize {
        (self.budget.saturating_sub(self.workspace + weight_bytes) / self.block_bytes) as usize
    }

    /// Blocks of each profile of a ladder (name, packed bytes), and the longest context that all of them hold.
    ///
    /// # Errors
    /// [`EngineError::Config`] when a profile has no room for the context that was asked for, or for
    /// [`MINIMUM_CONTEXT`] where none was; says what budget would do.
    pub fn ladder(
        &self,
        profiles: &[(String, u64)],
        wanted_context: Option<usize>,
        model_context: usize,
    ) -> Result<(Vec<usize>, usize)> {
        let blocks: Vec<usize> = profiles.iter().map(|(_, bytes)| self.blocks(*bytes)).collect();
        if let Some(context) = wanted_context
            && context > model_context
        {
            return Err(EngineError::Config(format!(
                "maxContextTokens {context} is more than the model's {model_context}: lower it"
            )));
        }
        let needed = wanted_context.unwrap_or(MINIMUM_CONTEXT.min(model_context));
        for ((name, bytes), blocks) in profiles.iter().zip(&blocks) {
            if blocks * BLOCK_TOKENS < needed {
                let budget = bytes + self.workspace + needed.div_ceil(BLOCK_TOKENS) as u64 * self.block_bytes;
                return Err(EngineError::Config(format!(
                    "profile {name}: a memory budget of {} MiB leaves room for {} tokens of KV cache beside {} MiB of \
                     weights and {} MiB of workspace, but {needed} are needed: raise placement.memoryBudget to at \
                     least {}Mi or lower maxContextTokens",
                    self.budget >> 20,
                    blocks * BLOCK_TOKENS,
                    bytes >> 20,
                    self.workspace >> 20,
                    budget.div_ceil(1 << 20),
                )));
            }
        }
        let smallest = blocks.iter().min().copied().unwrap_or(0) * BLOCK_TOKENS;
        Ok((blocks, wanted_context.unwrap_or_else(|| model_context.min(smallest))))
    }
}

/// Context that a profile must hold when the manifest asks for none.
pub const MINIMUM_CONTEXT: usize = 512;

#[cfg(test)]
mod tests {
    use modelprofile_kernels::KvFormat;

    use super::*;

    fn plan(budget_mib: u64) -> MemoryPlan {
        let layout = KvLayout { layers: 30, kv_heads: 3, head_dim: 64, format: KvFormat::Bf16 };
        MemoryPlan::new(budget_mib << 20, 50 << 20, &layout)
    }

    fn ladder() -> Vec<(String, u64)> {
        vec![("quality".into(), 160 << 20), ("density".into(), 100 << 20)]
    }

    #[test]
    fn the_density_profile_has_more_blocks_by_what_its_weights_free() {
        let plan = plan(400);
        let (blocks, context) = plan.ladder(&ladder(), None, 8192).unwrap();
        assert!(blocks[1] > blocks[0]);
        assert!((blocks[1] - blocks[0]).abs_diff(((60u64 << 20) / plan.block_bytes) as usize) <= 1);
        assert_eq!(context, 8192.min(blocks[0] * BLOCK_TOKENS));
        for (profile, blocks) in ladder().iter().zip(&blocks) {
            assert!(profile.1 + plan.workspace + *blocks as u64 * plan.block_bytes <= plan.budget);
        }
    }

    #[test]
    fn a_budget_that_is_too_small_is_refused_with_the_one_that_does() {
        let error = plan(215).ladder(&ladder(), Some(2048), 8192).unwrap_err().to_string();
        let least: u64 = error.split("at least ").nth(1).unwrap().split("Mi").next().unwrap().parse().unwrap();
        assert!(plan(least).ladder(&ladder(), Some(2048), 8192).is_ok(), "{error}");
        assert!(plan(least - 1).ladder(&ladder(), Some(2048), 8192).is_err(), "{error}");
    }

    #[test]
    fn a_context_beyond_the_models_is_refused() {
        assert!(plan(4000).ladder(&ladder(), Some(9000), 8192).is_err());
    }
}
