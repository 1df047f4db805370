//! `config.json` and `generation_config.json` of Hugging Face directories, in the forms of transformers 4 and 5.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Architecture, EngineError, ModelConfig, Result, RopeScaling};

/// File that describes the model.
pub(super) const CONFIG: &str = "config.json";
/// File that says, among other things, which tokens end a generation; optional.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// `rope_type` of our own artifacts whose factors (from a GGUF file) no published scaling explains.
pub(crate) const OWN_ROPE_FACTORS: &str = "modelprofile-factors";

/// The window of a configuration that does not mention one (an explicit `null` means none).
const DEFAULT_WINDOW: usize = 4096;

/// The fields that are read. What a missing one means is transformers' default for the family.
#[derive(Deserialize)]
struct ConfigJson {
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    partial_rotary_factor: Option<f64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Tokens>,
}

#[derive(Deserialize)]
struct GenerationJson {
    eos_token_id: Option<Tokens>,
}

/// One token or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    One(u32),
    Several(Vec<u32>),
}

impl Tokens {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(token) => vec![token],
            Self::Several(tokens) => tokens,
        }
    }
}

/// Builds the configuration from the texts of the two files.
pub(super) fn config(config: &[u8], generation: Option<&[u8]>) -> Result<ModelConfig> {
    let raw: Map<String, Value> = parse(CONFIG, config)?;
    // A null and a missing window differ (see `DEFAULT_WINDOW`), which an `Option` field cannot tell.
    let window = match raw.get("sliding_window") {
        None => Some(DEFAULT_WINDOW),
        Some(Value::Null) => None,
        Some(value) => {
            let window = value.as_u64().and_then(|w| usize::try_from(w).ok()).filter(|w| *w > 0);
            Some(window.ok_or_else(|| EngineError::checkpoint(CONFIG, format!("sliding_window is {value}")))?)
        }
    };
    let json: ConfigJson = parse(CONFIG, config)?;
    let architecture = architecture(&json)?;
    refuse_unknown_parts(&json, architecture)?;
    let eos = match generation {
        Some(bytes) => parse::<GenerationJson>(GENERATION_CONFIG, bytes)?.eos_token_id,
        None => None,
    };
    let (rope_theta, rope_scaling) = rope(&json)?;
    let sliding_window = sliding_window(&json, architecture, window)?;
    Ok(ModelConfig {
        architecture,
        layers: json.num_hidden_layers,
        hidden: json.hidden_size,
        intermediate: json.intermediate_size,
        heads: json.num_attention_heads,
        kv_heads: json.num_key_value_heads.unwrap_or(json.num_attention_heads),
        head_dim: head_dim(&json, architecture),
        vocab: json.vocab_size,
        max_positions: json.max_position_embeddings,
        rms_epsilon: json.rms_norm_eps.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        sliding_window,
        tied_embeddings: json.tie_word_embeddings.unwrap_or(false),
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
        bos_token: json.bos_token_id,
        eos_tokens: eos.or(json.eos_token_id).map(Tokens::list).unwrap_or_default(),
    })
}

fn parse<T: serde::de::DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| EngineError::checkpoint(file, error.to_string()))
}

fn unsupported(message: &str) -> EngineError {
    EngineError::Unsupported(format!("{CONFIG}: {message}"))
}

fn architecture(json: &ConfigJson) -> Result<Architecture> {
    match json.architectures.as_slice() {
        [name] => match name.as_str() {
            "LlamaForCausalLM" => Ok(Architecture::Llama),
            "MistralForCausalLM" => Ok(Architecture::Mistral),
            "Qwen2ForCausalLM" => Ok(Architecture::Qwen2),
            "Qwen3ForCausalLM" => Ok(Architecture::Qwen3),
            other => Err(unsupported(&format!(
                "architecture {other}; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and \
                 Qwen3ForCausalLM"
            ))),
        },
        several => Err(EngineError::checkpoint(CONFIG, format!("architectures is {several:?}; one is needed"))),
    }
}

fn refuse_unknown_parts(json: &ConfigJson, architecture: Architecture) -> Result<()> {
    if let Some(activation) = json.hidden_act.as_deref().filter(|a| *a != "silu") {
        return Err(unsupported(&format!("hidden_act {activation}; silu is supported")));
    }
    // Qwen2 has its biases by definition and no such field.
    if json.attention_bias == Some(true) && architecture != Architecture::Qwen2 {
        return Err(unsupported("attention_bias"));
    }
    if json.mlp_bias == Some(true) {
        return Err(unsupported("mlp_bias"));
    }
    Ok(())
}

fn head_dim(json: &ConfigJson, architecture: Architecture) -> usize {
    json.head_dim.unwrap_or(match architecture {
        // The only family whose default does not follow from the width.
        Architecture::Qwen3 => 128,
        _ => json.hidden_size.checked_div(json.num_attention_heads).unwrap_or(0),
    })
}

fn sliding_window(json: &ConfigJson, architecture: Architecture, window: Option<usize>) -> Result<Option<usize>> {
    let slides = match architecture {
        Architecture::Llama => false,
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => json.use_sliding_window == Some(true),
    };
    if !slides {
        return Ok(None);
    }
    let layers = json.num_hidden_layers;
    let sliding = match (&json.layer_types, architecture) {
        (Some(types), _) => types.iter().filter(|t| *t == "sliding_attention").count(),
        (None, Architecture::Mistral) => layers,
        // The first `max_window_layers` layers attend all.
        (None, _) => layers.saturating_sub(json.max_window_layers.unwrap_or(28)),
    };
    match sliding {
        0 => Ok(None),
        all if all == layers => Ok(window),
        some => Err(unsupported(&format!("a sliding window in {some} of {layers} layers; all or none is supported"))),
    }
}

/// Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
fn rope(json: &ConfigJson) -> Result<(f32, RopeScaling)> {
    let parameters = json.rope_parameters.as_ref().or(json.rope_scaling.as_ref());
    let number = |key: &str| parameters.and_then(|p| p.get(key)).and_then(Value::as_f64);
    let partial = json.partial_rotary_factor.or(number("partial_rotary_factor")).unwrap_or(1.0);
    if (partial - 1.0).abs() > f64::EPSILON {
        return Err(unsupported(&format!("partial_rotary_factor {partial}")));
    }
    let theta = number("rope_theta").map(|theta| theta as f32).or(json.rope_theta).unwrap_or(10_000.0);
    let Some(parameters) = parameters else { return Ok((theta, RopeScaling::None)) };
    if parameters.values().any(Value::is_object) {
        return Err(unsupported("rope_parameters that differ by layer type"));
    }
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
    let positive = |key: &str| {
        number(key)
            .filter(|v| *v > 0.0 && v.is_finite())
            .map(|v| v as f32)
            .ok_or_else(|| EngineError::checkpoint(CONFIG, format!("rotary scaling {kind:?} needs a positive {key}")))
    };
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: positive("factor")? },
        Some("llama3") => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            if high <= low {
                return Err(EngineError::checkpoint(CONFIG, "high_freq_factor is not above low_freq_factor"));
            }
            RopeScaling::Llama3 {
                factor: positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                // A whole number below 2^24 in every published file: exact in FP32.
                original_max_positions: positive("original_max_position_embeddings")? as u32,
            }
        }
        Some(OWN_ROPE_FACTORS) => {
            let factors = parameters.get("factors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            RopeScaling::Factors(factors.iter().map(|factor| factor.as_f64().unwrap_or(f64::NAN) as f32).collect())
        }
        Some(other) => {
            return Err(unsupported(&format!("rotary scaling {other}; supported are default, linear and llama3")));
        }
    };
    Ok((theta, scaling))
}

#[cfg(test)]
#[path = "hugging_face_tests.rs"]
mod tests;
