//! What keeps a pod from working, as a reason and a sentence: from its status alone, pure.
//!
//! Kubernetes spreads this over four places: the condition `PodScheduled`, the container's waiting state, its last
//! termination, and the pod's own reason when a node gave it up.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use modelprofile_api::conditions::reason;

/// Longest part of somebody else's message that is passed on: a status has room for a few.
const QUOTED: usize = 400;

/// Why a pod does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word of `modelprofile_api::conditions::reason`.
    pub reason: &'static str,
    /// What is wrong and what would change it, with the pod's name.
    pub message: String,
}

/// The first thing that keeps `pod` from working; `None` while it works, or is on its way. `accelerator` is the resource
/// that its model asks for.
pub fn trouble(pod: &Pod, accelerator: Option<&str>) -> Option<Trouble> {
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    let status = pod.status.as_ref()?;
    if let Some(trouble) = unscheduled(pod, accelerator) {
        return Some(trouble);
    }
    if let Some(trouble) = lost(pod) {
        return Some(trouble);
    }
    if status.phase.as_deref() == Some("Failed") && status.reason.is_some() {
        let why = status.reason.as_deref().unwrap_or_default();
        let message = quoted(status.message.as_deref().unwrap_or("no message"));
        return Some(Trouble {
            reason: reason::POD_FAILED,
            message: format!("the node gave up {name} ({why}): {message}"),
        });
    }
    let mut containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.find_map(|container| of_container(name, container))
}

fn unscheduled(pod: &Pod, accelerator: Option<&str>) -> Option<Trouble> {
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    if scheduled.status != "False" || scheduled.reason.as_deref() == Some("SchedulingGated") {
        return None;
    }
    let message = scheduled.message.as_deref().unwrap_or_default();
    // The scheduler's own words: "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    let wanted = accelerator.filter(|resource| message.contains(&format!("Insufficient {resource}")));
    Some(match wanted {
        Some(resource) => Trouble {
            reason: reason::WAITING_FOR_ACCELERATOR,
            message: format!(
                "{name} waits for {resource}: no node has enough free; free some, add a node, or lower scaling.minReplicas ({})",
                quoted(message)
            ),
        },
        None => Trouble {
            reason: reason::UNSCHEDULABLE,
            message: format!("no node takes {name}: {}; compare spec.placement with the nodes", quoted(message)),
        },
    })
}

/// The kubelet never says this of a pod without readiness gates: the control plane does, of one whose node is silent.
fn lost(pod: &Pod) -> Option<Trouble> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let is = |kind: &str, status: &str| conditions.iter().any(|found| found.type_ == kind && found.status == status);
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    (is("Ready", "False") && is("ContainersReady", "True")).then(|| Trouble {
        reason: reason::NODE_LOST,
        message: format!(
            "the node of {name} does not report, so requests are not sent there, though the worker may serve still; see `kubectl get nodes`: it comes back with its node, or on another one some minutes later"
        ),
    })
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref()).or(state.terminated.as_ref());
    let how = || {
        let Some(ended) = ended else { return String::new() };
        let words = ended.message.as_deref().map(last_words).filter(|text| !text.is_empty());
        let words = words.map(|text| format!(": {text}")).unwrap_or_default();
        let why = ended.reason.as_deref().unwrap_or("no reason");
        format!("; the last run ended with exit code {} ({why}){words}", ended.exit_code)
    };
    if ended.is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled")) && !container.ready {
        return Some(Trouble {
            reason: reason::OUT_OF_MEMORY,
            message: format!(
                "{pod} was killed for using more memory than its limit; raise spec.placement.resources.limits.memory, or lower spec.placement.memoryBudget"
            ),
        });
    }
    let waiting = state.waiting.as_ref();
    let why = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = quoted(waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or("no message"));
    // Between two waits it runs for a moment; it has not recovered before it is ready.
    let crashes = container.restart_count > 0 && !container.ready && ended.is_some_and(|ended| ended.exit_code != 0);
    match why {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "RegistryUnavailable" => {
            Some(Trouble {
                reason: reason::IMAGE_PULL_FAILED,
                message: format!(
                    "the image {} of {pod} cannot be pulled ({why}): {message}; check spec.engine.image and spec.engine.imagePullSecrets",
                    container.image
                ),
            })
        }
        _ if crashes || why == "CrashLoopBackOff" => {
            let often = match container.restart_count {
                1 => "once".to_owned(),
                times => format!("{times} times"),
            };
            Some(Trouble {
                reason: reason::CRASH_LOOP,
                message: format!(
                    "{pod} ended {often} and is started again{}; correct what the manifest gives it (spec.engine.args, spec.engine.env, spec.placement), or see `kubectl logs {pod} --previous`",
                    how()
                ),
            })
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Some(Trouble {
            reason: reason::POD_FAILED,
            message: format!("the container of {pod} cannot be made ({why}): {message}"),
        }),
        _ => None,
    }
}

/// The end of a log, in one line: an error is what a program says last.
fn last_words(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().rev().nth(QUOTED) {
        Some((start, _)) => format!("…{}", line[start..].trim_start()),
        None => line,
    }
}

/// The beginning of somebody else's message.
fn quoted(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "llama-0"}, "status": status})).unwrap()
    }

    #[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
    fn container(state: Value, last: Value, restarts: i32) -> Value {
        json!({"containerStatuses": [{
            "name": "worker", "image": "worker:1", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": last,
        }]})
    }

    fn gpus() -> Value {
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}]})
    }

    #[rstest]
    #[case(json!({"phase": "Running"}), None)]
    #[case(json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]}), Some("NodeLost"))]
    #[case(json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]}), None)]
    #[case(container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}), 0), None)]
    #[case(gpus(), Some("WaitingForAccelerator"))]
    #[case(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory."}]}), Some("Unschedulable"))]
    #[case(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}), None)]
    #[case(container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}), json!({}), 0), Some("ImagePullFailed"))]
    #[case(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), json!({"terminated": {"exitCode": 1, "reason": "Error"}}), 3), Some("CrashLoop"))]
    #[case(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), 3), Some("OutOfMemory"))]
    #[case(json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}), Some("PodFailed"))]
    #[case(container(json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"x\" not found"}}), json!({}), 0), Some("PodFailed"))]
    fn each_trouble_has_its_reason(#[case] status: Value, #[case] expected: Option<&str>) {
        assert_eq!(trouble(&pod(status), Some("nvidia.com/gpu")).map(|trouble| trouble.reason), expected);
    }

    #[test]
    fn a_pod_that_waits_for_another_resource_than_its_accelerator_does_not_wait_for_one() {
        assert_eq!(trouble(&pod(gpus()), None).unwrap().reason, "Unschedulable");
    }

    #[test]
    fn the_sentence_names_the_pod_and_its_last_words() {
        let last = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "no space left\n"}});
        let message = trouble(&pod(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), last, 4)), None)
            .unwrap()
            .message;
        assert_eq!(
            message,
            "llama-0 ended 4 times and is started again; the last run ended with exit code 1 (Error): no space left; correct what \
             the manifest gives it (spec.engine.args, spec.engine.env, spec.placement), or see `kubectl logs llama-0 --previous`"
        );
    }

    #[test]
    fn a_crash_loop_does_not_come_and_go_with_every_start() {
        let last = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
        let running = pod(container(json!({"running": {}}), last.clone(), 1));
        let told = trouble(&running, None).unwrap();
        assert!(told.reason == "CrashLoop" && told.message.contains("ended once"), "{told:?}");
        let mut ready = pod(container(json!({"running": {}}), last, 1));
        ready.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].ready = true;
        assert_eq!(trouble(&ready, None), None);
    }

    #[test]
    fn of_a_long_log_the_end_is_kept_in_one_line() {
        let words = last_words(&format!("{}\nerror:\n  no such flag\n", "x ".repeat(1000)));
        assert!(words.starts_with('…') && words.ends_with("x error: no such flag"), "{words}");
        assert!(words.chars().count() <= QUOTED + 2, "{words}");
        assert_eq!(last_words(" a\nb "), "a b");
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        assert_eq!(quoted(&"é".repeat(1000)).chars().count(), QUOTED + 1);
    }
}
