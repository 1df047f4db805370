//! How far the prepare Job is: from the Job and its pods, pure.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use modelprofile_api::conditions::reason;
use modelprofile_api::worker::{PrepareReason, PrepareReport, WorkerProfile, WorkerState};

use super::pods::{Trouble, trouble};

/// How far the artifacts of a ModelProfile are.
#[derive(Clone, Debug, PartialEq)]
pub enum Preparation {
    /// There is no volume that would outlive a Job: each worker prepares for itself.
    ByWorkers,
    /// The Job is not there yet, or its pod is not.
    Pending,
    /// Its pod does not get on.
    Stuck(Trouble),
    /// It works; the state is what it said last.
    Running(Option<Box<WorkerState>>),
    /// All is in the cache.
    Done(Vec<WorkerProfile>),
    /// It gave up.
    Failed(Failure),
}

/// Why a preparation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure; `None` of one that ended without a word of ours.
    pub reason: Option<PrepareReason>,
    /// What was wrong and what to do, as the worker said it.
    pub message: String,
}

/// How far `job` is; `pods` are its pods, `state` what the running one answered in this pass.
pub fn of_job(job: Option<&Job>, pods: &[&Pod], state: Option<WorkerState>) -> Preparation {
    let Some(job) = job else { return Preparation::Pending };
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
    if holds("Complete").is_some() {
        return Preparation::Done(match newest(pods).map(last_words) {
            Some(Ok(PrepareReport::Prepared { profiles })) => profiles,
            _ => Vec::new(),
        });
    }
    if let Some(failed) = holds("Failed") {
        // A process that was killed has no last words; what is left of its log is about something else.
        let killed = |pod: &&Pod| trouble(pod, None).filter(|trouble| trouble.reason == reason::OUT_OF_MEMORY);
        if let Some(trouble) = pods.iter().find_map(killed) {
            return Preparation::Stuck(trouble);
        }
        let told = failed.message.as_deref().unwrap_or("no reason was given");
        let (reason, message) = match newest(pods).map(last_words) {
            Some(Ok(PrepareReport::Failed { reason, message })) => (Some(reason), message),
            Some(Err(text)) if !text.is_empty() => (None, text),
            _ => (None, format!("the prepare Job failed: {told}")),
        };
        return Preparation::Failed(Failure { reason, message });
    }
    // A prepare pod asks for no accelerator.
    match pods.iter().find_map(|pod| trouble(pod, None)) {
        Some(trouble) if state.is_none() => Preparation::Stuck(trouble),
        _ if pods.is_empty() => Preparation::Pending,
        _ => match (&state, newest(pods).map(last_words)) {
            // The next attempt waits, or has said nothing yet.
            (None, Some(Ok(PrepareReport::Failed { message, .. }))) => Preparation::Stuck(Trouble {
                reason: reason::PREPARE_FAILED,
                message: format!("an attempt failed, and another one follows: {message}"),
            }),
            _ => Preparation::Running(state.map(Box::new)),
        },
    }
}

/// How the container of the pod ended that ended last.
fn newest<'p>(pods: &[&'p Pod]) -> Option<&'p ContainerStateTerminated> {
    let ends = pods.iter().filter_map(|pod| {
        let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
        containers.iter().find_map(|container| {
            let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
            now.or(container.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
        })
    });
    ends.max_by_key(|end| end.finished_at.as_ref().map(|time| time.0))
}

/// What a prepare pod left; a message that is not ours, such as the end of a log, as it is.
fn last_words(end: &ContainerStateTerminated) -> Result<PrepareReport, String> {
    let text = end.message.as_deref().unwrap_or_default().trim();
    serde_json::from_str(text).map_err(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(condition: Option<&str>) -> Job {
        let conditions: Vec<Value> = condition
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "message": "it has reached its backoff limit"}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "llama-prepare-0123456789"}, "status": {"conditions": conditions}}),
        )
        .unwrap()
    }

    fn ended(message: &str, finished: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [{
            "name": "worker", "image": "w", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": finished, "message": message}},
        }]}}))
        .unwrap()
    }

    #[test]
    fn a_job_that_failed_says_what_its_last_pod_said() {
        let first = ended(r#"{"reason": "DownloadFailed", "message": "no route"}"#, "2026-03-01T12:00:00Z");
        let last = ended(r#"{"reason": "LicenceDiffers", "message": "write llama3.3"}"#, "2026-03-01T12:05:00Z");
        let failed = of_job(Some(&job(Some("Failed"))), &[&last, &first], None);
        let expected = Failure { reason: Some(PrepareReason::LicenceDiffers), message: "write llama3.3".to_owned() };
        assert_eq!(failed, Preparation::Failed(expected));
    }

    #[test]
    fn words_that_are_not_ours_are_passed_on_and_none_say_so() {
        let pod = ended("thread panicked", "2026-03-01T12:00:00Z");
        let message = |pods: &[&Pod]| match of_job(Some(&job(Some("Failed"))), pods, None) {
            Preparation::Failed(Failure { reason: None, message }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message(&[&pod]), "thread panicked");
        assert_eq!(message(&[]), "the prepare Job failed: it has reached its backoff limit");
    }

    #[test]
    fn between_two_attempts_the_failure_is_told_until_the_next_one_speaks() {
        let pod = ended(r#"{"reason": "DownloadFailed", "message": "no route"}"#, "2026-03-01T12:00:00Z");
        let told = of_job(Some(&job(None)), &[&pod], None);
        assert!(
            matches!(&told, Preparation::Stuck(trouble) if trouble.reason == "PrepareFailed" && trouble.message.ends_with(": no route")),
            "{told:?}"
        );
        let spoken = of_job(Some(&job(None)), &[&pod], Some(WorkerState::default()));
        assert!(matches!(spoken, Preparation::Running(Some(_))), "{spoken:?}");
    }

    #[test]
    fn a_process_that_was_killed_for_its_memory_has_no_last_words() {
        let mut pod = ended("INFO licence: apache-2.0", "2026-03-01T12:00:00Z");
        let container = &mut pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0];
        let terminated = container.state.as_mut().unwrap().terminated.as_mut().unwrap();
        terminated.reason = Some("OOMKilled".to_owned());
        let told = of_job(Some(&job(Some("Failed"))), &[&pod], None);
        assert!(matches!(&told, Preparation::Stuck(trouble) if trouble.reason == "OutOfMemory"), "{told:?}");
    }

    #[test]
    fn a_job_that_is_complete_tells_what_it_made() {
        let pod = ended(r#"{"profiles": [{"name": "quality", "weightBytes": 7}]}"#, "2026-03-01T12:00:00Z");
        let profile = WorkerProfile { name: "quality".to_owned(), weight_bytes: 7, ..WorkerProfile::default() };
        assert_eq!(of_job(Some(&job(Some("Complete"))), &[&pod], None), Preparation::Done(vec![profile]));
    }

    #[test]
    fn a_pod_that_cannot_start_is_told_and_one_that_answers_is_not() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [{
            "name": "worker", "image": "w", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
        }]}}))
        .unwrap();
        assert!(
            matches!(of_job(Some(&job(None)), &[&pod], None), Preparation::Stuck(trouble) if trouble.reason == "ImagePullFailed")
        );
        let state = WorkerState::default();
        assert_eq!(of_job(Some(&job(None)), &[&pod], Some(state.clone())), Preparation::Running(Some(Box::new(state))));
        assert_eq!(of_job(None, &[], None), Preparation::Pending);
        assert_eq!(of_job(Some(&job(None)), &[], None), Preparation::Pending);
    }
}
