//! What the engine's integration tests share: the real model, an engine on it, a request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod gate;

use std::path::{Path, PathBuf};

use modelprofile_engine::{
    FinishReason, GenerateRequest, Method, ProfileSpec, SamplingParams, TokenEvent, WeightFormat,
    checkpoint::Checkpoint,
    serve::{Engine, EngineConfig, EngineHandle, Observation, Observer, TokenStream, start},
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions},
};

/// The model of the golden values; `make model` puts it there.
pub(crate) fn smollm2() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct-Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `make model` first", path.display());
    Checkpoint::open(&path).unwrap()
}

/// Artifacts of the tests, kept between runs: a second run finds them.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("artifacts")
}

pub(crate) fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: GroupedActivations::Int8 }).unwrap()
}

pub(crate) fn profile(name: &str, weights: WeightFormat) -> ProfileSpec {
    ProfileSpec { name: name.into(), weights, method: Method::RoundToNearest, kv: KvFormat::Bf16 }
}

pub(crate) fn config(profiles: Vec<ProfileSpec>, budget_mib: u64) -> EngineConfig {
    EngineConfig {
        cache: cache(),
        threads: 2,
        profiles,
        start: None,
        memory_budget: budget_mib << 20,
        max_context_tokens: Some(1024),
        calibration: Vec::new(),
        max_batched_tokens: 256,
        max_running: 32,
        max_waiting: 64,
    }
}

pub(crate) struct Ignore;
impl Observer for Ignore {
    fn observe(&mut self, _: Observation) {}
}

pub(crate) fn engine(checkpoint: &Checkpoint, config: &EngineConfig) -> EngineHandle {
    start(cpu(), checkpoint, config, Box::new(Ignore), &mut |_, _| {}).unwrap()
}

pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        prompt_logprobs: None,
    }
}

/// All tokens of a request that must end by itself.
pub(crate) fn tokens(stream: &mut TokenStream) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        match stream.blocking_next() {
            Some(TokenEvent::Token { token, .. }) => tokens.push(token),
            Some(TokenEvent::Finished { reason, error, .. }) => {
                assert_ne!(reason, FinishReason::Error, "{error:?}");
                return tokens;
            }
            Some(TokenEvent::Prompt(_)) => {}
            None => panic!("the engine died"),
        }
    }
}

pub(crate) fn generate(engine: &EngineHandle, prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    tokens(&mut engine.submit(greedy(prompt, max_tokens)).unwrap())
}
