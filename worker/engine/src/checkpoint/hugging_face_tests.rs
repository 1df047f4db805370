//! Forms of `config.json` that differ from what the tiny checkpoints in `tests/data` have.

use rstest::rstest;
use serde_json::{Value, json};

use super::config;
use crate::{EngineError, RopeScaling};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "eos_token_id": 2
    })
}

fn with(changes: &[(&str, Value)]) -> Vec<u8> {
    let mut json = llama();
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    json.to_string().into_bytes()
}

#[test]
fn the_old_form_of_rotary_scaling_is_read() {
    let scaling = json!({"type": "linear", "factor": 4.0});
    let parsed = config(&with(&[("rope_scaling", scaling)]), None).unwrap();
    assert_eq!((parsed.rope_theta, parsed.rope_scaling), (500_000.0, RopeScaling::Linear { factor: 4.0 }));
    assert_eq!((parsed.head_dim, parsed.tied_embeddings), (16, false));

    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let parsed = config(&with(&[("rope_scaling", scaling)]), None).unwrap();
    assert_eq!(
        parsed.rope_scaling,
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 }
    );
}

#[test]
fn the_generation_config_decides_what_ends_a_text() {
    let bytes = with(&[("eos_token_id", json!([2, 3]))]);
    assert_eq!(config(&bytes, None).unwrap().eos_tokens, [2, 3]);
    assert_eq!(config(&bytes, Some(b"{}")).unwrap().eos_tokens, [2, 3]);
    assert_eq!(config(&bytes, Some(br#"{"eos_token_id": 7}"#)).unwrap().eos_tokens, [7]);
}

#[rstest]
#[case::mistral_without_the_field(&[("architectures", json!(["MistralForCausalLM"]))], Some(4096))]
#[case::mistral_null(&[("architectures", json!(["MistralForCausalLM"])), ("sliding_window", json!(null))], None)]
#[case::llama_ignores_it(&[("sliding_window", json!(8))], None)]
#[case::qwen2_off(&[("architectures", json!(["Qwen2ForCausalLM"])), ("sliding_window", json!(8)),
    ("use_sliding_window", json!(false))], None)]
#[case::qwen2_on(&[("architectures", json!(["Qwen2ForCausalLM"])), ("sliding_window", json!(8)),
    ("use_sliding_window", json!(true)), ("max_window_layers", json!(0))], Some(8))]
#[case::qwen2_on_beyond_the_last_layer(&[("architectures", json!(["Qwen2ForCausalLM"])),
    ("sliding_window", json!(8)), ("use_sliding_window", json!(true)), ("max_window_layers", json!(4))], None)]
fn the_sliding_window(#[case] changes: &[(&str, Value)], #[case] expected: Option<usize>) {
    assert_eq!(config(&with(changes), None).unwrap().sliding_window, expected);
}

#[rstest]
#[case("architectures", json!(["MixtralForCausalLM"]), "MixtralForCausalLM")]
#[case("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn")]
#[case("hidden_act", json!("gelu"), "gelu")]
#[case("attention_bias", json!(true), "attention_bias")]
#[case("mlp_bias", json!(true), "mlp_bias")]
#[case("partial_rotary_factor", json!(0.5), "partial_rotary_factor")]
fn what_cannot_run_is_refused_by_name(#[case] key: &str, #[case] value: Value, #[case] named: &str) {
    match config(&with(&[(key, value)]), None) {
        Err(EngineError::Unsupported(message)) => assert!(message.contains(named), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_window_in_some_layers_is_refused() {
    let bytes = with(&[
        ("architectures", json!(["Qwen2ForCausalLM"])),
        ("sliding_window", json!(8)),
        ("use_sliding_window", json!(true)),
        ("max_window_layers", json!(3)),
    ]);
    assert!(config(&bytes, None).unwrap_err().to_string().contains("1 of 4 layers"));
}

#[rstest]
#[case(br#"{"architectures": ["LlamaForCausalLM"]}"#, "hidden_size")]
#[case(b"{", "EOF")]
#[case(b"\xff", "config.json")]
fn a_damaged_file_names_what_is_wrong(#[case] bytes: &[u8], #[case] named: &str) {
    let message = config(bytes, None).unwrap_err().to_string();
    assert!(message.starts_with("config.json: ") && message.contains(named), "{message}");
}
