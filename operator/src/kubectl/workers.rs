//! Worker pods, a line each: pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;

use super::table::{or_dash, table};
use crate::cluster::plan::names::PROFILE;
use crate::cluster::pods::trouble;

/// What is shown of a worker pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// Name of the pod.
    pub pod: String,
    /// The profile that it was started for. Left out: it changes in place, and only it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// `Ready`, `Leaving`, or what keeps it from being ready as one word.
    pub state: String,
    /// Restarts of its container.
    pub restarts: i32,
    /// Its node. Left out: none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What keeps it from working, and what would change that. Left out: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Reads a pod; `accelerator` is the resource that its model asks for.
pub fn worker(pod: &Pod, accelerator: Option<&str>) -> Worker {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let leaving = pod.metadata.deletion_timestamp.is_some();
    let trouble = trouble(pod, accelerator).filter(|_| !leaving);
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let state = match (leaving, &trouble) {
        (true, _) => "Leaving",
        (false, Some(trouble)) => trouble.reason,
        (false, None) if ready => "Ready",
        // A pod that runs and is not ready loads its model.
        (false, None) if phase == "Running" => "Starting",
        (false, None) => phase,
    };
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    Worker {
        pod: pod.name_any(),
        profile: pod.labels().get(PROFILE).cloned(),
        state: state.to_owned(),
        restarts: containers.map(|container| container.restart_count).sum(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        trouble: trouble.map(|trouble| trouble.message),
    }
}

/// A line for each, and the sentence of each that has one.
pub fn lines(workers: &[Worker]) -> String {
    let row = |worker: &Worker| {
        let restarts = match worker.restarts {
            0 => String::new(),
            1 => "1 restart".to_owned(),
            many => format!("{many} restarts"),
        };
        let node = worker.node.as_ref().map(|node| format!("on {node}"));
        [worker.pod.clone(), worker.state.clone(), or_dash(worker.profile.as_ref()), or_dash(node), restarts]
    };
    let rows: Vec<_> = workers.iter().map(row).collect();
    let troubles = workers.iter().filter_map(|worker| Some([worker.trouble.clone()?])).collect::<Vec<_>>();
    table("    ", &rows) + &table("    ", &troubles)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_ready_loads_leaves_or_has_a_reason() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let pods = [
            pod(json!({"metadata": {"name": "chat-a"}, "spec": {"nodeName": "n1", "containers": []},
                "status": {"phase": "Running", "conditions": ready}})),
            pod(json!({"metadata": {"name": "chat-density-b", "labels": {"modelprofile.dev/profile": "density"}},
                "spec": {"nodeName": "n2", "containers": []}, "status": {"phase": "Running", "containerStatuses": [
                    {"name": "worker", "image": "w", "imageID": "", "ready": false, "restartCount": 2, "state": {"running": {}}}]}})),
            pod(json!({"metadata": {"name": "chat-c", "deletionTimestamp": "2026-03-02T10:00:00Z"},
                "status": {"phase": "Running", "conditions": ready}})),
            pod(
                json!({"metadata": {"name": "chat-d"}, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled",
                "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]}}),
            ),
        ];
        let workers: Vec<Worker> = pods.iter().map(|pod| worker(pod, Some("nvidia.com/gpu"))).collect();
        assert_eq!(
            lines(&workers),
            "    chat-a           Ready                   -         on n1
    chat-density-b   Starting                density   on n2   2 restarts
    chat-c           Leaving                 -         -
    chat-d           WaitingForAccelerator   -         -
    chat-d waits for nvidia.com/gpu: no node has enough free; free some, add a node, or lower scaling.minReplicas (0/3 nodes are available: 3 Insufficient nvidia.com/gpu.)
"
        );
    }
}
