#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use rstest::rstest;

use super::*;
use crate::{
    WeightFormat,
    artifact::Store,
    checkpoint::{
        Role, SourceDtype, Value,
        testing::{GgufWriter, tiny_config, tiny_llama},
    },
    text::Text,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Copies the files of a directory that are no weights.
fn small_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        if entry.path().extension().is_none_or(|end| end != "safetensors") {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A GGUF file with rotary factors and a vocabulary of bytes.
fn gguf() -> GgufWriter {
    let config = tiny_config();
    let factors: Vec<u8> = (0..config.head_dim / 2).flat_map(|i| (1.0 + 0.1 * i as f32).to_le_bytes()).collect();
    let mut tokens: Vec<String> = (0..config.vocab).map(|i| format!("t{i}")).collect();
    tokens[..3].clone_from_slice(&["a".into(), "b".into(), "ab".into()]);
    tiny_llama(SourceDtype::Q8_0)
        .tensor(ROPE_FACTORS, &[config.head_dim / 2], SourceDtype::F32, factors)
        .entry("tokenizer.ggml.model", Value::Text("gpt2".into()))
        .entry("tokenizer.ggml.pre", Value::Text("smollm".into()))
        .entry("tokenizer.ggml.tokens", Value::Texts(tokens))
        .entry("tokenizer.ggml.merges", Value::Texts(vec!["a b".into()]))
}

fn same(whole: &Checkpoint, pruned: &Checkpoint) {
    assert_eq!(format!("{:?}", pruned.config()), format!("{:?}", whole.config()));
    assert_eq!(pruned.revision(), whole.revision());
    assert_eq!((pruned.name(), pruned.licence()), (whole.name(), whole.licence()));
    assert_eq!(pruned.quantization().is_some(), whole.quantization().is_some());
    let key = |checkpoint| Store::key(checkpoint, WeightFormat::Fp8.into(), None);
    assert_eq!(key(pruned), key(whole));
    for role in Role::all(pruned.config()) {
        assert!(pruned.tensor(role).is_none() && pruned.quantized(role).unwrap().is_none());
        assert_eq!(pruned.stored_bytes(role), 0);
        assert!(matches!(pruned.require(role), Err(EngineError::Pruned { .. })));
        pruned.release(role);
    }
    assert_eq!((pruned.tensors().count(), pruned.codes().count()), (0, 0));
    assert!(matches!(pruned.remains(), Err(EngineError::Pruned { .. })));
}

#[rstest]
#[case("llama3-tiny")]
#[case("mistral-tiny")]
#[case("qwen2-tiny")]
#[case("foreign/gptq-symmetric")]
fn a_directory_is_the_same_model_without_its_weights(#[case] name: &str) {
    let folder = tempfile::tempdir().unwrap();
    // The name of the directory is the model's.
    let left = folder.path().join(Path::new(name).file_name().unwrap());
    fs::create_dir(&left).unwrap();
    small_files(&data(name), &left);
    let whole = Checkpoint::open(&data(name)).unwrap();
    let text = serde_json::to_string(&whole.remains().unwrap()).unwrap();
    let remains: Remains = serde_json::from_str(&text).unwrap();
    same(&whole, &Checkpoint::open_pruned(&left, &remains).unwrap());

    let config = fs::read_to_string(left.join("config.json")).unwrap();
    fs::write(left.join("config.json"), config + " ").unwrap();
    let error = Checkpoint::open_pruned(&left, &remains).unwrap_err().to_string();
    assert!(error.contains("have changed since"), "{error}");
}

#[test]
fn the_head_of_a_gguf_file_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, gguf().build()).unwrap();
    let whole = Checkpoint::open(&path).unwrap();
    let remains = whole.remains().unwrap();
    assert_eq!(remains.gguf.rope_factors.as_ref().map(Vec::len), Some(tiny_config().head_dim / 2));
    let left = folder.path().join("left");
    fs::create_dir(&left).unwrap();
    let (left, bytes) = (left.join("tiny.gguf"), fs::read(&path).unwrap());
    fs::write(&left, &bytes[..remains.gguf.head]).unwrap();
    let pruned = Checkpoint::open_pruned(&left, &remains).unwrap();
    same(&whole, &pruned);
    assert_eq!(pruned.gguf_entries().collect::<Vec<_>>(), whole.gguf_entries().collect::<Vec<_>>());
    assert_eq!(Text::load(&pruned).unwrap().tokenizer.vocab(), tiny_config().vocab);

    // A head that was cut, or is another file's, is refused, whatever length the record gives it.
    for wrong in [&bytes[..remains.gguf.head - 1], &bytes[..100], &tiny_llama(SourceDtype::F16).build()] {
        fs::write(&left, wrong).unwrap();
        assert!(Checkpoint::open_pruned(&left, &remains).is_err());
    }
    fs::write(&left, &bytes[..remains.gguf.head]).unwrap();
    for head in [0, remains.gguf.head + 1, usize::MAX] {
        let gguf = GgufHead { head, ..remains.gguf.clone() };
        assert!(Checkpoint::open_pruned(&left, &Remains { gguf, ..remains.clone() }).is_err(), "{head}");
    }
}

#[test]
fn a_finished_artifact_is_found_and_another_one_asks_for_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("llama3-tiny");
    fs::create_dir(&left).unwrap();
    small_files(&data("llama3-tiny"), &left);
    let whole = Checkpoint::open(&data("llama3-tiny")).unwrap();
    let pruned = Checkpoint::open_pruned(&left, &whole.remains().unwrap()).unwrap();
    let store = Store::new(folder.path());
    let built = store.prepare(&whole, WeightFormat::Int8, &mut |_| {}).unwrap();
    let found = store.prepare(&pruned, WeightFormat::Int8, &mut |_| {}).unwrap();
    assert_eq!(found.manifest(), built.manifest());

    let error = store.prepare(&pruned, WeightFormat::Fp8, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("pruned (spec.cache.keepOriginal is false)"), "{error}");
    // A damaged one stays as it is until there is something to build it from.
    let packed = built.directory().join(crate::artifact::store::PACKED);
    fs::write(&packed, "damaged").unwrap();
    let error = store.prepare(&pruned, WeightFormat::Int8, &mut |_| {}).unwrap_err();
    assert!(matches!(error, EngineError::Pruned { .. }), "{error}");
    assert_eq!(fs::read_to_string(&packed).unwrap(), "damaged");
    assert_eq!(store.prepare(&whole, WeightFormat::Int8, &mut |_| {}).unwrap().manifest(), found.manifest());
}

#[test]
fn a_reference_goes_unless_it_is_a_profiles_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&data("llama3-tiny")).unwrap();
    let store = Store::new(folder.path());
    assert_eq!(store.remove_reference(&checkpoint).unwrap(), 0);
    let build = || store.prepare(&checkpoint, WeightFormat::Bf16, &mut |_| {}).unwrap();
    let bytes = build().weight_bytes();
    for name in ["README.md", "quality.json", "quality-0123456789abcdef.json"] {
        let mark = build().directory().join(name);
        fs::write(&mark, "").unwrap();
        assert_eq!(store.remove_reference(&checkpoint).unwrap(), 0, "{name}");
        fs::remove_file(mark).unwrap();
    }
    assert!(store.remove_reference(&checkpoint).unwrap() > bytes);
    assert!(build().directory().exists());
}
