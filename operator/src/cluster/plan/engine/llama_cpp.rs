//! llama.cpp: `llama-server`, the entry point of its server images.

use std::collections::BTreeMap;

use modelprofile_api::{KvCacheFormat, WeightFormat};

use super::checkpoint::{self, Loads, check_ladder};
use super::{HTTP, Launch, Probes, Refused, Subject, args};

/// Requests that are computed at once; each has a share of the cache as large as the longest request. `-np` and `-c` in
/// `spec.engine.args` change both.
const SLOTS: u32 = 8;

pub(super) fn launches(subjects: &[Subject<'_>], refused: &mut Refused) -> Vec<Launch> {
    check_ladder(subjects, |profile| format!("a {} file", profile.weights.format.as_str()), refused);
    if let Some(subject) = subjects.first()
        && subject.max_context().is_none()
    {
        refused.add(
            "spec.model.maxContextTokens",
            format!(
                "required with LlamaCpp, whose cache is {SLOTS} times as large; write the longest request in tokens"
            ),
        );
    }
    subjects.iter().map(|subject| launch(subject, refused)).collect()
}

fn launch(subject: &Subject<'_>, refused: &mut Refused) -> Launch {
    let image = subject.image("--llama-cpp-image", subject.options.images.llama_cpp.as_ref(), refused);
    let path = checkpoint::path(subject, Loads::File, refused);
    weights(subject, refused);
    let kv = kv_cache(subject, refused);
    let cells = subject.max_context().unwrap_or_default().saturating_mul(SLOTS).to_string();
    let mut arguments = args(["-m", &path, "--alias", &subject.served_name()]);
    arguments.extend(args(["--host", "0.0.0.0", "--port", &HTTP.1.to_string(), "--metrics"]));
    arguments.extend(args(["-np", &SLOTS.to_string(), "-c", &cells, "--cache-type-k", kv, "--cache-type-v", kv]));
    if subject.spec().placement.accelerator_resource.is_some() {
        // All layers: more than any model has.
        arguments.extend(args(["--n-gpu-layers", "999"]));
    }
    if subject.profile().tensor_parallel > 1 {
        arguments.extend(args(["--split-mode", "row"]));
    }
    arguments.extend(subject.spec().engine.args.iter().cloned());
    Launch {
        image,
        command: Vec::new(),
        args: arguments,
        env: BTreeMap::from([("HOME", "/tmp".to_owned())]),
        ports: vec![HTTP],
        // 503 while it loads.
        probes: Probes { port: HTTP.0, live: "/health", ready: "/health", start_seconds: 3600 },
        linger_seconds: 60,
    }
}

fn weights(subject: &Subject<'_>, refused: &mut Refused) {
    let instead = match subject.profile().weights.format {
        WeightFormat::Fp8 | WeightFormat::Int8 => "write Q8_0, which has its size",
        WeightFormat::Int4 => "write Q4_K_M, or Q4_1 or Q4_0",
        _ => return,
    };
    subject.refuse_format("it loads GGUF files", instead, refused);
}

fn kv_cache(subject: &Subject<'_>, refused: &mut Refused) -> &'static str {
    match subject.profile().kv_cache.format {
        KvCacheFormat::Bf16 => "bf16",
        KvCacheFormat::Fp16 => "f16",
        KvCacheFormat::Fp8E4m3 | KvCacheFormat::Fp8E5m2 => {
            let instead =
                "write FP16, and for half of its size `--cache-type-k q8_0 --cache-type-v q8_0` in spec.engine.args";
            subject.refuse_kv("it has no FP8", instead, refused);
            "f16"
        }
    }
}
