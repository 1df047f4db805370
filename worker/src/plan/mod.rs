//! Steps of a model on a GPU that is not at hand: every kernel with its bytes, its operations and its modelled time.
//!
//! | module | what it holds |
//! |---|---|
//! | `step` | [`Device`]: the kernels of decode and prefill steps, and their times |
//! | `crossover` | [`crossovers`]: from how many rows on group-wise weights are unpacked |
//!
//! The kernels are those that the GPU backend launches: the engine's model code runs on the backend's own planner
//! ([`modelprofile_kernels::cuda::Planner`]). What divides their bytes and operations into seconds is what the simulator
//! divides by ([`modelprofile_roofline::Ceilings`]).

mod crossover;
mod step;
#[cfg(test)]
mod tests;

use anyhow::bail;
use modelprofile_engine::{Architecture, ModelConfig, RopeScaling, WeightFormat};
use modelprofile_kernels::KvFormat;
use modelprofile_roofline::ModelShape;

pub use crossover::{Crossover, crossovers};
pub use step::{Device, Entry, Shapes, Step, cost, profile_weights, step_plan};

/// One precision of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name, for reports.
    pub name: String,
    /// Weights of the layers.
    pub weights: WeightFormat,
    /// KV cache.
    pub kv: KvFormat,
    /// GPUs that share the model.
    pub devices: usize,
}

/// A model of the Llama family of these sides.
pub fn config(shape: &ModelShape) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers: shape.layers as usize,
        hidden: shape.hidden as usize,
        intermediate: shape.intermediate as usize,
        heads: shape.heads as usize,
        kv_heads: shape.kv_heads as usize,
        head_dim: shape.head_dim as usize,
        vocab: shape.vocabulary as usize,
        max_positions: shape.max_context_tokens as usize,
        rms_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: shape.tied_embeddings,
        qkv_bias: false,
        qk_norm: false,
        bos_token: None,
        eos_tokens: Vec::new(),
    }
}

/// The sides of a model, as the simulator takes them.
fn shape(config: &ModelConfig) -> ModelShape {
    ModelShape {
        name: String::new(),
        layers: config.layers as u32,
        hidden: config.hidden as u32,
        intermediate: config.intermediate as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        vocabulary: config.vocab as u32,
        tied_embeddings: config.tied_embeddings,
        max_context_tokens: config.max_positions as u32,
    }
}

/// One GPU's share of a model.
///
/// # Errors
/// The model cannot be divided evenly.
pub fn share(config: &ModelConfig, devices: usize) -> anyhow::Result<ModelConfig> {
    let sides = [
        ("heads", config.heads),
        ("KV heads", config.kv_heads),
        ("intermediate size", config.intermediate),
        ("vocabulary", config.vocab),
    ];
    for (what, side) in sides {
        if devices == 0 || !side.is_multiple_of(devices) {
            bail!("tensor parallelism over {devices} GPUs: the model's {what} ({side}) cannot be divided by it");
        }
    }
    Ok(ModelConfig {
        heads: config.heads / devices,
        kv_heads: config.kv_heads / devices,
        intermediate: config.intermediate / devices,
        vocab: config.vocab / devices,
        ..config.clone()
    })
}
