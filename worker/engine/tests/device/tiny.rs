//! Small random checkpoints with heads that the device has kernels for.

use std::{collections::HashMap, fs};

use half::bf16;
use modelprofile_engine::checkpoint::Checkpoint;
use safetensors::{Dtype, serialize, tensor::TensorView};
use serde_json::json;
use tempfile::TempDir;

/// Shape of a model. Heads have 64 elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) family: Family,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) layers: usize,
}

/// What a family has that others have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    /// A sliding window, and an output layer of its own.
    Mistral,
    /// Biases.
    Qwen2,
    /// Norms of heads, and an output layer of its own.
    Qwen3,
}

pub(crate) const VOCAB: usize = 128;
const HEAD: usize = 64;

/// Widths are multiples of 128, so that every format has whole groups and blocks.
pub(crate) const TINY: Shape =
    Shape { family: Family::Llama, hidden: 128, intermediate: 256, heads: 2, kv_heads: 1, layers: 2 };

/// For searches, which compute each product many times.
pub(crate) const SMALL: Shape =
    Shape { family: Family::Llama, hidden: 64, intermediate: 128, heads: 1, kv_heads: 1, layers: 1 };

/// Some chunks of the device's memory in BF16, and one in INT4.
pub(crate) const WIDE: Shape =
    Shape { family: Family::Llama, hidden: 256, intermediate: 512, heads: 2, kv_heads: 1, layers: 5 };

/// The same for two GPUs: each has a head of the cache, and whole groups of 128.
pub(crate) const PAIRED: Shape = Shape { heads: 4, kv_heads: 2, ..WIDE };

impl Shape {
    pub(crate) fn of(family: Family) -> Self {
        Self { family, ..TINY }
    }

    fn config(&self) -> serde_json::Value {
        let (architecture, name) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Mistral => ("MistralForCausalLM", "mistral"),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        json!({
            "architectures": [architecture], "model_type": name, "dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": HEAD,
            "vocab_size": VOCAB, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "bos_token_id": 1,
            "eos_token_id": 2, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_window": (self.family == Family::Mistral).then_some(24), "tie_word_embeddings": self.is_tied(),
        })
    }

    fn is_tied(&self) -> bool {
        matches!(self.family, Family::Llama | Family::Qwen2)
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * HEAD, self.kv_heads * HEAD);
        let mut all = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.is_tied() {
            all.push(("lm_head.weight".to_owned(), vec![VOCAB, self.hidden]));
        }
        for layer in 0..self.layers {
            let mut add =
                |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            add("input_layernorm.weight", &[self.hidden]);
            add("post_attention_layernorm.weight", &[self.hidden]);
            for (name, outputs) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[outputs, self.hidden]);
                if self.family == Family::Qwen2 {
                    add(&format!("self_attn.{name}_proj.bias"), &[outputs]);
                }
            }
            if self.family == Family::Qwen3 {
                add("self_attn.q_norm.weight", &[HEAD]);
                add("self_attn.k_norm.weight", &[HEAD]);
            }
            add("self_attn.o_proj.weight", &[self.hidden, q]);
            add("mlp.gate_proj.weight", &[self.intermediate, self.hidden]);
            add("mlp.up_proj.weight", &[self.intermediate, self.hidden]);
            add("mlp.down_proj.weight", &[self.hidden, self.intermediate]);
        }
        all
    }
}

/// A checkpoint and the directory that it lies in.
pub(crate) struct Tiny {
    checkpoint: Checkpoint,
    _directory: TempDir,
}

impl std::ops::Deref for Tiny {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// A checkpoint of a shape: always the same.
pub(crate) fn checkpoint(shape: Shape) -> Tiny {
    changed(shape, &|_, _| {})
}

/// A checkpoint of a shape with values that were changed, by the tensors' names.
pub(crate) fn changed(shape: Shape, change: &dyn Fn(&str, &mut [f32])) -> Tiny {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), shape.config().to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shape
        .tensors()
        .into_iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let mut values = values(&name, &shape, seed as u32);
            change(&name, &mut values);
            let bytes = values.into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()))
        .collect();
    fs::write(directory.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    Tiny { checkpoint: Checkpoint::open(directory.path()).unwrap(), _directory: directory }
}

/// Weights large enough that every part of the model moves the logits.
fn values(name: &str, shape: &[usize], seed: u32) -> Vec<f32> {
    let noise = noise(shape.iter().product(), seed + 1);
    let (around, spread) = match name {
        name if name.contains("norm") => (1.0, 0.3),
        name if name.ends_with("bias") => (0.0, 0.5),
        name if name.contains("embed") => (0.0, 1.7),
        _ => (0.0, 2.6 / (shape[shape.len() - 1] as f32).sqrt()),
    };
    noise.into_iter().map(|v| around + spread * v).collect()
}

/// Reproducible values in -1..1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Prompts that share no block with those of other indices.
pub(crate) fn prompt(tokens: usize, index: u32) -> Vec<u32> {
    (0..tokens as u32).map(|at| 3 + (at * 37 + at * at * 5 + index * 41) % (VOCAB as u32 - 3)).collect()
}
