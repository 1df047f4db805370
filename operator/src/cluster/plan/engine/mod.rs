//! How each engine is started for a profile, and what it can not do.
//!
//! | module | what it holds |
//! |---|---|
//! | `native` | this project's worker: changes profile in place, quantizes by itself |
//! | `vllm`, `tensorrt_llm`, `llama_cpp` | other engines: one profile for all of a pod's life |
//! | `checkpoint` | where the other engines find the files of a profile |
//!
//! What an engine can not do is refused with the reason and what to write instead: never started to fail, never ignored. Flags
//! stand in the order in which a person would write them; `spec.engine.args` come last, so that they win where the engine lets
//! a later one win.

mod checkpoint;
mod llama_cpp;
mod native;
mod tensorrt_llm;
mod vllm;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use modelprofile_api::{EngineType, FieldError, Manifest, ModelProfileSpec, OnFailure, Profile};

use super::facts::Options;
use super::names::Owner;

pub use checkpoint::{CACHE, VOLUMES};
pub(super) use checkpoint::{is_fetched, is_kept};
pub(super) use native::{admin, places, preparing, start_file};

/// Where the ConfigMap is mounted.
pub const CONFIG: &str = "/etc/modelprofile";
/// Where the Secret with API keys is mounted.
pub const KEYS: &str = "/etc/modelprofile-keys";
/// Name and number of the port of the OpenAI API.
pub const HTTP: (&str, i32) = ("http", 8000);
/// Name and number of the port of the admin API of this project's worker.
pub const ADMIN: (&str, i32) = ("admin", 8001);

/// All that is special about the container that serves a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its image.
    pub image: String,
    /// The program. Empty: the image's own entry point.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside what the manifest sets.
    pub env: BTreeMap<&'static str, String>,
    /// Its ports, by name.
    pub ports: Vec<(&'static str, i32)>,
    /// How its health is asked for.
    pub probes: Probes,
    /// Seconds between the moment when a pod is asked to go and the moment when its process is told. It leaves the endpoints
    /// meanwhile; an engine that does not finish its requests by itself gets the time to.
    pub linger_seconds: i64,
}

/// Paths of the health checks, all on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// Name of the port.
    pub port: &'static str,
    /// The process is not beyond help.
    pub live: &'static str,
    /// It takes requests.
    pub ready: &'static str,
    /// How long the first success of `live` may take: for engines that answer nothing before the model is loaded, that long.
    pub start_seconds: i32,
}

/// Where the metrics of an engine's pod are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the port.
    pub port: i32,
    /// Path.
    pub path: &'static str,
}

/// Where metrics are. Which of them is which signal, the policy's `Signals::of` says.
pub const fn metrics(engine: EngineType) -> Endpoint {
    match engine {
        EngineType::Native => Endpoint { port: ADMIN.1, path: "/metrics" },
        EngineType::Vllm | EngineType::LlamaCpp => Endpoint { port: HTTP.1, path: "/metrics" },
        // `/metrics` of this engine is JSON.
        EngineType::TensorRtLlm => Endpoint { port: HTTP.1, path: "/prometheus/metrics" },
    }
}

/// Where it is seen that an engine has loaded its model.
pub const fn health(engine: EngineType) -> Endpoint {
    match engine {
        EngineType::Native => Endpoint { port: ADMIN.1, path: "/readyz" },
        EngineType::Vllm | EngineType::LlamaCpp | EngineType::TensorRtLlm => Endpoint { port: HTTP.1, path: "/health" },
    }
}

/// Files of the ConfigMap that an engine reads, by name. This project's worker has its own.
pub fn files(engine: EngineType) -> BTreeMap<String, String> {
    match engine {
        EngineType::TensorRtLlm => [tensorrt_llm::options()].into(),
        EngineType::Native | EngineType::Vllm | EngineType::LlamaCpp => BTreeMap::new(),
    }
}

/// How every profile of the ladder is started, in the ladder's order.
///
/// # Errors
/// Everything that the engine can not do.
pub fn launches(owner: &Owner, manifest: &Manifest, options: &Options) -> Result<Vec<Launch>, Vec<FieldError>> {
    let mut refused = Refused::default();
    let subjects =
        (0..manifest.spec.profiles.len()).map(|index| Subject { owner, manifest, options, index }).collect::<Vec<_>>();
    let engine = manifest.spec.engine.kind;
    if engine != EngineType::Native {
        foreign(manifest, &mut refused);
    }
    shared(manifest, &mut refused);
    let launches = match engine {
        EngineType::Native => native::launches(&subjects, &mut refused),
        EngineType::Vllm => vllm::launches(&subjects, &mut refused),
        EngineType::TensorRtLlm => tensorrt_llm::launches(&subjects, &mut refused),
        EngineType::LlamaCpp => llama_cpp::launches(&subjects, &mut refused),
    };
    if refused.0.is_empty() { Ok(launches) } else { Err(refused.0) }
}

/// What no engine but this project's does.
fn foreign(manifest: &Manifest, refused: &mut Refused) {
    let spec = &manifest.spec;
    let engine = spec.engine.kind.as_str();
    if spec.placement.memory_budget.is_some() {
        let instead = match spec.engine.kind {
            EngineType::Vllm => "remove it, and give `--gpu-memory-utilization` in spec.engine.args",
            EngineType::TensorRtLlm => "remove it, and give `--kv_cache_free_gpu_memory_fraction` in spec.engine.args",
            EngineType::LlamaCpp | EngineType::Native => "remove it: maxContextTokens says how large the cache is",
        };
        refused.add("spec.placement.memoryBudget", format!("{engine} takes no amount of memory; {instead}"));
    }
    if spec.api_keys_secret_ref.is_some() {
        let instead = match spec.engine.kind {
            EngineType::Vllm => "remove it, and give VLLM_API_KEY in spec.engine.env with a secretKeyRef",
            EngineType::LlamaCpp => "remove it, and give LLAMA_API_KEY in spec.engine.env with a secretKeyRef",
            EngineType::TensorRtLlm | EngineType::Native => "remove it, and let a gateway in front of it ask for keys",
        };
        refused.add("spec.apiKeysSecretRef", format!("{engine} does not read keys from a folder; {instead}"));
    }
    if spec.quality.on_failure == OnFailure::Block {
        let message = format!(
            "{engine} serves files that others have quantized, whose quality nobody measures here, so Block would never let \
             it serve; write Warn once you have measured them yourself"
        );
        refused.add("spec.quality.onFailure", message);
    }
}

/// Models that are to be shared by accelerators of which there are none.
fn shared(manifest: &Manifest, refused: &mut Refused) {
    let spec = &manifest.spec;
    if spec.placement.accelerator_resource.is_none() {
        for (index, profile) in spec.profiles.iter().enumerate().filter(|(_, profile)| profile.tensor_parallel > 1) {
            refused.add(
                format!("spec.profiles[{index}].tensorParallel"),
                format!(
                    "is {}, but there are no accelerators to share the model; write 1, or name their resource in \
                     spec.placement.acceleratorResource",
                    profile.tensor_parallel
                ),
            );
        }
    }
}

/// What can not be done, each with what to write instead.
#[derive(Default)]
struct Refused(Vec<FieldError>);

impl Refused {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError::new(path, message));
    }
}

/// One profile of a manifest, to be started.
#[derive(Clone, Copy)]
struct Subject<'a> {
    owner: &'a Owner,
    manifest: &'a Manifest,
    options: &'a Options,
    index: usize,
}

impl<'a> Subject<'a> {
    fn spec(&self) -> &'a ModelProfileSpec {
        &self.manifest.spec
    }

    fn profile(&self) -> &'a Profile {
        &self.manifest.spec.profiles[self.index]
    }

    /// Path of a field of the profile.
    fn path(&self, field: &str) -> String {
        format!("spec.profiles[{}].{field}", self.index)
    }

    fn served_name(&self) -> String {
        self.manifest.served_name().to_owned()
    }

    fn max_context(&self) -> Option<u32> {
        self.spec().model.max_context_tokens
    }

    /// The manifest's image, else the one that a flag of the operator names; refused once, not per profile.
    fn image(&self, flag: &str, default: Option<&String>, refused: &mut Refused) -> String {
        let Some(image) = self.spec().engine.image.as_ref().or(default) else {
            if self.index == 0 {
                let engine = self.spec().engine.kind.as_str();
                let message = format!(
                    "required: this operator names no image for {engine}; write one, or start the operator with {flag}"
                );
                refused.add("spec.engine.image", message);
            }
            return String::new();
        };
        image.clone()
    }

    /// Refuses the weight format.
    fn refuse_format(&self, why: &str, instead: &str, refused: &mut Refused) {
        let (engine, format) = (self.spec().engine.kind.as_str(), self.profile().weights.format.as_str());
        refused.add(self.path("weights.format"), format!("{engine} can not serve {format}: {why}; {instead}"));
    }

    /// Refuses the format of the KV cache.
    fn refuse_kv(&self, why: &str, instead: &str, refused: &mut Refused) {
        let (engine, format) = (self.spec().engine.kind.as_str(), self.profile().kv_cache.format.as_str());
        refused.add(self.path("kvCache.format"), format!("{engine} can not keep {format}: {why}; {instead}"));
    }
}

/// Where an engine that is written in Python may write, and who it is: its root file system is read-only, and its user is in no
/// list of users, which some of its libraries look it up in.
fn python_env() -> BTreeMap<&'static str, String> {
    [("HOME", "/tmp"), ("USER", "modelprofile"), ("XDG_CACHE_HOME", "/tmp/.cache")]
        .into_iter()
        .chain(checkpoint::HUB_ENV)
        .map(|(name, value)| (name, value.to_owned()))
        .collect()
}

/// A list of arguments out of flags and their values.
fn args<const N: usize>(parts: [&str; N]) -> Vec<String> {
    parts.map(str::to_owned).to_vec()
}
