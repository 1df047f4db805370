use pretty::assert_same;
use serde_json::json;

use super::*;

/// Comparison of large values that shows where they differ.
mod pretty {
    use serde_json::Value;

    pub(super) fn assert_same(found: &Value, expected: &Value) {
        let text = |value: &Value| serde_yaml::to_string(value).unwrap();
        assert_eq!(text(found), text(expected));
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// An object as it is applied, without what all objects have.
fn applied(object: &Object) -> Value {
    let mut value = object.to_value();
    let metadata = value["metadata"].as_object_mut().unwrap();
    metadata.remove("labels");
    metadata.remove("ownerReferences");
    metadata.remove("namespace");
    metadata.remove("annotations");
    sorted(value)
}

fn first_plan(sections: &str) -> Vec<Object> {
    let world = World::new(sections);
    let objects = world.plan().actions.into_iter().map(|action| match action {
        Action::Apply { object, .. } => object,
        other => panic!("{other}"),
    });
    objects.collect()
}

fn find(objects: &[Object], kind: Kind) -> &Object {
    objects.iter().find(|object| object.kind() == kind).unwrap()
}

const FULL: &str = "model: {uri: 'pvc://models/llama', tokenSecretRef: {name: hf, key: token}}
engine: {args: ['--max-running', '32'], env: [{name: RUST_LOG, value: debug}], imagePullSecrets: [{name: pull}]}
profiles: [{name: quality, weights: {format: FP8}}, {name: density, weights: {format: INT4}}]
placement: {memoryBudget: 4Gi, nodeSelector: {disk: fast}, runtimeClassName: '',
  tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}], resources: {limits: {cpu: 2}},
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
    {matchExpressions: [{key: a, operator: Exists}]}]}}}}
cache: {emptyDir: {sizeLimit: 9Gi}}
apiKeysSecretRef: {name: keys}";

#[test]
fn a_first_plan_makes_everything_in_the_order_in_which_it_is_needed() {
    let mut world = World::new("");
    assert_eq!(
        world.pass(),
        [
            "apply ConfigMap llama-worker: it does not exist yet",
            "apply NetworkPolicy llama: it does not exist yet",
            "apply PodDisruptionBudget llama: it does not exist yet",
            "apply Deployment llama: the workers do not exist yet",
            "apply Service llama: clients need an address",
        ]
    );
    assert_eq!(world.plan().to_string(), "nothing to do");
}

#[test]
fn every_object_has_the_labels_and_the_owner() {
    for object in first_plan("cache: {hostPath: /models}") {
        let metadata = object.metadata();
        assert!(owner().owns(metadata), "{}", object.name());
        assert_eq!(metadata.namespace.as_deref(), Some("team"));
        for (key, value) in owner().labels() {
            assert_eq!(metadata.labels.as_ref().unwrap().get(&key), Some(&value), "{key} of {}", object.name());
        }
    }
}

#[test]
fn the_deployment_of_workers_that_change_in_place() {
    let objects = first_plan(FULL);
    let labels = json!({
        "app.kubernetes.io/component": "worker", "app.kubernetes.io/instance": "llama",
        "app.kubernetes.io/managed-by": "modelprofile-operator", "app.kubernetes.io/name": "modelprofile",
        "modelprofile.dev/name": "llama", "modelprofile.dev/set": "in-place",
    });
    let mut found = applied(find(&objects, Kind::Deployment));
    let annotations = found["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
    let names: Vec<_> = annotations.as_object().unwrap().keys().collect();
    assert_eq!(names, ["modelprofile.dev/ladder", "modelprofile.dev/shape"]);
    let probe = |path: &str, period: i32, failures: i32| {
        json!({"httpGet": {"path": path, "port": "admin"}, "periodSeconds": period, "timeoutSeconds": 5,
               "failureThreshold": failures})
    };
    let container = json!({
                    "name": "worker", "image": "modelprofile-worker:1", "command": ["modelprofile-worker"],
                    "args": ["serve", "--config", "/etc/modelprofile/profile.yaml",
                        "--start-profile-file", "/etc/modelprofile/start-profile",
                        "--host", "0.0.0.0", "--port", "8000", "--admin-port", "8001",
                        "--cache", "/cache", "--volumes", "/volumes",
                        "--admin-keys", "/etc/modelprofile/admin-keys", "--admin-audience", "team/llama/u-1",
                        "--drain-seconds", "90", "--api-keys-dir", "/etc/modelprofile-keys", "--max-running", "32"],
                    "env": [
                        {"name": "MODELPROFILE_DEVICE", "value": "cpu"},
                        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
                        {"name": "RUST_LOG", "value": "debug"},
                    ],
                    "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"},
                              {"name": "admin", "containerPort": 8001, "protocol": "TCP"}],
                    "startupProbe": probe("/livez", 2, 150),
                    "livenessProbe": probe("/livez", 10, 6),
                    "readinessProbe": probe("/readyz", 2, 2),
                    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                    "resources": {"requests": {"memory": "4Gi"}, "limits": {"cpu": "2"}},
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                                        "readOnlyRootFilesystem": true},
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "cache", "mountPath": "/cache"},
                        {"name": "config", "mountPath": "/etc/modelprofile", "readOnly": true},
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "keys", "mountPath": "/etc/modelprofile-keys", "readOnly": true},
                        {"name": "volume-0", "mountPath": "/volumes/models", "readOnly": true},
                    ],
    });
    let volumes = json!([
                    {"name": "cache", "emptyDir": {"sizeLimit": "9Gi"}},
                    {"name": "config", "configMap": {"name": "llama-worker"}},
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 288}},
                    {"name": "volume-0", "persistentVolumeClaim": {"claimName": "models"}},
    ]);
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "llama"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {
                "app.kubernetes.io/component": "worker", "app.kubernetes.io/instance": "llama",
                "app.kubernetes.io/name": "modelprofile", "modelprofile.dev/set": "in-place",
            }},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "progressDeadlineSeconds": 3600,
            "revisionHistoryLimit": 2,
            "template": {"metadata": {"labels": labels}, "spec": {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "imagePullSecrets": [{"name": "pull"}],
                "nodeSelector": {"disk": "fast"},
                "securityContext": {
                    "fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch", "runAsGroup": 65532,
                    "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationGracePeriodSeconds": 120,
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "containers": [container],
                "volumes": volumes,
            }},
        },
    });
    assert_same(&found, &sorted(expected));
}

#[test]
fn the_service_and_what_protects_the_pods() {
    let objects = first_plan("");
    let workers = json!({"app.kubernetes.io/component": "worker", "app.kubernetes.io/instance": "llama",
                         "app.kubernetes.io/name": "modelprofile"});
    let mut in_place = workers.clone();
    in_place["modelprofile.dev/set"] = json!("in-place");
    assert_same(
        &applied(find(&objects, Kind::Service)),
        &sorted(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "llama"}, "spec": {
            "type": "ClusterIP", "selector": in_place,
            "ports": [{"name": "http", "port": 8000, "protocol": "TCP", "targetPort": "http"}],
        }})),
    );
    assert_same(
        &applied(find(&objects, Kind::PodDisruptionBudget)),
        &sorted(
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "llama"}, "spec": {
                "maxUnavailable": 1, "selector": {"matchLabels": workers}, "unhealthyPodEvictionPolicy": "AlwaysAllow",
            }}),
        ),
    );
    assert_same(
        &applied(find(&objects, Kind::NetworkPolicy)),
        &sorted(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "llama"}, "spec": {
                "podSelector": {"matchLabels": {"app.kubernetes.io/instance": "llama", "app.kubernetes.io/name": "modelprofile"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"ports": [{"port": 8000, "protocol": "TCP"}]},
                    {"ports": [{"port": 8001, "protocol": "TCP"}], "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "modelprofile-system"}},
                         "podSelector": {"matchLabels": {"app.kubernetes.io/name": "modelprofile-operator"}}},
                        {"namespaceSelector": {"matchLabels": {"metrics": "yes"}}},
                    ]},
                ],
            }}),
        ),
    );
}

#[test]
fn the_config_map_has_the_manifest_the_profile_to_start_in_and_the_keys() {
    let objects = first_plan("");
    let Object::ConfigMap(map) = find(&objects, Kind::ConfigMap) else { panic!("it is one") };
    let data = map.data.clone().unwrap();
    let text = valid("").text().to_owned();
    let pairs = [("admin-keys", "KEY\n"), ("profile.yaml", &text), ("start-profile", "quality")];
    assert_eq!(data, pairs.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
}

#[test]
fn pods_that_serve_one_profile_start_in_it_whatever_is_decided_meanwhile() {
    let mut world = World::serving("switching: {strategy: Surge}");
    world.want("density");
    world.pass();
    let data = world.facts.existing.config_map.as_ref().unwrap().data.clone().unwrap();
    assert_eq!((&*data["start-profile.quality"], &*data["start-profile.density"]), ("quality", "density"));
    let args = &world.deployment("llama-quality")["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(args[4], "/etc/modelprofile/start-profile.quality");
    let labels = &world.deployment("llama-density")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["modelprofile.dev/profile"], "density");
}

#[test]
fn the_job_prepares_before_any_pod_starts_and_asks_for_no_accelerator() {
    let sections = "cache: {persistentVolumeClaim: cache}
placement: {acceleratorResource: nvidia.com/gpu, resources: {requests: {memory: 8Gi, nvidia.com/gpu: 1}}}";
    let mut world = World::new(sections);
    let job = owner().job(&prepare::key(&world.valid));
    let objects = first_plan(sections);
    let kinds: Vec<_> = objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, [Kind::ConfigMap, Kind::NetworkPolicy, Kind::PodDisruptionBudget, Kind::Job, Kind::Service]);
    let found = applied(find(&objects, Kind::Job));
    let container = &found["spec"]["template"]["spec"]["containers"][0];
    let file = format!("/etc/modelprofile/{}", prepare::file(&world.valid));
    assert_eq!(
        container["args"],
        json!([
            "prepare",
            "--config",
            file,
            "--cache",
            "/cache",
            "--volumes",
            "/volumes",
            "--host",
            "0.0.0.0",
            "--admin-port",
            "8001",
            "--admin-keys",
            "/etc/modelprofile/admin-keys",
            "--admin-audience",
            "team/llama/u-1",
            "--device",
            "cpu",
            "--activations",
            "bf16"
        ])
    );
    assert_eq!(container["resources"], json!({"requests": {"memory": "8Gi"}}));
    assert_eq!(found["metadata"]["name"], json!(job));
    assert_eq!(found["spec"]["template"]["spec"]["restartPolicy"], "Never");
    world.pass();
    assert_eq!(
        waits(&world.plan()),
        [format!("Job {job} prepares what the pods need"), "the workers start when what they need is prepared".into()]
    );
    world.finish_jobs("Complete");
    world.pass();
    assert_eq!(world.deployments(), ["llama"]);
}

#[test]
fn a_job_is_another_one_for_what_shapes_its_work_and_the_same_for_the_rest() {
    let key = |sections: &str| prepare::key(&valid(&format!("cache: {{hostPath: /m}}\n{sections}")));
    let same = ["", "scaling: {maxReplicas: 3}", "quality: {onFailure: Warn}", "switching: {mode: Recommend}"];
    assert_eq!(same.map(key), [""; 4].map(key));
    let other = [
        "",
        "engine: {image: other}",
        "model: {uri: 'pvc://models/llama', license: {accepted: mit}}",
        "profiles: [{name: quality, weights: {format: BF16}}]",
        "quality: {dataset: {uri: 'pvc://texts/a'}}",
        "placement: {acceleratorResource: nvidia.com/gpu}",
    ];
    let keys: std::collections::BTreeSet<_> = other.map(key).into();
    assert_eq!(keys.len(), other.len());
    assert!(!prepare::needed(&valid("")), "a cache that goes with its pod is filled by it");
}

#[test]
fn what_somebody_changes_is_put_back_and_what_the_server_adds_is_left() {
    let mut world = World::serving("");
    let service = world.facts.existing.service.as_mut().unwrap().spec.as_mut().unwrap();
    service.cluster_ip = Some("10.0.0.1".into());
    service.session_affinity = Some("None".into());
    let deployment = world.facts.existing.deployments.get_mut("llama").unwrap();
    deployment
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("deployment.kubernetes.io/revision".into(), "1".into());
    assert_eq!(world.plan(), Plan::default());
    let spec = &mut world.facts.existing.deployments.get_mut("llama").unwrap().spec;
    spec.template.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    assert_eq!(
        world.pass(),
        ["apply Deployment llama: spec.template.spec.containers.worker.image was changed by somebody else"]
    );
}

#[test]
fn a_manifest_that_can_not_be_carried_out_is_refused_with_every_reason() {
    let sections = "model: {uri: 'file://./model.gguf'}
placement: {affinity: {nodeAfinity: {a: b}}}";
    let errors = Valid::new(owner(), manifest(sections), &options()).unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "spec.model.uri: a relative path starts nowhere in a pod; write file:///PATH, or pvc://CLAIM/PATH",
            "spec.placement.affinity.nodeAfinity: the affinity of a PodSpec has no such field; correct its name, or remove it",
        ]
    );
}

#[test]
fn a_worker_computes_on_the_accelerators_that_its_pod_has_and_on_no_others() {
    let device = |sections: &str| {
        let pod = applied(find(&first_plan(sections), Kind::Deployment))["spec"]["template"]["spec"].clone();
        let env = pod["containers"][0]["env"].as_array().unwrap().clone();
        let devices = env.into_iter().filter(|variable| variable["name"] == "MODELPROFILE_DEVICE");
        devices.map(|variable| variable["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(device("placement: {acceleratorResource: nvidia.com/gpu}"), ["cuda"]);
    assert_eq!(device(""), ["cpu"]);
    let own = "placement: {acceleratorResource: nvidia.com/gpu}
engine: {env: [{name: MODELPROFILE_DEVICE, value: auto}]}";
    assert_eq!(device(own), ["auto"], "the manifest's comes before the operator's");

    let prepares = |sections: &str| super::super::engine::preparing(valid(sections).manifest()).join(" ");
    let accelerated = "--device cpu --activations bf16";
    assert_eq!(prepares(""), "--device cpu");
    assert_eq!(prepares("placement: {acceleratorResource: nvidia.com/gpu}"), accelerated);
    assert_eq!(prepares(own), accelerated);
    for cpu in ["args: [--device, cpu]", "args: [--device=cpu]", "env: [{name: MODELPROFILE_DEVICE, value: cpu}]"] {
        let own = format!("placement: {{acceleratorResource: nvidia.com/gpu}}\nengine: {{{cpu}}}");
        assert_eq!(prepares(&own), "--device cpu", "{cpu}");
    }
}

#[test]
fn tensor_parallelism_sets_accelerators_shared_memory_and_flags() {
    let sections = "engine: {type: VLLM}
model: {uri: 'pvc://cache/llama'}
profiles: [{name: quality, weights: {format: BF16}, tensorParallel: 2}, {name: density, weights: {format: FP8}}]
switching: {strategy: Surge}
placement: {acceleratorResource: nvidia.com/gpu, runtimeClassName: nvidia}
cache: {persistentVolumeClaim: cache}
quality: {onFailure: Warn}";
    let mut world = World::serving(sections);
    world.want("density");
    world.pass();
    let pod = |name: &str| world.deployment(name)["spec"]["template"]["spec"].clone();
    let (quality, density) = (pod("llama-quality"), pod("llama-density"));
    let count = |pod: &Value| pod["containers"][0]["resources"].clone();
    let gpus = |number: &str| json!({"limits": {"nvidia.com/gpu": number}, "requests": {"nvidia.com/gpu": number}});
    assert_eq!((count(&quality), count(&density)), (gpus("2"), gpus("1")));
    assert_eq!(quality["volumes"][3], json!({"name": "shm", "emptyDir": {"medium": "Memory"}}));
    assert_eq!(density["volumes"].as_array().unwrap().len(), 3);
    let mounts = json!([
        {"name": "cache", "mountPath": "/cache"},
        {"name": "config", "mountPath": "/etc/modelprofile", "readOnly": true},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": "/volumes/cache", "readOnly": true},
    ]);
    assert_eq!(quality["containers"][0]["volumeMounts"], mounts);
    assert_eq!(quality["runtimeClassName"], "nvidia");
    let args = quality["containers"][0]["args"].as_array().unwrap();
    assert!(args.windows(2).any(|pair| pair == [json!("--tensor-parallel-size"), json!("2")]), "{args:?}");
}

#[test]
fn accelerators_that_share_a_model_come_to_one_worker_with_shared_memory() {
    let sections = |placement: &str| {
        format!(
            "profiles: [{{name: quality, weights: {{format: FP8}}, tensorParallel: 2}}, {{name: density, weights: {{format: INT4}}, \
             tensorParallel: 2}}]\n{placement}"
        )
    };
    let objects = first_plan(&sections("placement: {acceleratorResource: nvidia.com/gpu}"));
    let pod = applied(find(&objects, Kind::Deployment))["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    let gpus = json!({"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}});
    assert_eq!(container["resources"], gpus);
    let env = json!([{"name": "MODELPROFILE_DEVICE", "value": "cuda"}, {"name": "NCCL_DEBUG", "value": "WARN"}]);
    assert_eq!(container["env"], env);
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.contains(&json!({"name": "shm", "emptyDir": {"medium": "Memory"}})), "{volumes:?}");
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(mounts.contains(&json!({"name": "shm", "mountPath": "/dev/shm"})), "{mounts:?}");

    let errors = Valid::new(owner(), manifest(&sections("")), &options()).unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("spec.profiles[0].tensorParallel: is 2, but there are no accelerators"), "{lines:?}");
}

#[test]
fn an_engine_that_does_not_quantize_has_a_job_for_what_is_fetched_only() {
    let sections = |uri: &str| {
        format!(
            "engine: {{type: VLLM}}\nmodel: {{uri: '{uri}'}}\nprofiles: [{{name: quality, weights: {{format: BF16}}}}]
switching: {{strategy: Recreate}}\ncache: {{hostPath: /models}}\nquality: {{onFailure: Warn}}"
        )
    };
    assert!(!prepare::needed(&valid(&sections("pvc://models/llama"))));
    let commit = "6f6073b423013f6a7d4d9f39144961bfbfbc386b";
    let fetched = valid(&sections("hf://a/b").replace("'hf://a/b'", &format!("'hf://a/b', revision: {commit}")));
    assert!(prepare::needed(&fetched));
    let job = Object::from(prepare::job(&fetched, &options())).to_value();
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "modelprofile-worker:1");
    assert_eq!(container["args"].as_array().unwrap().last().unwrap(), "--fetch-only");
}
