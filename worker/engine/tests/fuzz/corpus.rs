//! Real files to start from: the committed checkpoints, and what our own writers make of them.

use std::{fs, path::Path};

use modelprofile_engine::{
    Method, WeightFormat, ZeroPoint,
    artifact::Store,
    checkpoint::{
        Checkpoint, Role, SourceDtype, Value,
        quantized::Layout,
        testing::{GgufWriter, tiny_config, tiny_llama},
    },
    gguf::{self, FileType, Importance},
    interchange,
    quantize::{Calibration, Recipe},
    text::tokenizer_files,
};
use modelprofile_kernels::{
    GroupedActivations,
    cpu::{Cpu, CpuOptions},
};

use super::{
    harness::{Files, Sample},
    mutate::sha256_hex,
};

pub(crate) const CHECKPOINTS: [&str; 4] = ["llama3-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny"];
const FOREIGN: [&str; 5] =
    ["awq-gemm", "compressed-tensors-awq", "compressed-tensors-gptq", "gptq-act-order", "gptq-symmetric"];
pub(crate) const SYMMETRIC: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Symmetric };
pub(crate) const INTEGER: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Integer };
const MINIMUM: WeightFormat = WeightFormat::Int4 { group: 32, zero: ZeroPoint::Minimum };
/// A chat template with loops, filters and a condition.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}\
    {% if loop.last %}{{ '<|im_end|>' | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}";

impl Sample {
    /// Only the files of these endings are changed.
    fn only(mut self, endings: &[&str]) -> Self {
        self.mutable.retain(|name| endings.iter().any(|ending| name.ends_with(ending)));
        self
    }
}

pub(crate) fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/data").join(name)
}

pub(crate) fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&data(name)).unwrap()
}

pub(crate) fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Int8 }).unwrap()
}

/// All files below a folder but golden values.
pub(crate) fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if name != "golden.json" {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// A vocabulary in GGUF's words: all bytes, a few merges, control tokens, a chat template.
fn with_vocabulary(mut writer: GgufWriter, sentencepiece: bool) -> GgufWriter {
    let (mut tokens, mut kinds): (Vec<String>, Vec<i64>) = (Vec::new(), Vec::new());
    let mut add = |text: &str, kind: i64| {
        tokens.push(text.to_owned());
        kinds.push(kind);
    };
    if sentencepiece {
        for (text, kind) in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] {
            add(text, kind);
        }
        for byte in 0..=255 {
            add(&format!("<0x{byte:02X}>"), 6);
        }
        for text in ["▁t", "he", "▁the", "▁", "t", "h", "e"] {
            add(text, 1);
        }
    } else {
        for (text, kind) in [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4)] {
            add(text, kind);
        }
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let plain = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if plain { u32::from(byte) } else { next };
            next += u32::from(!plain);
            add(&char::from_u32(code).unwrap().to_string(), 1);
        }
        for text in ["he", "ll", "hell", "hello"] {
            add(text, 1);
        }
    }
    let text = |text: &str| Value::Text(text.to_owned());
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    writer = writer
        .entry("tokenizer.ggml.model", text(if sentencepiece { "llama" } else { "gpt2" }))
        .entry("tokenizer.ggml.tokens", Value::Texts(tokens))
        .entry("tokenizer.ggml.token_type", Value::Integers(kinds))
        .entry("tokenizer.ggml.bos_token_id", Value::Unsigned(1))
        .entry("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .entry("tokenizer.chat_template", text(TEMPLATE));
    if sentencepiece {
        return writer.entry("tokenizer.ggml.scores", Value::Floats(scores));
    }
    let merges = ["h e", "l l", "he ll", "hell o"].map(str::to_owned).to_vec();
    writer.entry("tokenizer.ggml.pre", text("smollm")).entry("tokenizer.ggml.merges", Value::Texts(merges))
}

/// GGUF files with a vocabulary: Llama models of zeros.
pub(crate) fn vocabularies() -> Vec<Sample> {
    let sample = |name, sentencepiece| {
        let bytes = with_vocabulary(tiny_llama(SourceDtype::Q4_0), sentencepiece).build();
        Sample { words: TEMPLATE_WORDS, ..Sample::new(name, Files::from([("model.gguf".to_owned(), bytes)])) }
    };
    vec![sample("byte-level", false), sample("SentencePiece", true)]
}

/// `tokenizer.json`, `tokenizer_config.json` and the template of the same vocabularies.
pub(crate) fn tokenizers() -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let of = |sample: Sample| {
        let path = folder.path().join("model.gguf");
        fs::write(&path, &sample.files["model.gguf"]).unwrap();
        let written = tokenizer_files(&Checkpoint::open(&path).unwrap()).unwrap();
        let mut files: Files =
            written.into_iter().map(|(name, value)| (name.to_owned(), value.to_string().into_bytes())).collect();
        files.insert("chat_template.jinja".to_owned(), TEMPLATE.into());
        Sample { words: TOKENIZER_WORDS, ..Sample::new(sample.name, files) }
    };
    vocabularies().into_iter().map(of).collect()
}

/// A Llama of one layer in FP32, wide enough for blocks of 256, with a vocabulary.
fn wide(folder: &Path) -> Checkpoint {
    let mut config = tiny_config();
    (config.layers, config.hidden, config.intermediate) = (1, 256, 256);
    (config.heads, config.kv_heads, config.head_dim, config.vocab) = (4, 1, 64, 264);
    let text = |text: &str| Value::Text(text.to_owned());
    let mut writer = GgufWriter::default()
        .entry("general.architecture", text("llama"))
        .entry("general.license", text("apache-2.0"))
        .entry("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5));
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
    writer = with_vocabulary(writer, false);
    for role in Role::all(&config) {
        let (rows, cols) = role.shape(&config);
        let shape = if role.is_vector() { vec![cols] } else { vec![rows, cols] };
        let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1000) as f32 / 1e4 - 0.05;
        let bytes = (0..rows * cols).flat_map(|i| value(i).to_le_bytes()).collect();
        writer = writer.tensor(&role.gguf_name(), &shape, SourceDtype::F32, bytes);
    }
    let path = folder.join("wide.gguf");
    fs::write(&path, writer.build()).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// Written by our exporter in every file type; the two old types that it does not write, by hand.
pub(crate) fn gguf_files() -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let wide = wide(folder.path());
    let (llama, qwen) = (open("llama3-tiny"), open("qwen3-tiny"));
    let mut samples = Vec::new();
    for (source, file_type) in [
        (&llama, FileType::F16),
        (&qwen, FileType::BF16),
        (&llama, FileType::Q8_0),
        (&qwen, FileType::Q4_0),
        (&llama, FileType::Q4_1),
        (&wide, FileType::Q6_K),
        (&wide, FileType::Q5_K_M),
        (&wide, FileType::Q4_K_M),
    ] {
        let path = folder.path().join("a.gguf");
        let options = gguf::Options { file_type, importance: None, threads: 1, requantize: false };
        gguf::export(source, &path, &options, &mut |_| {}).unwrap();
        let files = Files::from([("model.gguf".to_owned(), fs::read(&path).unwrap())]);
        samples.push(Sample::new(format!("{} {file_type:?}", source.name()), files));
    }
    for dtype in [SourceDtype::Q5_0, SourceDtype::Q5_1] {
        let files = Files::from([("model.gguf".to_owned(), tiny_llama(dtype).build())]);
        samples.push(Sample::new(dtype.name(), files));
    }
    samples
}

const CARD: &[u8] =
    b"---\nlicense: other\nlicense_name: acme-1\nlicense_link: https://acme.example/licence\nbase_model:\n- a/b\n\
    - meta-llama/Llama-3.1-8B\n---\n# A card\n";

/// Directories of values.
pub(crate) fn directories() -> Vec<Sample> {
    let of = |name: &str| {
        let mut files = files(&data(name));
        files.insert("README.md".to_owned(), CARD.to_vec());
        Sample { words: CONFIG_WORDS, ..Sample::new(name, files) }
    };
    CHECKPOINTS.into_iter().map(of).collect()
}

/// Directories of codes, in every layout: ours, ours exported, and those of other tools.
pub(crate) fn layouts() -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let sample = |name: String, path: &Path| {
        Sample { words: CONFIG_WORDS, ..Sample::new(name, files(path)) }.only(&["config.json", "safetensors"])
    };
    let mut samples: Vec<Sample> =
        FOREIGN.into_iter().map(|name| sample(name.to_owned(), &data("foreign").join(name))).collect();
    let wide = wide(folder.path());
    let (llama, mistral, qwen) = (open("llama3-tiny"), open("mistral-tiny"), open("qwen3-tiny"));
    let cases: [(&Checkpoint, WeightFormat, &[Layout]); 8] = [
        (&mistral, WeightFormat::Fp8, &[Layout::CompressedTensors, Layout::ModelOpt]),
        (&wide, WeightFormat::Fp8Tensor, &[Layout::CompressedTensors]),
        (&wide, WeightFormat::Fp8Block, &[Layout::CompressedTensors, Layout::ModelOpt]),
        (&mistral, WeightFormat::Int8, &[Layout::CompressedTensors]),
        (&llama, SYMMETRIC, &[Layout::CompressedTensors, Layout::Gptq, Layout::AutoAwq, Layout::ModelOpt]),
        (&qwen, INTEGER, &[Layout::CompressedTensors, Layout::Gptq, Layout::AutoAwq]),
        (&llama, WeightFormat::Q8_0, &[Layout::CompressedTensors, Layout::Gptq]),
        (&llama, MINIMUM, &[]),
    ];
    for (source, format, layouts) in cases {
        let artifact = Store::new(folder.path()).prepare(source, format, &mut |_| {}).unwrap();
        let own = Checkpoint::open(artifact.directory()).unwrap();
        if layouts.is_empty() {
            samples.push(sample(format!("own {format:?}"), artifact.directory()));
        }
        for (index, layout) in layouts.iter().enumerate() {
            let output = folder.path().join(format!("{}-{index}-{}", artifact.manifest().key, layout.name()));
            interchange::export(&own, *layout, &output, &mut |_| {}).unwrap();
            samples.push(sample(format!("{} {format:?}", layout.name()), &output));
        }
    }
    samples
}

/// Artifacts of one checkpoint in formats of every kind.
pub(crate) fn artifacts() -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let (source, store) = (open("llama3-tiny"), Store::new(folder.path()));
    let rounded = [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8, INTEGER, WeightFormat::Q8_0];
    let mut recipes: Vec<Recipe> = rounded.into_iter().map(Recipe::from).collect();
    recipes.push(Recipe { format: WeightFormat::Int8, method: Method::LlmInt8 });
    recipes.push(Recipe { format: WeightFormat::Fp8Static, method: Method::RoundToNearest });
    let sample = |recipe: Recipe| {
        let artifact =
            store.prepare_calibrated(&mut cpu(), 1, &source, recipe, Some(&calibration()), &mut |_| {}).unwrap();
        let sample = Sample::new(recipe.canonical(), files(artifact.directory()));
        Sample { seal: Some(seal_manifest), ..sample.only(&["manifest.json", "packed-cpu.bin"]) }
    };
    recipes.into_iter().map(sample).collect()
}

pub(crate) fn calibration() -> Calibration {
    let tokens: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(2_654_435_761) >> 25).collect();
    Calibration::new(&tokens, 64, 0).unwrap()
}

/// The recipes of [`journals`].
pub(crate) const BUILDS: [Recipe; 2] =
    [Recipe { format: INTEGER, method: Method::RoundToNearest }, Recipe { format: SYMMETRIC, method: Method::Gptq }];

/// Caches in which a build was cut off after its first layer; the index of the recipe is in a file beside them.
pub(crate) fn journals() -> Vec<Sample> {
    let source = open("llama3-tiny");
    let sample = |(index, recipe): (usize, Recipe)| {
        let folder = tempfile::tempdir().unwrap();
        let cut = std::panic::catch_unwind(|| {
            let stop = &mut |progress: modelprofile_engine::artifact::Progress| {
                assert!(!progress.activity.contains("layer 2"), "the build is cut off here");
            };
            let store = Store::new(folder.path());
            store.prepare_calibrated(&mut cpu(), 1, &source, recipe, Some(&calibration()), stop).map(drop)
        });
        assert!(cut.is_err(), "the build was not cut off");
        let mut files = files(folder.path());
        assert!(files.keys().any(|name| name.ends_with(".tmp/build.json")), "{:?}", files.keys());
        files.insert("recipe".to_owned(), vec![index as u8]);
        let sample = Sample::new(recipe.canonical(), files);
        Sample { consumed: true, ..sample.only(&["build.json", ".bin", ".safetensors"]) }
    };
    BUILDS.into_iter().enumerate().map(sample).collect()
}

/// Importance of a small model in both forms.
pub(crate) fn importances() -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let config = open("llama3-tiny").config().clone();
    let matrices = Role::all(&config).into_iter().filter(|role| !role.is_vector() && *role != Role::Embedding);
    let columns = matrices.map(|role| (role, (1..=role.shape(&config).1).map(|j| j as f32).collect()));
    let importance = Importance::new(columns.collect()).unwrap();
    let (new, old) = (folder.path().join("new"), folder.path().join("old"));
    importance.write(&new, 4096, "text").unwrap();
    importance.write_legacy(&old, 4096, "text").unwrap();
    [("GGUF", new), ("older", old)]
        .map(|(name, path)| Sample::new(name, Files::from([("imatrix".to_owned(), fs::read(path).unwrap())])))
        .into()
}

/// Puts the packed file's checksum and length into the manifest.
fn seal_manifest(all: &Files, changed: &mut Files) {
    let get = |name: &str, changed: &Files| changed.get(name).or(all.get(name)).cloned().unwrap_or_default();
    let packed = get("packed-cpu.bin", changed);
    let manifest = serde_json::from_slice(&get("manifest.json", changed));
    let Ok(serde_json::Value::Object(mut manifest)) = manifest else { return };
    manifest.insert("sha256".into(), sha256_hex(&packed).into());
    manifest.insert("bytes".into(), packed.len().into());
    changed.insert("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap());
}

const TEMPLATE_WORDS: &[&str] = &[
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ messages | tojson(indent=100000000) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '%s' | format(messages) }}",
    "{{ strftime_now('%Y%Q') }}",
    "{{ messages[0]['content'].split('')[-1] }}",
    "{% set ns = namespace(x=[]) %}",
    "{{ (1).__class__ }}",
    "{{ 9223372036854775807 * 9223372036854775807 }}",
    "{{ 1 // 0 }}",
    "{{ messages[0:9223372036854775807:-1] }}",
    "((((((((((((((((",
    "{%- if",
    "<|im_end|>",
    "gpt2",
    "llama",
    "qwen2",
];

const TOKENIZER_WORDS: &[&str] = &[
    r#"{"type": "FixedLength", "length": 0}"#,
    r#"{"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]}"#,
    r#"{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": true}"#,
    r#"{"type": "Split", "pattern": {"String": ""}, "behavior": "MergedWithNext", "invert": false}"#,
    r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}"#,
    r#"{"type": "Replace", "pattern": {"String": ""}, "content": "xx"}"#,
    r#"{"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"}"#,
    r#"{"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}"#,
    r#"{"type": "Prepend", "prepend": "x"}"#,
    r#"{"type": "Strip", "content": " ", "start": 18446744073709551615, "stop": 0}"#,
    r#"{"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]], "byte_fallback": true}"#,
    r#"{"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "", "max_input_chars_per_word": 0, "vocab": {}}"#,
    r#"{"type": "WordLevel", "unk_token": "?", "vocab": {"a": 4294967295}}"#,
    r#"{"type": "BPE", "dropout": 0.5, "unk_token": "?", "fuse_unk": true, "vocab": {}, "merges": []}"#,
    r#"{"strategy": {"Fixed": 18446744073709551615}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}"#,
    r#"{"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}"#,
    r#"{"type": "BertProcessing", "sep": ["a", 4294967295], "cls": ["b", 0]}"#,
    r#"{"id": 4294967295, "content": "x", "special": true, "single_word": true, "lstrip": true, "rstrip": true, "normalized": true}"#,
    r#"{"type": "ByteFallback"}"#,
    "{{ 'a' * 1000000000 }}",
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
];

const CONFIG_WORDS: &[&str] = &[
    r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
    r#"{"rope_type": "linear", "factor": 1e-320}"#,
    r#"{"rope_type": "modelprofile-factors", "factors": [1, 1, 1, 1, 1, 1, 1, 1]}"#,
    r#"{"rope_type": "default"}"#,
    r#"["sliding_attention", "full_attention"]"#,
    r#""128x128""#,
    "[128, 128]",
    "[1, 1]",
    "[65536, 65536]",
    r#""tensor""#,
    r#""channel""#,
    r#""group""#,
    r#""block""#,
    r#""pack-quantized""#,
    r#""float-quantized""#,
    r#""int-quantized""#,
    r#""compressed-tensors""#,
    r#""gptq""#,
    r#""gptq_v2""#,
    r#""awq""#,
    r#""modelopt""#,
    r#""FP8""#,
    r#""FP8_PB_WO""#,
    r#""W4A16_AWQ""#,
    r#""F8_E4M3""#,
    r#""I32""#,
    r#""U8""#,
    "[0]",
    "[18446744073709551615, 2]",
    "[4611686018427387904, 4]",
];
