//! The Job that fetches, checks and quantizes before any pod that holds an accelerator starts.
//!
//! Its name has a key of all that shapes what is prepared, so a Job that completed is the record that it is: after an edit the
//! key is another one, and until the Job of that name has completed no pod template changes. A Job that somebody deletes is
//! made anew, finds what is there, and ends.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use modelprofile_api::worker::PrepareReport;
use modelprofile_api::{EngineType, ModelUri};
use serde_json::json;

use super::action::{Action, Plan, Stage};
use super::diff::{APPLIED, seal};
use super::digest::short;
use super::engine::{ADMIN, CONFIG, admin, is_fetched, is_kept, places, preparing};
use super::facts::{Facts, Options};
use super::names::PREPARE;
use super::object::{Kind, Object};
use super::pod;
use super::valid::Valid;

/// After this time a Job that failed is made again: what it lacked (network, room, a licence's consent on the hub) may have
/// come. An edit of what it depends on makes another Job at once.
const RETRY: Duration = Duration::from_secs(600);
/// Failures of its pods until a Job fails.
const ATTEMPTS: i32 = 2;

/// Whether there is anything that a Job could prepare for pods to come. A cache that goes with its pod is filled by the pod;
/// engines that do not quantize need what is fetched only.
pub fn needed(valid: &Valid) -> bool {
    let spec = valid.spec();
    let fetched = ModelUri::parse(&spec.model.uri).is_ok_and(|uri| is_fetched(&uri));
    is_kept(&spec.cache) && (spec.engine.kind == EngineType::Native || fetched)
}

/// What stands for all that shapes what is prepared, the licence that was accepted and the program that prepares included.
pub fn key(valid: &Valid) -> String {
    let spec = valid.spec();
    let native = spec.engine.kind == EngineType::Native;
    let profiles = native.then(|| (&spec.profiles, &spec.quality.dataset, preparing(valid.manifest())));
    let cache = (&spec.cache.persistent_volume_claim, &spec.cache.host_path, spec.cache.keep_original);
    short(&json!([valid.owner().name, valid.prepare_image(), spec.model, cache, profiles]).to_string())
}

/// Name of the manifest in the ConfigMap that the Job reads. It has the key, so that a pod waits for it rather than read the
/// one before.
pub fn file(valid: &Valid) -> String {
    format!("prepare-{}.yaml", key(valid))
}

/// The Job.
pub fn job(valid: &Valid, options: &Options) -> Job {
    let owner = valid.owner();
    let mut args = vec!["prepare".to_owned(), "--config".to_owned(), format!("{CONFIG}/{}", file(valid))];
    args.extend(places());
    args.extend(["--host", "0.0.0.0", "--admin-port"].map(str::to_owned));
    args.push(ADMIN.1.to_string());
    args.extend(admin(&owner.audience()));
    match valid.spec().engine.kind {
        EngineType::Native => args.extend(preparing(valid.manifest())),
        _ => args.push("--fetch-only".to_owned()),
    }
    let (mut requests, mut limits) = pod::amounts(valid);
    if let Some(resource) = &valid.spec().placement.accelerator_resource {
        requests.remove(resource);
        limits.remove(resource);
    }
    let container = Container {
        name: PREPARE.to_owned(),
        image: Some(valid.prepare_image().to_owned()),
        image_pull_policy: options.image_pull_policy.clone(),
        command: Some(vec!["modelprofile-worker".to_owned()]),
        args: Some(args),
        env: pod::env(valid, &std::collections::BTreeMap::new()),
        ports: Some(vec![ContainerPort {
            name: Some(ADMIN.0.to_owned()),
            container_port: ADMIN.1,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: pod::requirements(requests, limits),
        security_context: Some(pod::locked()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(pod::mounts(valid, false)),
        ..Container::default()
    };
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(owner.component(PREPARE)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".to_owned()),
            volumes: Some(pod::volumes(valid, false)),
            ..pod::base(valid)
        }),
    };
    Job {
        metadata: owner.metadata(owner.job(&key(valid)), owner.component(PREPARE)),
        spec: Some(JobSpec {
            backoff_limit: Some(ATTEMPTS),
            // Two at once would wait for each other's lock, and hold the memory of two.
            pod_replacement_policy: Some("Failed".to_owned()),
            // A node that is drained is no failure of the preparation, which goes on where it was.
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![
                    PodFailurePolicyRule {
                        action: "Ignore".to_owned(),
                        on_exit_codes: None,
                        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                            type_: "DisruptionTarget".to_owned(),
                            status: Some("True".to_owned()),
                        }]),
                    },
                    // What no second attempt would change is told at once.
                    PodFailurePolicyRule {
                        action: "FailJob".to_owned(),
                        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                            container_name: Some(PREPARE.to_owned()),
                            operator: "In".to_owned(),
                            values: vec![PrepareReport::SETTLED],
                        }),
                        on_pod_conditions: None,
                    },
                ],
            }),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// How a Job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works, or waits for its pod.
    Running,
    /// It has prepared everything.
    Complete,
    /// It gave up, then.
    Failed(Option<Timestamp>),
}

/// How a Job is, by its conditions.
pub fn outcome(job: &Job) -> Outcome {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
    match (holds("Complete"), holds("Failed")) {
        (Some(_), _) => Outcome::Complete,
        (None, Some(failed)) => Outcome::Failed(failed.last_transition_time.as_ref().map(|time| time.0)),
        (None, None) => Outcome::Running,
    }
}

/// Whether everything is prepared that the manifest's pods need, by what was seen.
pub fn is_done(valid: &Valid, facts: &Facts) -> bool {
    let name = valid.owner().job(&key(valid));
    let job = facts.existing.jobs.get(&name).filter(|job| valid.owner().owns(&job.metadata));
    !needed(valid) || job.is_some_and(|job| outcome(job) == Outcome::Complete)
}

/// What has to be done about Jobs.
pub(super) fn plan(valid: &Valid, facts: &Facts, options: &Options, plan: &mut Plan) {
    let (owner, wanted) = (valid.owner(), valid.owner().job(&key(valid)));
    if needed(valid) {
        match facts.existing.jobs.get(&wanted) {
            None => plan.actions.push(Action::Apply {
                object: seal(Object::from(job(valid, options))),
                why: "what the pods need is prepared before they start".to_owned(),
            }),
            Some(job) if !owner.owns(&job.metadata) => plan.wait(Stage::NameTaken, taken(Kind::Job, &wanted)),
            Some(job) if job.metadata.deletion_timestamp.is_some() => {
                plan.wait(Stage::Deleting, format!("Job {wanted} is being deleted, and is made again then"));
            }
            Some(job) if outcome(job) != Outcome::Complete && differs(&self::job(valid, options), job) => {
                plan.actions.push(delete(job, "the manifest asks for another pod to prepare with".to_owned()));
            }
            Some(job) => match outcome(job) {
                Outcome::Complete => {}
                Outcome::Running => plan.wait(Stage::Preparing, format!("Job {wanted} prepares what the pods need")),
                Outcome::Failed(at) => failed(job, at, facts, plan),
            },
        }
    }
    let done = is_done(valid, facts);
    for (name, job) in &facts.existing.jobs {
        let gone = job.metadata.deletion_timestamp.is_some() || !owner.owns(&job.metadata);
        // One that completed stays until its successor has: the edit may be taken back.
        if *name != wanted && !gone && (done || outcome(job) != Outcome::Complete) {
            plan.actions.push(delete(job, "it prepares what is no longer asked for".to_owned()));
        }
    }
}

/// Whether a Job that is not through was made of another manifest than the present one: for more memory, with another token.
/// Only by what was asked for, since the Job controller adds fields of its own.
fn differs(wanted: &Job, existing: &Job) -> bool {
    let digest = |metadata: &ObjectMeta| metadata.annotations.as_ref().and_then(|all| all.get(APPLIED)).cloned();
    digest(seal(Object::from(wanted.clone())).metadata()) != digest(&existing.metadata)
}

fn failed(job: &Job, at: Option<Timestamp>, facts: &Facts, plan: &mut Plan) {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let since = at.map_or(RETRY, |at| Duration::try_from(facts.now.duration_since(at)).unwrap_or_default());
    match RETRY.checked_sub(since).filter(|left| !left.is_zero()) {
        None => {
            let minutes = RETRY.as_secs() / 60;
            plan.actions.push(delete(job, format!("it failed {minutes} minutes ago, and is made again")));
        }
        Some(left) => {
            plan.revisit(left);
            // An instant rather than seconds that are left: the sentence would be another one in every pass.
            let again = at.unwrap_or(facts.now).saturating_add(RETRY).unwrap_or(facts.now);
            let message = format!(
                "Job {name} failed; it is made again at {again:.0}, and at once after an edit of what it prepares"
            );
            plan.wait(Stage::PrepareFailed, message);
        }
    }
}

fn delete(job: &Job, why: String) -> Action {
    let ObjectMeta { name, uid, .. } = job.metadata.clone();
    Action::Delete { kind: Kind::Job, name: name.unwrap_or_default(), uid, why }
}

/// An object of somebody else has the name.
pub fn taken(kind: Kind, name: &str) -> String {
    format!("{kind} {name} exists and belongs to somebody else; rename this ModelProfile, or delete the {kind}")
}
