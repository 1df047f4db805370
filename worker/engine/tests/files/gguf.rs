//! GGUF files written by `gguf::export` and read again by the checkpoint reader.

use std::path::{Path, PathBuf};

use half::bf16;
use modelprofile_engine::{
    Architecture, ModelConfig, RopeScaling,
    checkpoint::{Checkpoint, Role, SourceDtype, Value, testing::GgufWriter},
    gguf::{FileType, Importance, Options, Summary, export},
    model::rope,
    text::Text,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rstest::rstest;

use crate::support;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn options(file_type: FileType) -> Options<'static> {
    Options { file_type, importance: None, threads: 2, requantize: false }
}

fn write(checkpoint: &Checkpoint, path: &Path, options: &Options<'_>) -> (Checkpoint, Summary) {
    let summary = export(checkpoint, path, options, &mut |_| {}).unwrap();
    assert_eq!(summary.bytes, std::fs::metadata(path).unwrap().len());
    (Checkpoint::open(path).unwrap(), summary)
}

/// As BF16 holds it.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

/// Equal in all that a GGUF file says; rotary scaling by what it does to the frequencies.
fn assert_same_config(written: &ModelConfig, source: &ModelConfig) {
    for (a, b) in rope::inverse_frequencies(written).iter().zip(rope::inverse_frequencies(source)) {
        assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    }
    let ends = |config: &ModelConfig| {
        let mut ends = config.eos_tokens.clone();
        ends.sort_unstable();
        ends
    };
    assert_eq!(ends(written), ends(source));
    let rest = |config: &ModelConfig| ModelConfig {
        rope_scaling: RopeScaling::None,
        eos_tokens: Vec::new(),
        ..config.clone()
    };
    assert_eq!(rest(written), rest(source));
}

#[rstest]
#[case("llama3-tiny")]
#[case("mistral-tiny")]
#[case("qwen2-tiny")]
#[case("qwen3-tiny")]
fn a_directory_becomes_a_file_of_the_same_model(#[case] name: &str) {
    let source = Checkpoint::open(&data(name)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (written, summary) = write(&source, &directory.path().join("a.gguf"), &options(FileType::BF16));
    assert_same_config(written.config(), source.config());
    let llama3 = matches!(source.config().rope_scaling, RopeScaling::Llama3 { .. });
    assert_eq!(matches!(written.config().rope_scaling, RopeScaling::Factors(_)), llama3);
    assert_eq!((written.name(), summary.parameters), (source.name(), source.parameters()));
    for role in Role::all(source.config()) {
        let (a, b) = (written.require(role).unwrap(), source.require(role).unwrap());
        let expected = if role.is_vector() { b.to_f32().unwrap() } else { rounded(&b.to_f32().unwrap()) };
        assert_eq!(a.to_f32().unwrap(), expected, "{role:?}");
    }
    // Queries of Llama files lie in another order; the values above are equal because the reader puts them back.
    let query = |checkpoint: &Checkpoint| checkpoint.require(Role::Query(0)).unwrap().bytes.to_vec();
    let interleaved = matches!(source.config().architecture, Architecture::Llama | Architecture::Mistral);
    if source.require(Role::Query(0)).unwrap().dtype == SourceDtype::Bf16 {
        assert_eq!(query(&written) != query(&source), interleaved);
    }
}

/// The front matter of a README and the two files of a tokenizer, beside a tiny model.
#[test]
fn licence_and_base_model_are_carried_over() {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("qwen3-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let readme = "---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-Base\n---\n";
    std::fs::write(directory.path().join("README.md"), readme).unwrap();
    let source = Checkpoint::open(directory.path()).unwrap();
    let (written, _) = write(&source, &directory.path().join("a.gguf"), &options(FileType::Q8_0));
    let metadata = written.gguf_metadata().unwrap();
    assert_eq!(written.licence(), Some("apache-2.0"));
    assert_eq!(metadata.text("general.base_model.0.repo_url"), Some("https://huggingface.co/Qwen/Qwen3-Base"));
    assert_eq!(metadata.unsigned("general.file_type"), Some(7));
    assert_eq!(metadata.unsigned("general.quantization_version"), Some(2));
    assert_eq!(metadata.text("tokenizer.ggml.model"), Some("none"));
}

#[test]
fn a_file_of_16_bit_numbers_holds_what_its_source_says() {
    let source = support::smollm2();
    let directory = tempfile::tempdir().unwrap();
    let (written, summary) = write(&source, &directory.path().join("a.gguf"), &options(FileType::BF16));
    assert_eq!(written.config(), source.config());
    assert!((15.9..16.1).contains(&summary.bits_per_weight), "{summary:?}");
    for role in Role::all(source.config()) {
        let (a, b) = (written.require(role).unwrap(), source.require(role).unwrap());
        let (mut found, mut expected) = (vec![0.0; a.cols], vec![0.0; b.cols]);
        for row in 0..b.rows {
            a.row_f32(row, &mut found).unwrap();
            b.row_f32(row, &mut expected).unwrap();
            let expected = if role.is_vector() { expected.clone() } else { rounded(&expected) };
            assert_eq!(found, expected, "{role:?} row {row}");
        }
    }
    // Everything else that the source says is passed on as it is, in its own widths.
    let entries = |checkpoint: &Checkpoint| -> Vec<(String, Vec<u8>)> {
        let all = checkpoint.gguf_entries().filter(|(key, _)| *key != "general.file_type");
        let mut all: Vec<_> = all.map(|(key, bytes)| (key.to_owned(), bytes.to_vec())).collect();
        all.sort();
        all
    };
    assert_eq!(entries(&written), entries(&source));
    assert_eq!(written.gguf_metadata().unwrap().unsigned("general.file_type"), Some(32));
    let tokens =
        |checkpoint: &Checkpoint| Text::load(checkpoint).unwrap().tokenizer.encode("def f(n): 12", true).unwrap();
    assert_eq!(tokens(&written), tokens(&source));
}

#[test]
fn a_source_of_the_requested_type_is_copied_bit_for_bit() {
    let source = support::smollm2();
    let directory = tempfile::tempdir().unwrap();
    let (written, summary) = write(&source, &directory.path().join("a.gguf"), &options(FileType::Q4_1));
    assert_eq!((summary.copied, summary.converted), (source.tensors().count(), 0));
    for (a, b) in written.tensors().zip(source.tensors()) {
        assert!(a.name == b.name && a.dtype == b.dtype && a.bytes == b.bytes, "{a:?} {b:?}");
    }
}

#[test]
fn a_quantized_source_is_quantized_again_only_when_asked() {
    let source = support::smollm2();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.gguf");
    let error = export(&source, &path, &options(FileType::Q4_K_M), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("is Q4_1 already") && error.contains("--requantize"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A Llama of eight layers in FP32, wide enough for blocks of 256.
fn wide(directory: &Path) -> Checkpoint {
    let config = ModelConfig {
        architecture: Architecture::Llama,
        layers: 8,
        hidden: 256,
        intermediate: 512,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocab: 80,
        max_positions: 128,
        rms_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
        bos_token: None,
        eos_tokens: vec![2],
    };
    let mut writer = GgufWriter::default()
        .entry("general.architecture", Value::Text("llama".to_owned()))
        .entry("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5))
        .entry("tokenizer.ggml.eos_token_id", Value::Unsigned(2));
    for (key, value) in [
        ("block_count", config.layers),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("context_length", config.max_positions),
    ] {
        writer = writer.entry(&format!("llama.{key}"), Value::Unsigned(value as u64));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for role in Role::all(&config) {
        let (rows, cols) = role.shape(&config);
        let shape = if role.is_vector() { vec![cols] } else { vec![rows, cols] };
        // The sum of four uniform numbers is close to a Gaussian.
        let mut value = || (0..4).map(|_| rng.random_range(-0.02f32..0.02)).sum::<f32>();
        let bytes = (0..rows * cols).flat_map(|_| value().to_le_bytes()).collect();
        writer = writer.tensor(&role.gguf_name(), &shape, SourceDtype::F32, bytes);
    }
    let path = directory.join("wide.gguf");
    std::fs::write(&path, writer.build()).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// Relative root mean square error of a tensor.
fn error(written: &Checkpoint, source: &Checkpoint, role: Role) -> f64 {
    let (a, b) = (written.require(role).unwrap().to_f32().unwrap(), source.require(role).unwrap().to_f32().unwrap());
    let off: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// Types by the mix, values within the format's error, and one file whatever the number of threads.
#[rstest]
#[case(FileType::F16, SourceDtype::F16, SourceDtype::F16, 3e-4)]
#[case(FileType::BF16, SourceDtype::Bf16, SourceDtype::Bf16, 2e-3)]
#[case(FileType::Q8_0, SourceDtype::Q8_0, SourceDtype::Q8_0, 0.006)]
#[case(FileType::Q6_K, SourceDtype::Q6_K, SourceDtype::Q6_K, 0.018)]
#[case(FileType::Q5_K_M, SourceDtype::Q5_K, SourceDtype::Q6_K, 0.036)]
#[case(FileType::Q4_K_M, SourceDtype::Q4_K, SourceDtype::Q6_K, 0.073)]
#[case(FileType::Q4_1, SourceDtype::Q4_1, SourceDtype::Q6_K, 0.08)]
#[case(FileType::Q4_0, SourceDtype::Q4_0, SourceDtype::Q6_K, 0.09)]
fn every_file_type_is_written_and_read(
    #[case] file_type: FileType,
    #[case] most: SourceDtype,
    #[case] output: SourceDtype,
    #[case] limit: f64,
) {
    let directory = tempfile::tempdir().unwrap();
    let source = wide(directory.path());
    let path = directory.path().join("a.gguf");
    let columns = Role::all(source.config()).into_iter().filter(|role| !role.is_vector() && *role != Role::Embedding);
    let columns = columns.map(|role| (role, (1..=role.shape(source.config()).1).map(|j| j as f32).collect()));
    let importance = Importance::new(columns.collect()).unwrap();
    for importance in [None, Some(&importance)] {
        let written = |threads| {
            let options = Options { importance, threads, ..options(file_type) };
            let (written, _) = write(&source, &path, &options);
            (written, std::fs::read(&path).unwrap())
        };
        let (found, file) = written(1);
        assert_same_config(found.config(), source.config());
        let dtype = |role| found.require(role).unwrap().dtype;
        assert_eq!((dtype(Role::Gate(4)), dtype(Role::Output)), (most, output));
        assert_eq!(dtype(Role::FinalNorm), SourceDtype::F32);
        for role in Role::all(source.config()) {
            let error = error(&found, &source, role);
            assert!(error <= limit * if importance.is_some() { 1.1 } else { 1.0 }, "{role:?}: {error}");
        }
        for threads in [2, 5] {
            assert!(written(threads).1 == file, "the file depends on the threads");
        }
    }
}

#[test]
fn an_importance_matrix_of_another_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = wide(directory.path());
    let refused = |role, cols| {
        let importance = Importance::new([(role, vec![1.0; cols])].into_iter().collect()).unwrap();
        let options = Options { importance: Some(&importance), ..options(FileType::Q4_K_M) };
        export(&source, &directory.path().join("a.gguf"), &options, &mut |_| {}).unwrap_err().to_string()
    };
    assert!(refused(Role::Gate(1), 255).contains("255 columns for blk.1.ffn_gate.weight, the model has 256"));
    assert!(refused(Role::Gate(8), 256).contains("another model"));
}

/// Importance moves the error to where it costs least.
#[test]
fn importance_lowers_the_error_of_important_columns() {
    let directory = tempfile::tempdir().unwrap();
    let source = wide(directory.path());
    let role = Role::Gate(3);
    let weight = |j: usize| if j.is_multiple_of(16) { 200.0 } else { 1.0 };
    let importance = Importance::new([(role, (0..256).map(weight).collect())].into_iter().collect()).unwrap();
    let cost = |name: &str, importance| {
        let options = Options { importance, ..options(FileType::Q4_K_M) };
        let (written, _) = write(&source, &directory.path().join(name), &options);
        let (a, b) =
            (written.require(role).unwrap().to_f32().unwrap(), source.require(role).unwrap().to_f32().unwrap());
        let each = a.iter().zip(&b).enumerate();
        each.map(|(i, (a, b))| f64::from(weight(i % 256)) * f64::from(a - b).powi(2)).sum::<f64>()
    };
    let (with, without) = (cost("with.gguf", Some(&importance)), cost("without.gguf", None));
    assert!(with < 0.6 * without, "{with} {without}");
}
