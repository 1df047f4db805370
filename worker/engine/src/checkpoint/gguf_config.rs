//! The model's configuration from a GGUF file's metadata.

use std::collections::{BTreeMap, HashSet};

use super::{
    gguf_metadata::{Metadata, Value},
    store::StoredTensor,
};
use crate::{Architecture, EngineError, ModelConfig, Result, RopeScaling};

/// Texts that end a turn or a document in the supported families. A file names one end token and often one end-of-turn
/// token; the others that its vocabulary has as control tokens end a generation too.
pub(crate) const END_TEXTS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"];
/// `tokenizer.ggml.token_type` of a control token.
const CONTROL: i64 = 3;

/// Builds the configuration. `rope_factors` are the values of `rope_freqs.weight`, if the file has that tensor.
pub(super) fn config(
    metadata: &Metadata,
    tensors: &BTreeMap<String, StoredTensor>,
    rope_factors: Option<Vec<f32>>,
    file: &str,
) -> Result<ModelConfig> {
    if metadata.unsigned("split.count").is_some_and(|parts| parts > 1) {
        return Err(EngineError::Unsupported(format!(
            "{file}: split.count (one part of several); merge the parts into one file with llama-gguf-split --merge"
        )));
    }
    let architecture = metadata
        .text("general.architecture")
        .ok_or_else(|| EngineError::checkpoint(file, "metadata key general.architecture is missing"))?;
    let keys = Keys { metadata, architecture, file };
    let mut family = match architecture {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        other => {
            return Err(EngineError::Unsupported(format!(
                "{file}: general.architecture {other}; supported are llama, qwen2 and qwen3"
            )));
        }
    };
    if keys.optional("expert_count")?.unwrap_or(0) > 0 {
        return Err(EngineError::Unsupported(format!("{file}: {architecture}.expert_count (mixture of experts)")));
    }

    let heads = keys.required("attention.head_count")?;
    let hidden = keys.required("embedding_length")?;
    let head_dim = keys.optional("attention.key_length")?.unwrap_or_else(|| hidden.checked_div(heads).unwrap_or(0));
    keys.equal("attention.value_length", head_dim)?;
    keys.equal("rope.dimension_count", head_dim)?;
    let sliding_window = keys.optional("attention.sliding_window")?.filter(|window| *window > 0);
    if family == Architecture::Llama && sliding_window.is_some() {
        family = Architecture::Mistral;
    }
    let vocab = match tensors.get("token_embd.weight") {
        Some(embedding) => embedding.matrix().0,
        None => return Err(EngineError::checkpoint(file, "tensor token_embd.weight is missing")),
    };
    Ok(ModelConfig {
        architecture: family,
        layers: keys.required("block_count")?,
        hidden,
        intermediate: keys.required("feed_forward_length")?,
        heads,
        kv_heads: keys.optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab,
        max_positions: keys.required("context_length")?,
        rms_epsilon: keys
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "is missing"))?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&keys, rope_factors)?,
        sliding_window,
        tied_embeddings: !tensors.contains_key("output.weight"),
        qkv_bias: family == Architecture::Qwen2,
        qk_norm: family == Architecture::Qwen3,
        bos_token: token(metadata, "tokenizer.ggml.bos_token_id"),
        eos_tokens: eos_tokens(metadata),
    })
}

fn rope_scaling(keys: &Keys<'_>, factors: Option<Vec<f32>>) -> Result<RopeScaling> {
    if let Some(factors) = factors {
        return Ok(RopeScaling::Factors(factors));
    }
    let kind = keys.name("rope.scaling.type");
    match keys.metadata.text(&kind) {
        // Older converters wrote the linear factor alone.
        None => Ok(match keys.float("rope.scale_linear")? {
            Some(factor) => RopeScaling::Linear { factor },
            None => RopeScaling::None,
        }),
        Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: keys
                .float("rope.scaling.factor")?
                .ok_or_else(|| keys.error("rope.scaling.factor", "is missing"))?,
        }),
        Some(other) => Err(EngineError::Unsupported(format!(
            "{}: {kind} {other}; supported are none, linear and rope_freqs.weight (Llama 3)",
            keys.file
        ))),
    }
}

fn token(metadata: &Metadata, key: &str) -> Option<u32> {
    metadata.unsigned(key).and_then(|id| u32::try_from(id).ok())
}

fn eos_tokens(metadata: &Metadata) -> Vec<u32> {
    let named = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut ids: Vec<u32> = named.iter().filter_map(|key| token(metadata, key)).collect();
    let texts = metadata.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let types = metadata.integers("tokenizer.ggml.token_type").unwrap_or_default();
    for (id, (text, kind)) in texts.iter().zip(types).enumerate() {
        if *kind == CONTROL && END_TEXTS.contains(&text.as_str()) {
            ids.extend(u32::try_from(id));
        }
    }
    // A hostile vocabulary can have the text of an end in every entry.
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    ids
}

/// Metadata below the architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    file: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn error(&self, key: &str, message: &str) -> EngineError {
        EngineError::checkpoint(self.file, format!("metadata key {} {message}", self.name(key)))
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        match self.metadata.get(&name) {
            None => Ok(None),
            // One value per layer: layers of different shapes are no part of these families.
            Some(Value::Integers(_) | Value::List(_)) => {
                Err(EngineError::Unsupported(format!("{}: {name} differs by layer", self.file)))
            }
            Some(_) => match self.metadata.unsigned(&name).and_then(|v| usize::try_from(v).ok()) {
                Some(value) => Ok(Some(value)),
                None => Err(self.error(key, "is not a non-negative integer")),
            },
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    fn equal(&self, key: &str, head_dim: usize) -> Result<()> {
        match self.optional(key)? {
            Some(value) if value != head_dim => Err(EngineError::Unsupported(format!(
                "{}: {} is {value}, the head size is {head_dim}; both must be equal",
                self.file,
                self.name(key)
            ))),
            _ => Ok(()),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        let name = self.name(key);
        match self.metadata.get(&name) {
            None => Ok(None),
            // The configuration keeps FP32, the width in which converters write these.
            Some(_) => match self.metadata.float(&name) {
                Some(value) => Ok(Some(value as f32)),
                None => Err(self.error(key, "is not a number")),
            },
        }
    }
}
