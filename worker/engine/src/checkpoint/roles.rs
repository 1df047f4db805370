//! What each tensor is called in the two containers, and the shape that the configuration demands of it.

use super::{Role, RowMap};
use crate::{Architecture, ModelConfig};

impl Role {
    /// Every tensor that a model of this configuration has, in the order of the computation.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let mut roles = vec![Self::Embedding];
        for l in 0..config.layers {
            roles.extend([Self::AttentionNorm(l), Self::Query(l), Self::Key(l), Self::Value(l)]);
            if config.qkv_bias {
                roles.extend([Self::QueryBias(l), Self::KeyBias(l), Self::ValueBias(l)]);
            }
            if config.qk_norm {
                roles.extend([Self::QueryNorm(l), Self::KeyNorm(l)]);
            }
            roles.extend([Self::AttentionOutput(l), Self::MlpNorm(l), Self::Gate(l), Self::Up(l), Self::Down(l)]);
        }
        roles.push(Self::FinalNorm);
        if !config.tied_embeddings {
            roles.push(Self::Output);
        }
        roles
    }

    /// Rows and columns; vectors are one row.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden;
        let query = config.heads * config.head_dim;
        let key = config.kv_heads * config.head_dim;
        match self {
            Self::Embedding | Self::Output => (config.vocab, hidden),
            Self::FinalNorm | Self::AttentionNorm(_) | Self::MlpNorm(_) => (1, hidden),
            Self::Query(_) => (query, hidden),
            Self::Key(_) | Self::Value(_) => (key, hidden),
            Self::QueryBias(_) => (1, query),
            Self::KeyBias(_) | Self::ValueBias(_) => (1, key),
            Self::QueryNorm(_) | Self::KeyNorm(_) => (1, config.head_dim),
            Self::AttentionOutput(_) => (hidden, query),
            Self::Gate(_) | Self::Up(_) => (config.intermediate, hidden),
            Self::Down(_) => (hidden, config.intermediate),
        }
    }

    /// Name in a Hugging Face checkpoint of the Llama family.
    pub fn hugging_face_name(self) -> String {
        let (layer, name) = match self {
            Self::Embedding => return "model.embed_tokens.weight".to_owned(),
            Self::FinalNorm => return "model.norm.weight".to_owned(),
            Self::Output => return "lm_head.weight".to_owned(),
            Self::AttentionNorm(l) => (l, "input_layernorm.weight"),
            Self::Query(l) => (l, "self_attn.q_proj.weight"),
            Self::Key(l) => (l, "self_attn.k_proj.weight"),
            Self::Value(l) => (l, "self_attn.v_proj.weight"),
            Self::QueryBias(l) => (l, "self_attn.q_proj.bias"),
            Self::KeyBias(l) => (l, "self_attn.k_proj.bias"),
            Self::ValueBias(l) => (l, "self_attn.v_proj.bias"),
            Self::QueryNorm(l) => (l, "self_attn.q_norm.weight"),
            Self::KeyNorm(l) => (l, "self_attn.k_norm.weight"),
            Self::AttentionOutput(l) => (l, "self_attn.o_proj.weight"),
            Self::MlpNorm(l) => (l, "post_attention_layernorm.weight"),
            Self::Gate(l) => (l, "mlp.gate_proj.weight"),
            Self::Up(l) => (l, "mlp.up_proj.weight"),
            Self::Down(l) => (l, "mlp.down_proj.weight"),
        };
        format!("model.layers.{layer}.{name}")
    }

    /// The linear layer in a Hugging Face checkpoint whose weight this is, which may be stored quantized: the name
    /// without `.weight`. `None` for norms, biases and the embedding.
    pub fn module(self) -> Option<String> {
        match self {
            Self::Output
            | Self::Query(_)
            | Self::Key(_)
            | Self::Value(_)
            | Self::AttentionOutput(_)
            | Self::Gate(_)
            | Self::Up(_)
            | Self::Down(_) => self.hugging_face_name().strip_suffix(".weight").map(str::to_owned),
            _ => None,
        }
    }

    /// Name in a GGUF file.
    pub fn gguf_name(self) -> String {
        let (layer, name) = match self {
            Self::Embedding => return "token_embd.weight".to_owned(),
            Self::FinalNorm => return "output_norm.weight".to_owned(),
            Self::Output => return "output.weight".to_owned(),
            Self::AttentionNorm(l) => (l, "attn_norm.weight"),
            Self::Query(l) => (l, "attn_q.weight"),
            Self::Key(l) => (l, "attn_k.weight"),
            Self::Value(l) => (l, "attn_v.weight"),
            Self::QueryBias(l) => (l, "attn_q.bias"),
            Self::KeyBias(l) => (l, "attn_k.bias"),
            Self::ValueBias(l) => (l, "attn_v.bias"),
            Self::QueryNorm(l) => (l, "attn_q_norm.weight"),
            Self::KeyNorm(l) => (l, "attn_k_norm.weight"),
            Self::AttentionOutput(l) => (l, "attn_output.weight"),
            Self::MlpNorm(l) => (l, "ffn_norm.weight"),
            Self::Gate(l) => (l, "ffn_gate.weight"),
            Self::Up(l) => (l, "ffn_up.weight"),
            Self::Down(l) => (l, "ffn_down.weight"),
        };
        format!("blk.{layer}.{name}")
    }

    /// The role of a name in a GGUF file; `None` for a tensor of another kind of model.
    pub fn from_gguf_name(name: &str) -> Option<Self> {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok()).unwrap_or(0);
        let all = [
            Self::Embedding,
            Self::FinalNorm,
            Self::Output,
            Self::AttentionNorm(layer),
            Self::Query(layer),
            Self::Key(layer),
            Self::Value(layer),
            Self::QueryBias(layer),
            Self::KeyBias(layer),
            Self::ValueBias(layer),
            Self::QueryNorm(layer),
            Self::KeyNorm(layer),
            Self::AttentionOutput(layer),
            Self::MlpNorm(layer),
            Self::Gate(layer),
            Self::Up(layer),
            Self::Down(layer),
        ];
        all.into_iter().find(|role| role.gguf_name() == name)
    }

    /// True for norm gains and biases, which are vectors and never quantized.
    pub fn is_vector(self) -> bool {
        matches!(
            self,
            Self::FinalNorm
                | Self::AttentionNorm(_)
                | Self::MlpNorm(_)
                | Self::QueryNorm(_)
                | Self::KeyNorm(_)
                | Self::QueryBias(_)
                | Self::KeyBias(_)
                | Self::ValueBias(_)
        )
    }

    /// Where this tensor's rows lie in a GGUF file: the converter reorders queries and keys of `llama` files only.
    pub(crate) fn gguf_row_map(self, config: &ModelConfig) -> RowMap {
        match (self, config.architecture) {
            (Self::Query(_) | Self::Key(_), Architecture::Llama | Architecture::Mistral) => {
                RowMap::InterleavedHeads { head_dim: config.head_dim }
            }
            _ => RowMap::Identity,
        }
    }
}
