//! `config.json` of an artifact, as transformers and vLLM read it.

use modelprofile_kernels::{FP8_BLOCK, WeightKind};
use serde_json::{Value, json};

use crate::{
    Architecture, ModelConfig, RopeScaling, WeightFormat,
    checkpoint::{
        OWN_ROPE_FACTORS,
        quantized::{Scheme, Share},
    },
    interchange::{self, compressed_tensors},
    quantize::Recipe,
};

/// `config.json` of the artifact, with the quantization that readers of `compressed-tensors` expect.
pub(super) fn config_json(config: &ModelConfig, recipe: Recipe) -> Value {
    let (architecture, model_type) = match config.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Mistral => ("MistralForCausalLM", "mistral"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let scaling = match &interchange::rope::named(config) {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        // transformers has no name for factors alone; the name is ours, so that no reader takes them for another's.
        RopeScaling::Factors(factors) => json!({"rope_type": OWN_ROPE_FACTORS, "factors": factors}),
    };
    let mut value = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.qkv_bias,
        "hidden_act": "silu",
        "bos_token_id": config.bos_token,
        "eos_token_id": config.eos_tokens,
        "torch_dtype": "bfloat16",
    });
    let kind = recipe.kind(config.hidden);
    if let (Some(scheme), Some(map)) = (scheme(kind, recipe.format), value.as_object_mut()) {
        let quantization = compressed_tensors::config(&scheme, &["lm_head".to_owned()], false);
        map.insert("quantization_config".into(), quantization);
    }
    value
}

/// What the linear layers are stored as.
pub(crate) fn scheme(kind: WeightKind, format: WeightFormat) -> Option<Scheme> {
    let grouped = |bits, group: u16| Scheme::Grouped { bits, group: Some(group.into()), zero: format.zero() };
    let fp8 = |share, static_activations| Scheme::Fp8 { share, static_activations };
    match kind {
        WeightKind::Bf16 => None,
        WeightKind::Fp8 if format == WeightFormat::Fp8Tensor => Some(fp8(Share::Tensor, false)),
        WeightKind::Fp8 => Some(fp8(Share::Row, false)),
        WeightKind::Fp8Static => Some(fp8(Share::Tensor, true)),
        WeightKind::Fp8Block => Some(fp8(Share::Block([FP8_BLOCK, FP8_BLOCK]), false)),
        WeightKind::Int8 => Some(Scheme::Int8),
        WeightKind::Int8Outliers { .. } => Some(Scheme::Int8Outliers),
        WeightKind::Int4 { group } => Some(grouped(4, group)),
        WeightKind::Int8Group { group } => Some(grouped(8, group)),
    }
}
