//! vLLM: `vllm serve`.
//!
//! Out of one 16-bit checkpoint it serves BF16, FP16, and FP8, to which it rounds while it loads. Everything else it loads as
//! it was quantized by others; our own worker writes such checkpoints with `export hub`.

use modelprofile_api::{KvCacheFormat, Method, Profile, WeightFormat, ZeroPoint};

use super::checkpoint::{self, Loads, check_ladder, is_per_profile};
use super::{HTTP, Launch, Probes, Refused, Subject, args, python_env};

pub(super) fn launches(subjects: &[Subject<'_>], refused: &mut Refused) -> Vec<Launch> {
    check_ladder(subjects, |profile| source(profile).to_owned(), refused);
    subjects.iter().map(|subject| launch(subject, refused)).collect()
}

/// What a profile is loaded from, where all share one checkpoint.
fn source(profile: &Profile) -> &'static str {
    match (profile.weights.format, profile.weights.method) {
        (WeightFormat::Int4, Method::Awq) => "an AWQ checkpoint",
        (WeightFormat::Int4, _) => "an INT4 checkpoint",
        (WeightFormat::Int8, _) => "an INT8 checkpoint",
        _ => "a 16-bit checkpoint",
    }
}

fn launch(subject: &Subject<'_>, refused: &mut Refused) -> Launch {
    let image = subject.image("--vllm-image", subject.options.images.vllm.as_ref(), refused);
    let path = checkpoint::path(subject, Loads::Directory, refused);
    let profile = subject.profile();
    let mut arguments = args([&path, "--host", "0.0.0.0", "--port", &HTTP.1.to_string()]);
    arguments.extend(args(["--served-model-name", &subject.served_name()]));
    if let Some(quantization) = quantization(subject, refused) {
        arguments.extend(args(["--quantization", quantization]));
    }
    if let Some(dtype) = dtype(subject, refused) {
        arguments.extend(args(["--dtype", dtype]));
    }
    arguments.extend(args(["--kv-cache-dtype", kv_cache(subject, refused)]));
    arguments.extend(args(["--tensor-parallel-size", &profile.tensor_parallel.to_string()]));
    if let Some(tokens) = subject.max_context() {
        arguments.extend(args(["--max-model-len", &tokens.to_string()]));
    }
    arguments.extend(subject.spec().engine.args.iter().cloned());
    Launch {
        image,
        command: args(["vllm", "serve"]),
        args: arguments,
        env: python_env(),
        ports: vec![HTTP],
        // It answers when the model is loaded, compiled and captured, which takes many minutes the first time.
        probes: Probes { port: HTTP.0, live: "/health", ready: "/health", start_seconds: 3600 },
        linger_seconds: 60,
    }
}

fn quantization(subject: &Subject<'_>, refused: &mut Refused) -> Option<&'static str> {
    let weights = &subject.profile().weights;
    if weights.zero_point == Some(ZeroPoint::Minimum) {
        refused.add(
            subject.path("weights.zeroPoint"),
            "VLLM has no kernel for free minimums; write Symmetric or Integer, as the checkpoint has it",
        );
    }
    match (weights.format, weights.method) {
        (WeightFormat::Bf16 | WeightFormat::Fp16, _) => None,
        // A 16-bit checkpoint is rounded while it loads. One that holds FP8 says so itself, in this layout.
        (WeightFormat::Fp8, _) if !is_per_profile(&subject.spec().model.uri) => Some("fp8"),
        (WeightFormat::Int8, Method::LlmInt8) => {
            refused.add(
                subject.path("weights.method"),
                "VLLM loads no checkpoint of LLMInt8; write SmoothQuant, GPTQ or RoundToNearest, as it was made",
            );
            None
        }
        (WeightFormat::Int4, Method::Awq) => Some("awq"),
        (WeightFormat::Fp8 | WeightFormat::Int8 | WeightFormat::Int4, _) => Some("compressed-tensors"),
        _ => {
            let instead = "write FP8, INT8 or INT4, or the engine LlamaCpp";
            subject.refuse_format("it reads GGUF files experimentally and slowly", instead, refused);
            None
        }
    }
}

/// The 16-bit format that it computes in, where the profile says one: without FP8, keys and values have it, too.
fn dtype(subject: &Subject<'_>, refused: &mut Refused) -> Option<&'static str> {
    let profile = subject.profile();
    let weights = match profile.weights.format {
        WeightFormat::Bf16 => Some("bfloat16"),
        WeightFormat::Fp16 => Some("float16"),
        _ => None,
    };
    let kv = match profile.kv_cache.format {
        KvCacheFormat::Bf16 => Some("bfloat16"),
        KvCacheFormat::Fp16 => Some("float16"),
        KvCacheFormat::Fp8E4m3 | KvCacheFormat::Fp8E5m2 => None,
    };
    if let (Some(weights), Some(kv)) = (weights, kv)
        && weights != kv
    {
        let instead = format!("write {} or FP8E4M3", profile.weights.format.as_str());
        subject.refuse_kv("16-bit keys and values have the format of the weights", &instead, refused);
    }
    weights.or(kv)
}

fn kv_cache(subject: &Subject<'_>, refused: &mut Refused) -> &'static str {
    match subject.profile().kv_cache.format {
        KvCacheFormat::Bf16 | KvCacheFormat::Fp16 => "auto",
        KvCacheFormat::Fp8E4m3 => "fp8",
        KvCacheFormat::Fp8E5m2 => {
            if subject.profile().weights.format == WeightFormat::Fp8 {
                subject.refuse_kv("with FP8 weights it keeps E4M3 only", "write FP8E4M3", refused);
            }
            "fp8_e5m2"
        }
    }
}
