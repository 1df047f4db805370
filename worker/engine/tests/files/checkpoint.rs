//! The checkpoint reader on sound files: the tiny checkpoints of every family, and GGUF files made here.

use std::path::{Path, PathBuf};

use half::f16;
use modelprofile_engine::{
    Architecture, RopeScaling,
    checkpoint::{Checkpoint, Role, SourceDtype, Value, testing},
};
use modelprofile_kernels::HostWeight;
use rstest::rstest;
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn open_gguf(bytes: &[u8]) -> (TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (directory, checkpoint)
}

#[rstest]
#[case::llama3("llama3-tiny", Architecture::Llama, SourceDtype::Bf16, true, None)]
#[case::mistral("mistral-tiny", Architecture::Mistral, SourceDtype::Bf16, false, Some(8))]
#[case::qwen2("qwen2-tiny", Architecture::Qwen2, SourceDtype::F32, true, None)]
#[case::qwen3("qwen3-tiny", Architecture::Qwen3, SourceDtype::Bf16, false, None)]
fn every_family_opens(
    #[case] name: &str,
    #[case] architecture: Architecture,
    #[case] dtype: SourceDtype,
    #[case] tied: bool,
    #[case] window: Option<usize>,
) {
    let checkpoint = Checkpoint::open(&data(name)).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.tied_embeddings, config.sliding_window), (architecture, tied, window));
    assert_eq!((config.vocab, config.hidden, config.layers, config.heads, config.kv_heads), (128, 64, 2, 4, 2));
    assert_eq!(checkpoint.tensor(Role::Output).is_some(), !tied);
    assert_eq!(checkpoint.tensor(Role::QueryBias(1)).is_some(), architecture == Architecture::Qwen2);
    assert_eq!(checkpoint.tensor(Role::KeyNorm(1)).is_some(), architecture == Architecture::Qwen3);
    assert!(checkpoint.tensor(Role::Query(2)).is_none());
    assert!(checkpoint.require(Role::Query(2)).unwrap_err().to_string().contains("Query(2)"));
    for role in Role::all(config) {
        let tensor = checkpoint.require(role).unwrap();
        assert_eq!((tensor.rows, tensor.cols), role.shape(config), "{role:?}");
        assert_eq!(tensor.dtype, dtype);
        assert!(tensor.to_f32().unwrap().iter().any(|v| *v != 0.0), "{role:?}");
    }
    let elements: usize = checkpoint.tensors().map(|tensor| tensor.elements()).sum();
    assert_eq!(checkpoint.parameters(), elements as u64);
    assert_eq!((checkpoint.name(), checkpoint.licence()), (name, None));
    assert_eq!(checkpoint.directory(), data(name));
    assert!(checkpoint.gguf_metadata().is_none());
}

#[test]
fn the_configuration_of_transformers_5_is_read() {
    let llama = Checkpoint::open(&data("llama3-tiny")).unwrap();
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 32 };
    assert_eq!(llama.config().rope_scaling, scaling);
    assert_eq!((llama.config().bos_token, llama.config().eos_tokens.as_slice()), (Some(1), &[2, 3][..]));
    let qwen = Checkpoint::open(&data("qwen3-tiny")).unwrap();
    assert_eq!((qwen.config().rope_theta, qwen.config().head_dim), (1_000_000.0, 32));
}

#[test]
fn the_revision_is_the_content_and_nothing_else() {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("llama3-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let original = Checkpoint::open(&data("llama3-tiny")).unwrap();
    let same = Checkpoint::open(copy.path()).unwrap();
    assert_eq!(original.revision(), same.revision());
    assert_eq!(original.revision().len(), 64);

    // One bit of one weight, the last byte of the file.
    let weights = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(copy.path().join("changed"), bytes).unwrap();
    std::fs::rename(copy.path().join("changed"), &weights).unwrap();
    assert_ne!(original.revision(), Checkpoint::open(copy.path()).unwrap().revision());
}

#[test]
fn a_readme_declares_the_licence() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data("qwen2-tiny").join(file), copy.path().join(file)).unwrap();
    }
    std::fs::write(copy.path().join("README.md"), "---\nlicense: apache-2.0\n---\n").unwrap();
    assert_eq!(Checkpoint::open(copy.path()).unwrap().licence(), Some("apache-2.0"));
}

#[test]
fn a_gguf_file_gives_configuration_and_metadata() {
    let texts = vec!["<|endoftext|>".to_owned(), "a".to_owned(), "<|im_end|>".to_owned()];
    let bytes = testing::tiny_llama(SourceDtype::Q4_1)
        .entry("tokenizer.ggml.tokens", Value::Texts(texts.clone()))
        .entry("tokenizer.ggml.token_type", Value::Integers(vec![3, 1, 3]))
        .entry("tokenizer.ggml.scores", Value::Floats(vec![0.5, -1.0, 0.0]))
        .entry("tokenizer.ggml.add_bos_token", Value::Bool(false))
        .entry("nested", Value::List(vec![Value::Integers(vec![1]), Value::Integers(vec![])]))
        .build();
    let (_directory, checkpoint) = open_gguf(&bytes);
    let mut expected = testing::tiny_config();
    // The file names one end token; the other is a control token of its vocabulary.
    expected.eos_tokens = vec![2, 0];
    assert_eq!(checkpoint.config(), &expected);
    assert_eq!((checkpoint.name(), checkpoint.licence()), ("tiny", Some("apache-2.0")));
    let metadata = checkpoint.gguf_metadata().unwrap();
    assert_eq!(metadata.texts("tokenizer.ggml.tokens"), Some(&texts[..]));
    assert_eq!(metadata.integers("tokenizer.ggml.token_type"), Some(&[3, 1, 3][..]));
    assert_eq!(metadata.floats("tokenizer.ggml.scores"), Some(&[0.5, -1.0, 0.0][..]));
    assert_eq!(metadata.flag("tokenizer.ggml.add_bos_token"), Some(false));
    assert_eq!(metadata.unsigned("tokenizer.ggml.eos_token_id"), Some(2));
    assert_eq!(metadata.text("llama.block_count"), None);
}

#[test]
fn rotary_factors_of_llama_3_are_taken_from_their_tensor() {
    let factors = [1.0f32, 1.0, 1.0, 2.5, 4.0, 8.0, 8.0, 8.0];
    let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    let file = testing::tiny_llama(SourceDtype::F16).tensor("rope_freqs.weight", &[8], SourceDtype::F32, bytes);
    let (_directory, checkpoint) = open_gguf(&file.build());
    assert_eq!(checkpoint.config().rope_scaling, RopeScaling::Factors(factors.to_vec()));
}

#[test]
fn a_llama_file_with_a_window_is_a_mistral() {
    let file = testing::tiny_llama(SourceDtype::F16)
        .entry("llama.attention.sliding_window", Value::Unsigned(8))
        .entry("llama.rope.scaling.type", Value::Text("linear".to_owned()))
        .entry("llama.rope.scaling.factor", Value::Float(4.0));
    let (_directory, checkpoint) = open_gguf(&file.build());
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.sliding_window), (Architecture::Mistral, Some(8)));
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

/// The converter's reordering of a query or key matrix, spelled as it is documented: each head `[2, half]` rows become
/// `[half, 2]`.
fn interleave<T: Clone>(rows: &[T], head_dim: usize) -> Vec<T> {
    let half = head_dim / 2;
    rows.chunks(head_dim)
        .flat_map(|head| (0..half).flat_map(|j| [head[j].clone(), head[half + j].clone()]).collect::<Vec<_>>())
        .collect()
}

#[test]
fn query_and_key_rows_come_back_in_the_original_order() {
    let row = |i: usize| vec![i as f32; 64];
    let rows: Vec<Vec<f32>> = (0..64).map(row).collect();
    let bytes = |rows: Vec<Vec<f32>>| rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let file = testing::tiny_llama(SourceDtype::F32)
        .without("blk.1.attn_q.weight")
        .without("blk.1.attn_k.weight")
        .without("blk.1.attn_output.weight")
        .tensor("blk.1.attn_q.weight", &[64, 64], SourceDtype::F32, bytes(interleave(&rows, 16)))
        .tensor("blk.1.attn_k.weight", &[32, 64], SourceDtype::F32, bytes(interleave(&rows[..32], 16)))
        .tensor("blk.1.attn_output.weight", &[64, 64], SourceDtype::F32, bytes(rows.clone()));
    let (_directory, checkpoint) = open_gguf(&file.build());
    for role in [Role::Query(1), Role::Key(1), Role::AttentionOutput(1)] {
        let tensor = checkpoint.require(role).unwrap();
        assert_eq!(tensor.to_f32().unwrap(), rows[..tensor.rows].concat(), "{role:?}");
    }
}

/// Blocks of 64 rows by 64 columns with a scale and codes that differ everywhere.
fn blocks(dtype: SourceDtype, scale: f32) -> Vec<u8> {
    let scales = if dtype == SourceDtype::Q4_1 { 2 } else { 1 };
    (0..128)
        .flat_map(|block| {
            let mut bytes = Vec::new();
            for s in 0..scales {
                bytes.extend(f16::from_f32(scale * (block as f32 - 40.0 + 0.5 * s as f32)).to_le_bytes());
            }
            while bytes.len() < dtype.block_bytes() {
                bytes.push((block * 37 + bytes.len() * 101) as u8);
            }
            bytes
        })
        .collect()
}

fn with_query(dtype: SourceDtype, bytes: Vec<u8>) -> (TempDir, Checkpoint) {
    let file = testing::tiny_llama(dtype).without("blk.0.attn_q.weight");
    open_gguf(&file.tensor("blk.0.attn_q.weight", &[64, 64], dtype, bytes).build())
}

#[rstest]
#[case(SourceDtype::Q4_1, 4)]
#[case(SourceDtype::Q4_0, 4)]
#[case(SourceDtype::Q8_0, 8)]
fn blocks_are_taken_over_without_a_change_to_any_weight(#[case] dtype: SourceDtype, #[case] expected_bits: u8) {
    let (_directory, checkpoint) = with_query(dtype, blocks(dtype, 0.01));
    let tensor = checkpoint.require(Role::Query(0)).unwrap();
    let Some(HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales }) = tensor.as_grouped().unwrap()
    else {
        panic!("{dtype:?} was not taken over")
    };
    assert_eq!((n, k, bits, group), (64, 64, expected_bits, 32));
    assert_eq!(row_scales, vec![1.0; 64]);
    let values: Vec<f32> =
        (0..n * k).map(|i| scales[i / 32].to_f32() * f32::from(codes[i]) + mins[i / 32].to_f32()).collect();
    assert_eq!(values, tensor.to_f32().unwrap());
}

#[test]
fn blocks_whose_minimum_leaves_fp16_are_not_taken_over() {
    for dtype in [SourceDtype::Q4_0, SourceDtype::Q8_0] {
        let (_directory, checkpoint) = with_query(dtype, blocks(dtype, 700.0));
        let tensor = checkpoint.require(Role::Query(0)).unwrap();
        assert_eq!(tensor.as_grouped().unwrap(), None);
        assert!(tensor.to_f32().is_ok());
    }
    let (_directory, checkpoint) = with_query(SourceDtype::Q5_1, blocks(SourceDtype::Q5_1, 0.01));
    assert_eq!(checkpoint.require(Role::Query(0)).unwrap().as_grouped().unwrap(), None);
}

#[rstest]
#[case(SourceDtype::Q4_1, f16::NAN)]
#[case(SourceDtype::Q8_0, f16::INFINITY)]
#[case(SourceDtype::Q4_0, f16::NEG_INFINITY)]
fn a_scale_that_is_no_number_names_file_and_tensor(#[case] dtype: SourceDtype, #[case] scale: f16) {
    let mut bytes = blocks(dtype, 0.01);
    let at = 5 * dtype.block_bytes();
    bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    let (_directory, checkpoint) = with_query(dtype, bytes);
    let tensor = checkpoint.require(Role::Query(0)).unwrap();
    for error in [tensor.to_f32().unwrap_err(), tensor.as_grouped().unwrap_err()] {
        let message = error.to_string();
        assert!(message.contains("tiny.gguf") && message.contains("blk.0.attn_q.weight"), "{message}");
    }
}
