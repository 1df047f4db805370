//! Plans held against whole values, and against a cluster that does what they say.
//!
//! | module | what it holds |
//! |---|---|
//! | `native` | the objects of this project's worker, and how they change |
//! | `sets` | Surge and Recreate, step by step |
//! | `edits` | edits of a manifest while pods serve |
//! | `asks` | what workers are asked |
//! | `properties` | any order of events |

mod asks;
mod edits;
mod native;
mod properties;
mod sets;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use modelprofile_api::Manifest;
use modelprofile_api::worker::{WorkerPhase, WorkerProfile, WorkerState};
use serde_json::Value;

use super::*;

pub(super) fn owner() -> Owner {
    Owner { namespace: "team".into(), name: "llama".into(), uid: "u-1".into() }
}

pub(super) fn options() -> Options {
    Options {
        images: Images {
            worker: "modelprofile-worker:1".into(),
            vllm: Some("vllm:1".into()),
            tensorrt_llm: Some("tensorrt-llm:1".into()),
            llama_cpp: Some("llama.cpp:1".into()),
        },
        image_pull_policy: None,
        admin_keys: vec!["KEY".into()],
        operator: Some(OperatorPod {
            namespace: "modelprofile-system".into(),
            labels: [("app.kubernetes.io/name".to_owned(), "modelprofile-operator".to_owned())].into(),
        }),
        metrics_from: [("metrics".to_owned(), "yes".to_owned())].into(),
    }
}

/// A manifest with sections of the spec; without one of its own, a model and a ladder of this project's worker.
pub(super) fn manifest(sections: &str) -> Manifest {
    let mut spec = String::new();
    if !sections.contains("model:") {
        spec += "  model: {uri: 'pvc://models/llama'}\n";
    }
    if !sections.contains("profiles:") {
        spec += "  profiles: [{name: quality, weights: {format: FP8}}, {name: density, weights: {format: INT4}}]\n";
    }
    for line in sections.lines() {
        spec.extend(["  ", line, "\n"]);
    }
    let text =
        format!("apiVersion: modelprofile.dev/v1alpha1\nkind: ModelProfile\nmetadata: {{name: llama}}\nspec:\n{spec}");
    serde_yaml::from_str(&text).unwrap()
}

pub(super) fn valid(sections: &str) -> Valid {
    Valid::new(owner(), manifest(sections), &options()).unwrap()
}

pub(super) const START: i64 = 1_800_000_000;

/// A cluster that does what plans say, and to which things happen.
pub(super) struct World {
    pub(super) valid: Valid,
    pub(super) facts: Facts,
    pods: usize,
}

impl World {
    /// One that has nothing yet.
    pub(super) fn new(sections: &str) -> Self {
        let desired = Desired { profile: "quality".into(), replicas: 1 };
        let facts = Facts::new(Timestamp::from_second(START).unwrap(), desired);
        Self { valid: valid(sections), facts, pods: 0 }
    }

    /// One in which the first profile serves.
    pub(super) fn serving(sections: &str) -> Self {
        let mut world = Self::new(sections);
        for _ in 0..4 {
            world.pass();
            world.finish_jobs("Complete");
            world.start_pods();
            world.ready_pods();
        }
        world.pass();
        assert_eq!(world.plan(), Plan::default());
        world
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.valid, &self.facts, &options())
    }

    /// One pass: plan and apply. Gives what was planned, a line for an action.
    pub(super) fn pass(&mut self) -> Vec<String> {
        let plan = self.plan();
        let said = plan.actions.iter().map(ToString::to_string).collect();
        self.apply(plan);
        let again = self.plan();
        assert!(again.is_empty(), "a plan on its own result is empty, not\n{again}");
        said
    }

    pub(super) fn edit(&mut self, sections: &str) {
        self.valid = valid(sections);
    }

    pub(super) fn want(&mut self, profile: &str) {
        self.facts.desired.profile = profile.into();
    }

    pub(super) fn wait(&mut self, seconds: i64) {
        self.facts.now += SignedDuration::from_secs(seconds);
    }

    fn apply(&mut self, plan: Plan) {
        for action in plan.actions {
            match action {
                Action::Apply { object, .. } | Action::Route { service: object, .. } => self.put(object),
                Action::Scale { deployment, replicas, .. } => {
                    let found = self.facts.existing.deployments.get_mut(&deployment).unwrap();
                    found.spec.replicas = Some(replicas);
                }
                Action::Switch { pod, profile, .. } => self.state(&pod).target_profile = Some(profile),
                Action::SetQuality { pod, limits, .. } => self.state(&pod).quality_limits = Some(*limits),
                Action::Delete { kind: Kind::Deployment, name, .. } => {
                    let gone = self.facts.existing.deployments.remove(&name).unwrap();
                    let labels = gone.metadata.labels.unwrap();
                    let set = Set::of_labels(&labels).unwrap();
                    for worker in self.facts.workers.iter_mut().filter(|worker| worker.set == set) {
                        (worker.terminating, worker.ready) = (true, false);
                    }
                }
                Action::Delete { kind: Kind::Job, name, .. } => {
                    let job = self.facts.existing.jobs.get_mut(&name).unwrap();
                    job.metadata.deletion_timestamp = Some(Time(self.facts.now));
                }
                Action::Delete { kind, .. } => panic!("{kind} is deleted with its owner"),
            }
        }
    }

    fn put(&mut self, object: Object) {
        let existing = &mut self.facts.existing;
        let name = object.name().to_owned();
        match object {
            Object::ConfigMap(object) => existing.config_map = Some(*object),
            Object::Service(object) => existing.service = Some(*object),
            Object::Deployment(object) => drop(existing.deployments.insert(name, *object)),
            Object::Job(object) => drop(existing.jobs.insert(name, *object)),
            Object::NetworkPolicy(object) => existing.network_policy = Some(*object),
            Object::PodDisruptionBudget(object) => existing.disruption_budget = Some(*object),
        }
    }

    pub(super) fn state(&mut self, pod: &str) -> &mut WorkerState {
        let worker = self.facts.workers.iter_mut().find(|worker| worker.pod == pod).unwrap();
        worker.state.get_or_insert_default()
    }

    /// Jobs that are being deleted are gone; those that run end with a condition.
    pub(super) fn finish_jobs(&mut self, condition: &str) {
        self.facts.existing.jobs.retain(|_, job| job.metadata.deletion_timestamp.is_none());
        for job in self.facts.existing.jobs.values_mut().filter(|job| job.status.is_none()) {
            let condition = JobCondition {
                type_: condition.into(),
                status: "True".into(),
                last_transition_time: Some(Time(self.facts.now)),
                ..JobCondition::default()
            };
            job.status = Some(JobStatus { conditions: Some(vec![condition]), ..JobStatus::default() });
        }
    }

    /// Pods that go are gone, and those that Deployments lack are made.
    pub(super) fn start_pods(&mut self) {
        self.facts.workers.retain(|worker| !worker.terminating);
        for deployment in self.facts.existing.deployments.values() {
            let spec = &deployment.spec;
            let set = Set::of_labels(spec.selector.match_labels.as_ref().unwrap()).unwrap();
            let wanted = usize::try_from(spec.replicas.unwrap()).unwrap();
            let mut of_set: Vec<_> = self.facts.workers.iter_mut().filter(|worker| worker.set == set).collect();
            for worker in of_set.iter_mut().skip(wanted) {
                (worker.terminating, worker.ready) = (true, false);
            }
            for _ in of_set.len()..wanted {
                self.pods += 1;
                self.facts.workers.push(Worker::new(format!("pod-{}", self.pods), set.clone()));
            }
        }
    }

    /// All pods are ready, have answered, and have nothing to do.
    pub(super) fn ready_pods(&mut self) {
        let ladder: Vec<WorkerProfile> = (self.valid.spec().profiles.iter())
            .map(|profile| WorkerProfile { name: profile.name.clone(), ..WorkerProfile::default() })
            .collect();
        let (start, limits) = (self.facts.desired.profile.clone(), self.valid.spec().quality.clone());
        for worker in self.facts.workers.iter_mut().filter(|worker| !worker.terminating && !worker.ready) {
            (worker.ready, worker.answered, worker.in_flight) = (true, true, Some(0));
            worker.state = Some(Box::new(WorkerState {
                phase: WorkerPhase::Ready,
                active_profile: Some(worker.set.profile().unwrap_or(&start).to_owned()),
                profiles: ladder.clone(),
                quality_limits: Some(limits.clone()),
                ..WorkerState::default()
            }));
        }
    }

    /// Workers read the manifest of the ConfigMap anew.
    pub(super) fn read_ladder(&mut self) {
        let Some(read) = self.facts.existing.config_map.as_ref().and_then(rollout::running) else { return };
        for state in self.facts.workers.iter_mut().filter_map(|worker| worker.state.as_mut()) {
            state.profiles = (read.spec.profiles.iter())
                .map(|profile| WorkerProfile { name: profile.name.clone(), ..WorkerProfile::default() })
                .collect();
            state.awaited_profiles.clear();
        }
    }

    pub(super) fn deployments(&self) -> Vec<&str> {
        self.facts.existing.deployments.keys().map(String::as_str).collect()
    }

    /// The set that the Service points to.
    pub(super) fn routed(&self) -> Option<Set> {
        self.facts.existing.service.as_ref().and_then(|service| objects::routed(service).0)
    }

    /// A Deployment as the API server has it.
    pub(super) fn deployment(&self, name: &str) -> Value {
        serde_json::to_value(&self.facts.existing.deployments[name]).unwrap()
    }
}

/// The messages of what is waited for.
pub(super) fn waits(plan: &Plan) -> Vec<&str> {
    plan.progress.iter().map(|progress| progress.message.as_str()).collect()
}

pub(super) fn set(profile: &str) -> Set {
    Set::Profile(profile.into())
}
