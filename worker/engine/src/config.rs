//! What a checkpoint says about its model, the same for Hugging Face directories and GGUF files.

use modelprofile_kernels::{KvFormat, KvLayout};

/// Decoder families that the model code can run. They differ in biases, norms and masks, not in structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2, TinyLlama.
    Llama,
    /// Mistral: Llama with a sliding attention window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on Q, K and V.
    Qwen2,
    /// Qwen3: RMS norms on each query and key head.
    Qwen3,
}

/// Change of the rotary frequencies for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No change.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f32,
        /// Context length of the first training.
        original_max_positions: u32,
    },
    /// Frequency `i` divided by factor `i`, `head_dim / 2` of them: how GGUF files of Llama 3 store the result of the above.
    Factors(Vec<f32>),
}

/// Shape and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context that the checkpoint declares.
    pub max_positions: usize,
    /// Epsilon of all RMS norms.
    pub rms_epsilon: f32,
    /// Rotary base.
    pub rope_theta: f32,
    /// Rotary scaling.
    pub rope_scaling: RopeScaling,
    /// Attention window in tokens; `None` attends all.
    pub sliding_window: Option<usize>,
    /// The output layer is the embedding.
    pub tied_embeddings: bool,
    /// Q, K and V have biases.
    pub qkv_bias: bool,
    /// Queries and keys are RMS-normalized per head before the rotation.
    pub qk_norm: bool,
    /// Token put before a text, where the tokenizer adds one.
    pub bos_token: Option<u32>,
    /// Tokens that end a generation.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// The geometry of this model's KV cache in a format.
    pub fn kv_layout(&self, format: KvFormat) -> KvLayout {
        KvLayout { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim, format }
    }
}
