//! A model that is small, and of a shape that a GPU's kernels take: heads of 64.

use std::{fs, path::Path};

use serde_json::{Map, json};

use crate::tiny;

const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 256;
const HEADS: usize = 4;
/// Two, so that two GPUs can share the model.
const KV_HEADS: usize = 2;
const HEAD: usize = 64;
const LAYERS: usize = 2;
const VOCAB: usize = 128;

/// Writes it into a folder: a Llama of 2 layers with weights of a fixed pseudo-random sequence.
pub(crate) fn write(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tiny::tokenizer()).unwrap();
    fs::write(folder.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * HEAD, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
}

/// The file format: length of the header, the header as JSON, the values.
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut values) = (Map::new(), Vec::new());
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    for (name, shape) in tensors {
        let (count, start) = (shape.iter().product::<usize>(), values.len());
        for _ in 0..count {
            // xorshift64.
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let uniform = (noise >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
            // Gains about 1; rows of matrices of a length of about 1, but of the output 4 times that, so that the likeliest
            // token is so by a margin.
            let value = match (shape.len(), name.as_str()) {
                (1, _) => 1.0 + uniform * 0.2,
                (_, "lm_head.weight") => uniform * 4.0 * (12.0 / shape[1] as f32).sqrt(),
                _ => uniform * (12.0 / shape[1] as f32).sqrt(),
            };
            // BF16 is the upper half of FP32; these need no rounding to even.
            values.extend_from_slice(&value.to_bits().to_le_bytes()[2..]);
        }
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, values.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values].concat()
}
