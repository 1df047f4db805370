//! The checkpoint reader on damaged and hostile files: an error that says where, never a panic, never a large allocation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use modelprofile_engine::{
    EngineError,
    checkpoint::{Checkpoint, SourceDtype, Value, testing},
};
use proptest::prelude::*;
use rstest::rstest;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn gguf(bytes: &[u8]) -> Result<(), EngineError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile.gguf");
    fs::write(&path, bytes).unwrap();
    read_all(&path)
}

/// Opens a checkpoint and reads every value, as quantizing it would.
fn read_all(path: &Path) -> Result<(), EngineError> {
    let checkpoint = Checkpoint::open(path)?;
    for tensor in checkpoint.tensors() {
        tensor.to_f32()?;
        tensor.as_grouped()?;
    }
    checkpoint.revision();
    Ok(())
}

fn message(result: Result<(), EngineError>) -> String {
    result.expect_err("a hostile file was accepted").to_string()
}

/// A Llama file with one number of its header replaced.
fn patched(at: usize, value: u64) -> Vec<u8> {
    let mut bytes = testing::tiny_llama(SourceDtype::Q8_0).build();
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[rstest]
#[case::empty(vec![], "ends inside the magic")]
#[case::not_gguf(b"<!DOCTYPE html><html></html>".to_vec(), "GGUF magic")]
#[case::version_1(b"GGUF\x01\0\0\0".to_vec(), "GGUF version 1")]
#[case::big_endian(b"GGUF\0\0\0\x03".to_vec(), "big-endian")]
#[case::tensors_beyond_the_file(patched(8, u64::MAX), "more than the file can hold")]
#[case::entries_beyond_the_file(patched(16, 1 << 40), "more than the file can hold")]
#[case::a_key_longer_than_the_file(patched(24, u64::MAX - 3), "more than the file can hold")]
fn headers_that_lie(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    let message = message(gguf(&bytes));
    assert!(message.contains(expected) && message.contains("hostile.gguf"), "{message}");
}

#[rstest]
#[case("blk.1.ffn_down.weight", &[64, 96], SourceDtype::Q8_0, "appears twice")]
#[case("blk.1.moe.weight", &[64, 96], SourceDtype::Q8_0, "has no place")]
#[case("x", &[64, 33], SourceDtype::Q8_0, "impossible shape")]
#[case("x", &[usize::MAX / 2, 64], SourceDtype::F32, "impossible shape")]
#[case("x", &[1 << 40, 64], SourceDtype::F32, "truncated")]
#[case("x", &[0, 64], SourceDtype::F32, "dimension of 0")]
#[case("x", &[1, 1, 1, 1, 1], SourceDtype::F32, "5 dimensions")]
#[case("x", &[], SourceDtype::F32, "0 dimensions")]
fn tensors_that_lie(#[case] name: &str, #[case] shape: &[usize], #[case] dtype: SourceDtype, #[case] expected: &str) {
    let file = testing::tiny_llama(SourceDtype::Q8_0).tensor(name, shape, dtype, vec![0; 64 * 96 / 32 * 34]);
    let message = message(gguf(&file.build()));
    assert!(message.contains(expected) && message.contains(name), "{message}");
}

#[rstest]
#[case("general.architecture", Value::Text("llama".into()), "appears twice")]
#[case("general.alignment", Value::Unsigned(48), "power of two")]
#[case("general.alignment", Value::Unsigned(0), "power of two")]
#[case("llama.expert_count", Value::Unsigned(8), "expert_count")]
#[case("llama.attention.key_length", Value::Unsigned(15), "odd")]
#[case("llama.attention.key_length", Value::Unsigned(32), "has the shape")]
#[case("llama.attention.value_length", Value::Unsigned(32), "value_length")]
#[case("llama.rope.dimension_count", Value::Unsigned(8), "dimension_count")]
#[case("split.count", Value::Unsigned(3), "split.count")]
#[case("llama.rope.scale_linear", Value::Float(-2.0), "scaling factor is -2")]
#[case("llama.attention.sliding_window", Value::Text("8".into()), "sliding_window is not")]
#[case("llama.rope.scaling.type", Value::Text("yarn".into()), "yarn")]
#[case("deep", (0..9).fold(Value::Integers(vec![]), |v, _| Value::List(vec![v])), "nests")]
fn metadata_that_does_not_fit(#[case] key: &str, #[case] value: Value, #[case] expected: &str) {
    let message = message(gguf(&testing::tiny_llama(SourceDtype::Q8_0).entry(key, value).build()));
    assert!(message.contains(expected) && message.contains("hostile.gguf"), "{message}");
}

#[rstest]
#[case::too_few(&[1.0; 7])]
#[case::negative(&[1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0])]
#[case::no_number(&[f32::NAN; 8])]
fn rotary_factors_that_are_none(#[case] factors: &[f32]) {
    let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    let shape = [factors.len()];
    let file = testing::tiny_llama(SourceDtype::Q8_0).tensor("rope_freqs.weight", &shape, SourceDtype::F32, bytes);
    assert!(message(gguf(&file.build())).contains("rope_freqs.weight"));
}

#[test]
fn a_missing_tensor_is_named() {
    let file = testing::tiny_llama(SourceDtype::Q8_0).without("blk.1.ffn_up.weight");
    assert!(message(gguf(&file.build())).contains("blk.1.ffn_up.weight is missing"));
}

#[test]
fn a_wrong_shape_names_both_shapes() {
    let file = testing::tiny_llama(SourceDtype::F16).without("blk.1.ffn_up.weight").tensor(
        "blk.1.ffn_up.weight",
        &[64, 96],
        SourceDtype::F16,
        vec![0; 2 * 64 * 96],
    );
    let message = message(gguf(&file.build()));
    assert_eq!(
        message,
        "hostile.gguf: tensor blk.1.ffn_up.weight has the shape [64, 96], the configuration demands [96, 64]"
    );
}

#[rstest]
#[case::no_config("config.json", None, "config.json is missing")]
#[case::no_shard("model-00002-of-00003.safetensors", None, "model-00002-of-00003.safetensors")]
#[case::no_index("model.safetensors.index.json", None, "neither model.safetensors nor")]
#[case::index_leads_out(
    "model.safetensors.index.json",
    Some(r#"{"weight_map": {"a": "../../etc/passwd"}}"#),
    "plain file name"
)]
#[case::index_is_absolute(
    "model.safetensors.index.json",
    Some(r#"{"weight_map": {"a": "/etc/passwd"}}"#),
    "plain file name"
)]
#[case::index_names_nothing("model.safetensors.index.json", Some(r#"{"weight_map": {}}"#), "is missing")]
#[case::damaged_shard("model-00001-of-00003.safetensors", Some("\u{ff}"), "model-00001-of-00003.safetensors")]
fn incomplete_directories(#[case] file: &str, #[case] content: Option<&str>, #[case] expected: &str) {
    let copy = copy_of("mistral-tiny");
    let path = copy.path().join(file);
    match content {
        Some(content) => fs::write(path, content).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    let message = message(read_all(copy.path()));
    assert!(message.contains(expected), "{message}");
}

#[test]
fn an_index_that_puts_a_tensor_elsewhere_is_refused() {
    let copy = copy_of("mistral-tiny");
    let path = copy.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    let moved = text.replace(
        "\"lm_head.weight\": \"model-00003-of-00003.safetensors\"",
        "\"lm_head.weight\": \"model-00001-of-00003.safetensors\"",
    );
    assert_ne!(text, moved);
    fs::write(path, moved).unwrap();
    let message = message(read_all(copy.path()));
    assert!(message.starts_with("model-00001-of-00003.safetensors: tensor lm_head.weight is missing"), "{message}");
}

#[test]
fn a_configuration_that_no_model_has_is_refused() {
    for (key, value) in [
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4000000000"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
        ("\"vocab_size\": 128", "\"vocab_size\": 18446744073709551615"),
        ("\"hidden_size\": 64", "\"hidden_size\": -1"),
        ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e99"),
    ] {
        let copy = copy_of("llama3-tiny");
        let path = copy.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(key), "{key}");
        fs::write(path, text.replace(key, value)).unwrap();
        assert!(message(read_all(copy.path())).contains("config.json"), "{value}");
    }
}

/// Changes to a file: bytes set to a value at a fraction of its length, and a fraction of it kept.
fn damage() -> impl Strategy<Value = (Vec<(f64, u8)>, f64)> {
    let places = proptest::collection::vec((prop_oneof![0.0..1.0, 0.0..0.02], any::<u8>()), 0..6);
    (places, prop_oneof![3 => Just(1.0), 1 => 0.0..1.0])
}

fn apply(bytes: &mut Vec<u8>, (places, kept): &(Vec<(f64, u8)>, f64)) {
    for (place, value) in places {
        let at = (place * bytes.len() as f64) as usize;
        bytes[at] = *value;
    }
    bytes.truncate((kept * bytes.len() as f64) as usize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_gguf_file_never_panics(damage in damage()) {
        let mut bytes = testing::tiny_llama(SourceDtype::Q4_1)
            .entry("tokenizer.ggml.tokens", Value::Texts(vec!["a".into(), "b".into()]))
            .entry("tokenizer.ggml.scores", Value::Floats(vec![1.0, 2.0]))
            .build();
        apply(&mut bytes, &damage);
        // Damage may hit padding or a weight and leave a sound file: only a panic fails.
        let _ = gguf(&bytes);
    }

    #[test]
    fn a_truncated_gguf_file_is_an_error(kept in 0.0..1.0) {
        let mut bytes = testing::tiny_llama(SourceDtype::Q8_0).build();
        bytes.truncate((kept * bytes.len() as f64) as usize);
        prop_assert!(gguf(&bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_damaged_directory_never_panics(damage in damage(), which in 0usize..5) {
        let copy = copy_of("mistral-tiny");
        let file = [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
        ][which];
        let path = copy.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        apply(&mut bytes, &damage);
        fs::write(&path, bytes).unwrap();
        let _ = read_all(copy.path());
    }
}
