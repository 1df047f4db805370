//! Writers of small GGUF files, for tests of this crate.

use super::{SourceDtype, Value, gguf::type_number};
use crate::{Architecture, ModelConfig, RopeScaling, checkpoint::Role};

/// Builds a GGUF file (version 3) in memory.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: SourceDtype,
    bytes: Vec<u8>,
}

impl GgufWriter {
    /// Adds a metadata entry; a repeated key is written twice.
    #[must_use]
    pub fn entry(mut self, key: &str, value: Value) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Adds a tensor, dimensions slowest first. Nothing is checked: tests write wrong ones too.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[usize], dtype: SourceDtype, bytes: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), dtype, bytes });
        self
    }

    /// Takes a tensor out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            let (kind, bytes) = encode(value);
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend((*dim as u64).to_le_bytes());
            }
            out.extend(type_number(tensor.dtype).to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// A Llama of two layers whose tensors are zero, quantized as `dtype` (norms and biases F32).
pub fn tiny_llama(dtype: SourceDtype) -> GgufWriter {
    let config = tiny_config();
    let entry = |writer: GgufWriter, key: &str, value: usize| {
        writer.entry(&format!("llama.{key}"), Value::Unsigned(value as u64))
    };
    let mut writer = GgufWriter::default()
        .entry("general.architecture", Value::Text("llama".to_owned()))
        .entry("general.license", Value::Text("apache-2.0".to_owned()))
        .entry("llama.attention.layer_norm_rms_epsilon", Value::Float(config.rms_epsilon.into()))
        .entry("llama.rope.freq_base", Value::Float(config.rope_theta.into()))
        .entry("tokenizer.ggml.eos_token_id", Value::Unsigned(2));
    writer = entry(writer, "block_count", config.layers);
    writer = entry(writer, "embedding_length", config.hidden);
    writer = entry(writer, "feed_forward_length", config.intermediate);
    writer = entry(writer, "attention.head_count", config.heads);
    writer = entry(writer, "attention.head_count_kv", config.kv_heads);
    writer = entry(writer, "context_length", config.max_positions);
    for role in Role::all(&config) {
        let (rows, cols) = role.shape(&config);
        let (shape, dtype) = if rows == 1 { (vec![cols], SourceDtype::F32) } else { (vec![rows, cols], dtype) };
        let bytes = vec![0; rows * dtype.row_bytes(cols).unwrap_or(0)];
        writer = writer.tensor(&role.gguf_name(), &shape, dtype, bytes);
    }
    writer
}

/// The configuration of [`tiny_llama`].
pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers: 2,
        hidden: 64,
        intermediate: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 32,
        max_positions: 128,
        rms_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
        bos_token: None,
        eos_tokens: vec![2],
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// GGUF's number of the type, and the value's bytes.
fn encode(value: &Value) -> (u32, Vec<u8>) {
    let mut out = Vec::new();
    let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    let kind = match value {
        Value::Unsigned(v) => {
            out.extend(v.to_le_bytes());
            10
        }
        Value::Signed(v) => {
            out.extend(v.to_le_bytes());
            11
        }
        Value::Float(v) => {
            out.extend(v.to_le_bytes());
            12
        }
        Value::Bool(v) => {
            out.push(u8::from(*v));
            7
        }
        Value::Text(v) => {
            text(&mut out, v);
            8
        }
        Value::Integers(v) => {
            array(&mut out, 11, v.len());
            out.extend(v.iter().flat_map(|v| v.to_le_bytes()));
            9
        }
        Value::Floats(v) => {
            array(&mut out, 6, v.len());
            out.extend(v.iter().flat_map(|v| v.to_le_bytes()));
            9
        }
        Value::Texts(v) => {
            array(&mut out, 8, v.len());
            for v in v {
                text(&mut out, v);
            }
            9
        }
        Value::List(v) => {
            let encoded: Vec<_> = v.iter().map(encode).collect();
            array(&mut out, encoded.first().map_or(0, |(kind, _)| *kind), v.len());
            out.extend(encoded.into_iter().flat_map(|(_, bytes)| bytes));
            9
        }
    };
    (kind, out)
}
