//! One look at everything that belongs to a ModelProfile: objects from memory, workers by asking them.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use modelprofile_api::EngineType;
use modelprofile_policy::{Rules, Sample};

use super::context::Context;
use super::index::{Index, Key};
use super::memory::Memory;
use super::plan::engine;
use super::plan::facts::{Existing, Worker};
use super::plan::names::{PREPARE, Set, WORKER};
use super::plan::prepare;
use super::plan::valid::Valid;
use super::pods::{Trouble, trouble};
use super::prepared::{self, Preparation};
use super::workers::{Address, Heard};

/// What the API server told, by ModelProfile.
#[derive(Default)]
pub struct Indexes {
    /// Worker Deployments.
    pub deployments: Index<Deployment>,
    /// Services.
    pub services: Index<Service>,
    /// Configurations of workers.
    pub config_maps: Index<ConfigMap>,
    /// Disruption budgets.
    pub budgets: Index<PodDisruptionBudget>,
    /// Network policies.
    pub policies: Index<NetworkPolicy>,
    /// Jobs that prepare.
    pub jobs: Index<Job>,
    /// Pods that serve or prepare.
    pub pods: Index<Pod>,
}

/// What a pass saw.
#[derive(Debug)]
pub struct Observed {
    /// Stands for the objects, as one number.
    pub objects: u64,
    /// The objects. `None`: they are those that a plan found nothing to do with, and were not read.
    pub existing: Option<Existing>,
    /// What else depends on them alone.
    pub read: Read,
    /// The worker pods.
    pub workers: Vec<Worker>,
    /// Where each worker listens, by the name of its pod.
    pub addresses: HashMap<String, Address>,
    /// UID of each worker's pod, by its name.
    pub uids: HashMap<String, String>,
    /// The latest sample of each worker, by the name of its pod.
    pub samples: HashMap<String, Sample>,
    /// Why worker pods do not get on, by the name of the pod.
    pub troubles: BTreeMap<String, Trouble>,
    /// How far the artifacts are.
    pub preparation: Preparation,
}

/// What of the objects is of use beside the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The set that the Service selects.
    pub routed: Option<Set>,
    /// Most workers that a Deployment asks for. `None`: there is no Deployment.
    pub replicas: Option<i32>,
}

impl Indexes {
    /// Stands for all objects of a ModelProfile but its pods: it stays the same until one comes, changes or goes.
    fn version(&self, key: &Key) -> u64 {
        let versions = [
            self.deployments.version(key),
            self.services.version(key),
            self.config_maps.version(key),
            self.budgets.version(key),
            self.policies.version(key),
            self.jobs.version(key),
        ];
        versions.into_iter().fold(0, u64::wrapping_add)
    }
}

/// Looks. Workers get as long as [`super::workers::Workers::hear`] takes, all at once.
pub async fn observe(context: &Context, valid: &Valid, memory: &mut Memory, rules: &Rules, token: &str) -> Observed {
    let (indexes, workers) = (&context.indexes, &context.workers);
    let owner = valid.owner();
    let key: Key = (owner.namespace.clone(), owner.name.clone());
    let pods = indexes.pods.of(&key);
    let jobs = indexes.jobs.of(&key);
    let of = |component: &str| -> Vec<&Pod> {
        let is = |pod: &&Pod| pod.labels().get("app.kubernetes.io/component").is_some_and(|label| label == component);
        pods.values().filter(is).collect()
    };
    let engine = valid.spec().engine.kind;
    let accelerator = valid.spec().placement.accelerator_resource.as_deref();
    let serving: Vec<(Worker, Option<Address>, String)> =
        of(WORKER).into_iter().filter_map(|pod| worker(pod, engine)).collect();
    memory.keep(|uid| serving.iter().any(|(_, _, known)| known == uid));

    let preparing = of(PREPARE);
    let job = prepare::needed(valid).then(|| jobs.get(&owner.job(&prepare::key(valid)))).flatten();
    let its: Vec<&Pod> = preparing.iter().copied().filter(|pod| job.is_some_and(|job| belongs(pod, job))).collect();
    let prepare_address = its.iter().filter(|pod| runs(pod)).find_map(|pod| address(pod, EngineType::Native));
    let hear = |address: Option<Address>| async move {
        match address {
            Some(address) => workers.hear(&address, token).await,
            None => Heard::default(),
        }
    };
    let (heard, progress) =
        tokio::join!(join_all(serving.iter().map(|(_, address, _)| hear(address.clone()))), hear(prepare_address));

    // Not before: many passes wait for workers at once, and each would hold all of these meanwhile.
    let objects = indexes.version(&key);
    let (existing, read) = if let Some(settled) = memory.settled(objects) {
        (None, settled.read.clone())
    } else {
        let existing = existing(indexes, valid);
        let read = read(&existing);
        (Some(existing), read)
    };
    let now = Timestamp::now();
    let mut observed = Observed {
        preparation: if prepare::needed(valid) {
            prepared::of_job(job, &its, progress.state)
        } else {
            Preparation::ByWorkers
        },
        objects,
        existing,
        read,
        workers: Vec::with_capacity(serving.len()),
        addresses: HashMap::new(),
        uids: HashMap::new(),
        samples: HashMap::new(),
        troubles: BTreeMap::new(),
    };
    for ((mut worker, address, uid), heard) in serving.into_iter().zip(heard) {
        let remembered = memory.workers.entry(uid.clone()).or_default();
        if let Some(text) = &heard.metrics {
            remembered.scraped(text, now, rules);
        }
        if let Some(sample) = remembered.sample {
            observed.samples.insert(worker.pod.clone(), sample);
        }
        worker.answered = remembered.answered;
        worker.in_flight = in_flight(&heard, remembered.sample.as_ref());
        if let Some(state) = &heard.state {
            remembered.serves.clone_from(&state.active_profile);
        }
        worker.serves.clone_from(&remembered.serves);
        worker.state = heard.state.map(Box::new);
        if let Some(trouble) =
            pods.get(&worker.pod).and_then(|pod| trouble(pod, accelerator)).filter(|_| !worker.terminating)
        {
            observed.troubles.insert(worker.pod.clone(), trouble);
        }
        if let Some(address) = address {
            observed.addresses.insert(worker.pod.clone(), address);
        }
        observed.uids.insert(worker.pod.clone(), uid);
        observed.workers.push(worker);
    }
    observed
}

/// Whether each worker may be asked for `profile` now.
pub fn may_ask(observed: &mut Observed, memory: &Memory, profile: &str) {
    let now = Instant::now();
    for worker in &mut observed.workers {
        let remembered = observed.uids.get(&worker.pod).and_then(|uid| memory.workers.get(uid));
        worker.may_ask = remembered.is_none_or(|remembered| remembered.may_ask(profile, now));
    }
}

/// The objects.
pub fn existing(indexes: &Indexes, valid: &Valid) -> Existing {
    let owner = valid.owner();
    let key = &(owner.namespace.clone(), owner.name.clone());
    Existing {
        deployments: indexes.deployments.of(key),
        service: indexes.services.of(key).remove(&owner.name),
        config_map: indexes.config_maps.of(key).remove(&owner.config_map()),
        disruption_budget: indexes.budgets.of(key).remove(&owner.name),
        network_policy: indexes.policies.of(key).remove(&owner.name),
        jobs: indexes.jobs.of(key),
    }
}

fn read(existing: &Existing) -> Read {
    Read {
        routed: existing.service.as_ref().and_then(selected),
        replicas: existing.deployments.values().filter_map(|deployment| deployment.spec.replicas).max(),
    }
}

/// A pod that serves, where it listens once it runs, and its UID.
fn worker(pod: &Pod, engine: EngineType) -> Option<(Worker, Option<Address>, String)> {
    let set = Set::of_labels(pod.labels())?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let worker = Worker { ready: is_ready(pod) && !terminating, terminating, ..Worker::new(pod.name_any(), set) };
    let address = runs(pod).then(|| address(pod, engine)).flatten();
    Some((worker, address, pod.uid()?))
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn address(pod: &Pod, engine: EngineType) -> Option<Address> {
    let ip = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let port = |number: i32| u16::try_from(number).unwrap_or_default();
    Some(Address {
        ip,
        port: port(engine::HTTP.1),
        admin: (engine == EngineType::Native).then_some(port(engine::ADMIN.1)),
        metrics_path: engine::metrics(engine).path,
    })
}

fn belongs(pod: &Pod, job: &Job) -> bool {
    let uid = job.metadata.uid.as_deref();
    pod.owner_references().iter().any(|owner| Some(owner.uid.as_str()) == uid)
}

fn selected(service: &Service) -> Option<Set> {
    Set::of_labels(service.spec.as_ref()?.selector.as_ref()?)
}

/// Requests that a worker has; those that wait for room count too.
fn in_flight(heard: &Heard, sample: Option<&Sample>) -> Option<u64> {
    if let Some(state) = &heard.state {
        return Some(state.requests.running + state.requests.waiting);
    }
    heard.metrics.as_ref()?;
    sample.map(|sample| sample.running.max(0.0).round() as u64)
}
