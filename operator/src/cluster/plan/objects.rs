//! The objects beside the pods: Service, ConfigMap, PodDisruptionBudget, NetworkPolicy, and the Deployment around a template.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use modelprofile_api::{EngineType, Manifest, Strategy};

use super::engine::{self, ADMIN, HTTP, start_file};
use super::facts::{Facts, Options};
use super::names::{Owner, Set};
use super::pod;
use super::prepare;
use super::rollout;
use super::shape::Shape;
use super::valid::Valid;

/// Annotation of the Service: since when it points to the set that it points to. Draining counts from there, so it outlives the
/// operator.
pub const ROUTED_AT: &str = "modelprofile.dev/routed-at";
/// File of the ConfigMap with the profile that a new pod starts in.
const START_FILE: &str = "start-profile";
/// File of the ConfigMap with the operator's public keys.
const ADMIN_KEYS: &str = "admin-keys";

/// The Service, pointing to a set since an instant.
pub fn service(owner: &Owner, set: &Set, since: Option<Timestamp>) -> Service {
    let mut metadata = owner.metadata(owner.name.clone(), owner.labels());
    metadata.annotations = since.map(|since| BTreeMap::from([(ROUTED_AT.to_owned(), since.to_string())]));
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(set.selector(owner)),
            ports: Some(vec![ServicePort {
                name: Some(HTTP.0.to_owned()),
                port: HTTP.1,
                target_port: Some(IntOrString::String(HTTP.0.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The set that a Service points to, and since when.
pub fn routed(service: &Service) -> (Option<Set>, Option<Timestamp>) {
    let set = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).and_then(Set::of_labels);
    let annotation = service.metadata.annotations.as_ref().and_then(|all| all.get(ROUTED_AT));
    (set, annotation.and_then(|text| text.parse().ok()))
}

/// The Deployment of a set, which serves `profile` if it serves one.
pub fn deployment(
    valid: &Valid,
    facts: &Facts,
    options: &Options,
    set: &Set,
    profile: &str,
    replicas: i32,
) -> Deployment {
    let owner = valid.owner();
    let shape = Shape::of(valid, set, facts);
    let metadata = owner.metadata(set.deployment(owner), set.labels(owner));
    Deployment {
        metadata: ObjectMeta { annotations: shape.own_annotations(), ..metadata },
        spec: DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: Some(set.selector(owner)), match_expressions: None },
            // There may be no accelerator to spare, so a pod goes before its successor comes.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(0)),
                    max_unavailable: Some(IntOrString::Int(1)),
                }),
            }),
            // Loading a large model takes a while.
            progress_deadline_seconds: Some(3600),
            revision_history_limit: Some(2),
            template: pod::template(valid, set, profile, &shape, options),
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

/// What worker and prepare pods read. It never rolls the pods.
///
/// `manifest` is the one that workers read; `prepared` says that nothing is left to prepare.
pub fn config_map(
    valid: &Valid,
    facts: &Facts,
    options: &Options,
    manifest: (&Manifest, String),
    prepared: bool,
) -> ConfigMap {
    let owner = valid.owner();
    let (running, text) = manifest;
    let mut data = engine::files(valid.spec().engine.kind);
    data.insert(rollout::FILE.to_owned(), text);
    data.insert(ADMIN_KEYS.to_owned(), options.admin_keys.join("\n") + "\n");
    if !prepared {
        data.insert(prepare::file(valid), valid.text().to_owned());
    }
    if running.spec.engine.kind == EngineType::Native {
        data.insert(START_FILE.to_owned(), start(facts, running));
    }
    let strategies = [running.spec.switching.strategy, valid.spec().switching.strategy];
    if strategies.iter().any(|strategy| *strategy != Strategy::InPlace) {
        for profile in running.spec.profiles.iter().chain(&valid.spec().profiles) {
            data.insert(start_file(Strategy::Surge, &profile.name), profile.name.clone());
        }
    }
    ConfigMap { metadata: owner.metadata(owner.config_map(), owner.labels()), data: Some(data), ..ConfigMap::default() }
}

/// The desired profile. Until the pods may read a ladder that has it: the one before, else the first.
fn start(facts: &Facts, running: &Manifest) -> String {
    let data = facts.existing.config_map.as_ref().and_then(|map| map.data.as_ref());
    let before = data.and_then(|data| data.get(START_FILE)).map(String::as_str);
    let profiles = &running.spec.profiles;
    let known = |name: &&str| profiles.iter().any(|profile| profile.name == **name);
    let wanted = Some(facts.desired.profile.as_str()).filter(known).or_else(|| before.filter(known));
    wanted.or_else(|| profiles.first().map(|profile| profile.name.as_str())).unwrap_or_default().to_owned()
}

/// Drains of nodes take the workers one by one. One that is not ready serves nobody and never holds a drain up.
pub fn disruption_budget(owner: &Owner) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: owner.metadata(owner.name.clone(), owner.labels()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector { match_labels: Some(owner.workers()), match_expressions: None }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// Who may reach the pods: everybody the API; the operator, and namespaces that scrape, the admin port.
pub fn network_policy(owner: &Owner, options: &Options) -> NetworkPolicy {
    let rule = |port: i32, from: Option<Vec<NetworkPolicyPeer>>| NetworkPolicyIngressRule {
        from,
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(port)),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    };
    let select = |labels: &BTreeMap<String, String>| {
        Some(LabelSelector { match_labels: Some(labels.clone()), match_expressions: None })
    };
    let admin = options.operator.as_ref().map(|operator| {
        // The label that every namespace has.
        let namespace = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), operator.namespace.clone())]);
        let mut peers = vec![NetworkPolicyPeer {
            namespace_selector: select(&namespace),
            pod_selector: select(&operator.labels),
            ip_block: None,
        }];
        if !options.metrics_from.is_empty() {
            peers.push(NetworkPolicyPeer { namespace_selector: select(&options.metrics_from), ..Default::default() });
        }
        peers
    });
    NetworkPolicy {
        metadata: owner.metadata(owner.name.clone(), owner.labels()),
        spec: Some(NetworkPolicySpec {
            pod_selector: select(&owner.any_pod()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule(HTTP.1, None), rule(ADMIN.1, admin)]),
            egress: None,
        }),
    }
}
