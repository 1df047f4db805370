//! The pods: what is common to those that serve and those that prepare, and the template of those that serve.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, HostPathVolumeSource, Lifecycle, LifecycleHandler, LocalObjectReference,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretKeySelector, SecretVolumeSource, SecurityContext, SleepAction, Toleration, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use modelprofile_api::{EngineType, ModelUri, Profile, SecretKeyRef, TaintEffect, TolerationOperator};

use super::engine::{CACHE, CONFIG, KEYS, Launch, Probes, VOLUMES};
use super::facts::Options;
use super::names::Set;
use super::shape::Shape;
use super::valid::Valid;

/// User and group of every process: of nobody, and the same in all images.
const USER: i64 = 65_532;
/// Seconds until a pod that was asked to go is killed: linger, drain, and some to spare.
const GRACE: i64 = 120;
/// Name of the container that serves.
pub const CONTAINER: &str = "worker";

/// The template of a set's pods.
pub fn template(valid: &Valid, set: &Set, profile: &str, shape: &Shape, options: &Options) -> PodTemplateSpec {
    let (profile, launch) = valid.rung(profile);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(set.labels(valid.owner())),
            annotations: shape.annotations(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container(valid, profile, launch, shape, options)],
            runtime_class_name: valid.spec().placement.runtime_class_name.clone().filter(|name| !name.is_empty()),
            termination_grace_period_seconds: Some(GRACE),
            volumes: Some(volumes(valid, profile.tensor_parallel > 1)),
            ..base(valid)
        }),
    }
}

fn container(valid: &Valid, profile: &Profile, launch: &Launch, shape: &Shape, options: &Options) -> Container {
    let Probes { port, live, ready, start_seconds } = launch.probes;
    let probe = |path: &str, period: i32, failures: i32| {
        Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String(port.to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period),
            timeout_seconds: Some(5),
            failure_threshold: Some(failures),
            ..Probe::default()
        })
    };
    let ports = launch.ports.iter().map(|(name, number)| ContainerPort {
        name: Some((*name).to_owned()),
        container_port: *number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    });
    Container {
        name: CONTAINER.to_owned(),
        image: Some(launch.image.clone()),
        image_pull_policy: options.image_pull_policy.clone(),
        command: Some(launch.command.clone()).filter(|command| !command.is_empty()),
        args: Some(launch.args.clone()),
        env: env(valid, &launch.env),
        ports: Some(ports.collect()),
        startup_probe: probe(live, 2, start_seconds / 2),
        // A step of a long prompt may keep a worker busy for a while; what is beyond help for a minute is started again.
        liveness_probe: probe(live, 10, 6),
        readiness_probe: probe(ready, 2, 2),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: launch.linger_seconds }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: resources(valid, profile, shape.host_memory),
        security_context: Some(locked()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts(valid, profile.tensor_parallel > 1)),
        ..Container::default()
    }
}

/// What pods that serve and pods that prepare have in common.
pub(super) fn base(valid: &Valid) -> PodSpec {
    let spec = valid.spec();
    let secrets: Vec<_> = spec
        .engine
        .image_pull_secrets
        .iter()
        .map(|secret| LocalObjectReference { name: secret.name.clone() })
        .collect();
    let tolerations: Vec<_> = spec.placement.tolerations.iter().map(toleration).collect();
    PodSpec {
        affinity: valid.affinity().cloned(),
        automount_service_account_token: Some(false),
        // Variables named after Services of the namespace would be taken for options: a Service `vllm` makes a VLLM_PORT.
        enable_service_links: Some(false),
        image_pull_secrets: some(secrets),
        node_selector: Some(spec.placement.node_selector.clone()).filter(|labels| !labels.is_empty()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        tolerations: some(tolerations),
        ..PodSpec::default()
    }
}

/// What every container runs with.
pub(super) fn locked() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// The environment: the engine's, the hub's token, and the manifest's, which wins over both.
pub(super) fn env(valid: &Valid, engine: &BTreeMap<&'static str, String>) -> Option<Vec<EnvVar>> {
    let spec = valid.spec();
    let mut all: Vec<EnvVar> = engine
        .iter()
        .map(|(name, value)| EnvVar { name: (*name).to_owned(), value: Some(value.clone()), value_from: None })
        .collect();
    if let Some(secret) = &spec.model.token_secret_ref {
        all.push(EnvVar { name: "HF_TOKEN".to_owned(), value: None, value_from: Some(from_secret(secret)) });
    }
    for variable in &spec.engine.env {
        all.retain(|other| other.name != variable.name);
        all.push(EnvVar {
            name: variable.name.clone(),
            value: variable.value.clone(),
            value_from: variable.secret_key_ref.as_ref().map(from_secret),
        });
    }
    some(all)
}

fn from_secret(secret: &SecretKeyRef) -> EnvVarSource {
    EnvVarSource {
        secret_key_ref: Some(SecretKeySelector { name: secret.name.clone(), key: secret.key.clone(), optional: None }),
        ..EnvVarSource::default()
    }
}

/// What a container that serves asks for: the manifest's amounts, its accelerators, and memory unless the manifest says how
/// much.
fn resources(valid: &Valid, profile: &Profile, host_memory: Option<u64>) -> Option<ResourceRequirements> {
    let placement = &valid.spec().placement;
    let (mut requests, mut limits) = amounts(valid);
    let memory = match &placement.accelerator_resource {
        Some(_) => host_memory.map(|bytes| bytes.to_string()),
        None if valid.spec().engine.kind == EngineType::Native => {
            placement.memory_budget.as_ref().map(|budget| budget.0.clone())
        }
        None => None,
    };
    if let Some(memory) = memory
        && !says_memory(valid)
    {
        requests.insert("memory".to_owned(), Quantity(memory));
    }
    if let Some(resource) = &placement.accelerator_resource {
        let count = Quantity(profile.tensor_parallel.to_string());
        requests.insert(resource.clone(), count.clone());
        limits.insert(resource.clone(), count);
    }
    requirements(requests, limits)
}

/// Whether the manifest says how much memory to ask for.
pub(super) fn says_memory(valid: &Valid) -> bool {
    let resources = &valid.spec().placement.resources;
    [&resources.requests, &resources.limits].iter().any(|amounts| amounts.contains_key("memory"))
}

type Amounts = BTreeMap<String, Quantity>;

/// The manifest's requests and limits.
pub(super) fn amounts(valid: &Valid) -> (Amounts, Amounts) {
    let resources = &valid.spec().placement.resources;
    let convert = |amounts: &BTreeMap<String, modelprofile_api::Quantity>| {
        amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.0.clone()))).collect()
    };
    (convert(&resources.requests), convert(&resources.limits))
}

pub(super) fn requirements(requests: Amounts, limits: Amounts) -> Option<ResourceRequirements> {
    let some = |amounts: Amounts| Some(amounts).filter(|amounts| !amounts.is_empty());
    let all = ResourceRequirements { claims: None, requests: some(requests), limits: some(limits) };
    (all != ResourceRequirements::default()).then_some(all)
}

/// Claims of `pvc://` URIs.
fn claims(valid: &Valid) -> BTreeSet<String> {
    let spec = valid.spec();
    let uris = [Some(&spec.model.uri), spec.quality.dataset.as_ref().map(|dataset| &dataset.uri)];
    let claims = uris.into_iter().flatten().filter_map(|uri| match ModelUri::parse(uri) {
        Ok(ModelUri::PersistentVolumeClaim { claim, .. }) => Some(claim),
        _ => None,
    });
    claims.collect()
}

/// Volumes of a pod. `shared_memory` is what processes on several accelerators talk through.
pub(super) fn volumes(valid: &Valid, shared_memory: bool) -> Vec<Volume> {
    let spec = valid.spec();
    let named = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let claim = |claim: &String| Some(PersistentVolumeClaimVolumeSource { claim_name: claim.clone(), read_only: None });
    let cache = match (&spec.cache.persistent_volume_claim, &spec.cache.host_path) {
        (Some(name), _) => Volume { persistent_volume_claim: claim(name), ..named("cache") },
        // One that the node made by itself would be root's, and nobody here could write to it.
        (None, Some(path)) => Volume {
            host_path: Some(HostPathVolumeSource { path: path.clone(), type_: Some("Directory".to_owned()) }),
            ..named("cache")
        },
        (None, None) => {
            let limit = spec.cache.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref());
            let size_limit = limit.map(|limit| Quantity(limit.0.clone()));
            Volume {
                empty_dir: Some(EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() }),
                ..named("cache")
            }
        }
    };
    let config = ConfigMapVolumeSource { name: valid.owner().config_map(), ..ConfigMapVolumeSource::default() };
    let mut all = vec![
        cache,
        Volume { config_map: Some(config), ..named("config") },
        Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named("tmp") },
    ];
    if shared_memory {
        let memory = EmptyDirVolumeSource { medium: Some("Memory".to_owned()), ..EmptyDirVolumeSource::default() };
        all.push(Volume { empty_dir: Some(memory), ..named("shm") });
    }
    if let Some(secret) = &spec.api_keys_secret_ref {
        let source = SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            // Owner and group: that of the pod.
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        };
        all.push(Volume { secret: Some(source), ..named("keys") });
    }
    for (index, name) in claims(valid).iter().enumerate() {
        if spec.cache.persistent_volume_claim.as_ref() != Some(name) {
            all.push(Volume { persistent_volume_claim: claim(name), ..named(&format!("volume-{index}")) });
        }
    }
    all
}

/// Where they are mounted.
pub(super) fn mounts(valid: &Valid, shared_memory: bool) -> Vec<VolumeMount> {
    let spec = valid.spec();
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut all = vec![mount("cache", CACHE, false), mount("config", CONFIG, true), mount("tmp", "/tmp", false)];
    if shared_memory {
        all.push(mount("shm", "/dev/shm", false));
    }
    if spec.api_keys_secret_ref.is_some() {
        all.push(mount("keys", KEYS, true));
    }
    for (index, name) in claims(valid).iter().enumerate() {
        let is_cache = spec.cache.persistent_volume_claim.as_ref() == Some(name);
        let volume = if is_cache { "cache".to_owned() } else { format!("volume-{index}") };
        all.push(mount(&volume, &format!("{VOLUMES}/{name}"), true));
    }
    all
}

fn toleration(toleration: &modelprofile_api::Toleration) -> Toleration {
    let operator = match toleration.operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    };
    let effect = toleration.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    Toleration {
        key: toleration.key.clone(),
        operator: Some(operator.to_owned()),
        value: toleration.value.clone(),
        effect: effect.map(str::to_owned),
        toleration_seconds: toleration.toleration_seconds,
    }
}

/// A list that is left out when it is empty, as the API server has it.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}
