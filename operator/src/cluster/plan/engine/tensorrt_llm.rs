//! TensorRT-LLM: `trtllm-serve`, with its PyTorch backend.
//!
//! It reads from the checkpoint how it was quantized, and quantizes nothing itself: no flag names a weight format.

use modelprofile_api::{KvCacheFormat, Method, Profile, WeightFormat};

use super::checkpoint::{self, Loads, check_ladder};
use super::{CONFIG, HTTP, Launch, Probes, Refused, Subject, args, python_env};

/// Name of the file with options that have no flag.
const OPTIONS: &str = "tensorrt-llm.yaml";

/// The file, by name: without these it exports no metrics.
pub(super) fn options() -> (String, String) {
    (OPTIONS.to_owned(), "return_perf_metrics: true\nenable_iter_perf_stats: true\n".to_owned())
}

pub(super) fn launches(subjects: &[Subject<'_>], refused: &mut Refused) -> Vec<Launch> {
    if let Some(subject) = subjects.first()
        && subject.spec().placement.accelerator_resource.is_none()
    {
        refused.add(
            "spec.placement.acceleratorResource",
            "required with TensorRTLLM, which does not run on CPUs; write nvidia.com/gpu, or another engine",
        );
    }
    check_ladder(subjects, |profile| source(profile).to_owned(), refused);
    subjects.iter().map(|subject| launch(subject, refused)).collect()
}

fn source(profile: &Profile) -> &'static str {
    match profile.weights.format {
        WeightFormat::Fp8 => "an FP8 checkpoint",
        WeightFormat::Int4 => "an INT4 checkpoint",
        _ => "a 16-bit checkpoint",
    }
}

fn launch(subject: &Subject<'_>, refused: &mut Refused) -> Launch {
    let image = subject.image("--tensorrt-llm-image", subject.options.images.tensorrt_llm.as_ref(), refused);
    let path = checkpoint::path(subject, Loads::Directory, refused);
    weights(subject, refused);
    let mut arguments = args([&path, "--backend", "pytorch", "--host", "0.0.0.0", "--port", &HTTP.1.to_string()]);
    arguments.extend(args(["--served_model_name", &subject.served_name()]));
    arguments.extend(args(["--tp_size", &subject.profile().tensor_parallel.to_string()]));
    if let Some(dtype) = kv_cache(subject, refused) {
        arguments.extend(args(["--kv_cache_dtype", dtype]));
    }
    if let Some(tokens) = subject.max_context() {
        arguments.extend(args(["--max_seq_len", &tokens.to_string()]));
    }
    arguments.extend(args(["--extra_llm_api_options", &format!("{CONFIG}/{OPTIONS}")]));
    arguments.extend(subject.spec().engine.args.iter().cloned());
    Launch {
        image,
        command: args(["trtllm-serve"]),
        args: arguments,
        env: python_env(),
        ports: vec![HTTP],
        probes: Probes { port: HTTP.0, live: "/health", ready: "/health", start_seconds: 3600 },
        linger_seconds: 60,
    }
}

fn weights(subject: &Subject<'_>, refused: &mut Refused) {
    let weights = &subject.profile().weights;
    match (weights.format, weights.method) {
        (WeightFormat::Bf16 | WeightFormat::Fp16 | WeightFormat::Fp8, _) | (WeightFormat::Int4, Method::Awq) => {}
        (WeightFormat::Int4, _) => refused.add(
            subject.path("weights.method"),
            "TensorRTLLM loads INT4 checkpoints of AWQ only; write AWQ, with a checkpoint that ModelOpt made",
        ),
        (WeightFormat::Int8, _) => {
            subject.refuse_format("its PyTorch backend has no INT8 weights", "write FP8, which has its size", refused);
        }
        _ => subject.refuse_format("it reads no GGUF files", "write FP8 or INT4, or the engine LlamaCpp", refused),
    }
}

fn kv_cache(subject: &Subject<'_>, refused: &mut Refused) -> Option<&'static str> {
    match subject.profile().kv_cache.format {
        // That of the checkpoint.
        KvCacheFormat::Bf16 | KvCacheFormat::Fp16 => None,
        KvCacheFormat::Fp8E4m3 => Some("fp8"),
        KvCacheFormat::Fp8E5m2 => {
            subject.refuse_kv("its FP8 cache is E4M3", "write FP8E4M3", refused);
            None
        }
    }
}
