"""What goes wrong is told where people look, and it ends when its cause does."""

import json
import os
import re
import shutil
import time
from pathlib import Path

from basics import ROOT, expect, processes, run
from load import Load
from telling import all_well, column, names, told
from world import MODEL_FILE, World

GPU = "nvidia.com/gpu"
BUDGET = {"memoryBudget": "400Mi"}
NO_IMAGE = "localhost/nothing:1"
ADMIN_PORT = 8001
NODE_ADDRESS = "10.88.0.1"
# The GPUs of these nodes are only counted: a worker that was given one would look for its driver.
ON_CPU = {"type": "Native", "env": [{"name": "MODELPROFILE_DEVICE", "value": "cpu"}]}


def gpu_that_is_missing(world: World) -> str:
    """A worker that finds no free GPU says so, while the model was prepared without one, and starts when there is one."""
    model = world.model(world.namespace("gpus"))
    try:
        world.offer(GPU, 0)
        model.apply(placement={**BUDGET, "acceleratorResource": GPU}, engine=ON_CPU)
        words = (f"waits for {GPU}", "no node has enough free", "add a node", "scaling.minReplicas")
        told(model, "Available", "False", "WaitingForAccelerator", *words)
        told(model, "Degraded", "True", "WaitingForAccelerator", *words)
        model.becomes("Prepared", "True", "Prepared")
        expect(column(model, "READY") == "0", "kubectl get mp shows that none is ready")
        prepare = model.pods("prepare")[0]["spec"]["containers"][0]
        expect(GPU not in str(prepare.get("resources")), f"the preparation asks for no GPU: {prepare}")
        world.offer(GPU, 1)
        begun = time.monotonic()
        all_well(model)
        seconds = time.monotonic() - begun
        model.edit({"scaling": {"minReplicas": 2, "maxReplicas": 2}})
        told(model, "Degraded", "True", "WaitingForAccelerator", *words)
        expect(model.condition("Available")["reason"] == "WorkerReady", "the first one serves on")
        world.offer(GPU, 2)
        all_well(model, replicas=2)
    finally:
        world.offer(GPU, None)
    return f"it served {seconds:.0f} s after a GPU came"


def image_that_is_missing(world: World) -> None:
    """An image that cannot be pulled is told at the first start, and as an edit of a model it stops nobody."""
    namespace = world.namespace("images")
    words = (NO_IMAGE, "cannot be pulled (ErrImageNeverPull)", "check spec.engine.image and spec.engine.imagePullSecrets")
    fresh = world.model(namespace, "fresh").apply(engine={"image": NO_IMAGE})
    old = world.model(namespace, "old").apply(scaling={"minReplicas": 2, "maxReplicas": 2})
    for kind, status in (("Prepared", "False"), ("Available", "False"), ("Degraded", "True")):
        told(fresh, kind, status, "ImagePullFailed", *words)
    expect(not fresh.pods(), "no worker exists before it can work")
    all_well(old, replicas=2)
    before = names(old.pods())
    with Load(old.url(), clients=1, tokens=8, pause=0.3) as load:
        load.wait_for_answers(2)
        old.edit({"engine": {"image": NO_IMAGE}})
        told(old, "Degraded", "True", "ImagePullFailed", *words)
        expect(old.condition("Available")["reason"] == "WorkerReady", "what ran serves on")
        expect(old.condition("Progressing")["reason"] == "Preparing", f"the edit waits: {old.condition('Progressing')}")
        fresh.edit({"engine": {"image": None}})
        all_well(fresh)
        load.wait_for_answers(2)
        old.edit({"engine": {"image": None}})
        all_well(old, replicas=2)
    expect(names(old.pods()) == before, f"no pod was replaced: {before} became {names(old.pods())}")
    expect(not load.outcome.failed and not load.outcome.refused, f"all requests were answered: {load.outcome}")


def licence_that_differs(world: World) -> None:
    """A licence that nobody accepted keeps every worker from existing, and the sentence says what to write."""
    model = world.model(world.namespace("licence"))
    model.apply(model={
        "uri": f"pvc://models/{MODEL_FILE}", "servedName": "smollm2", "maxContextTokens": 2048, "license": {"accepted": "llama3.3"},
    })
    words = ("declares the licence apache-2.0", "spec.model.license.accepted is llama3.3", "write apache-2.0 there")
    told(model, "LicenseAccepted", "False", "Differs", *words, seconds=90)
    told(model, "Prepared", "False", "PrepareFailed", *words)
    told(model, "Degraded", "True", "PrepareFailed", *words)
    expect(not model.pods(), f"no worker exists: {names(model.pods())}")
    model.edit({"model": {"license": {"accepted": "apache-2.0"}}})
    all_well(model)
    model.becomes("LicenseAccepted", "True", "Matches")
    expect(len(model.api.list("jobs", model.namespace)) == 1, "the Job of the refused licence is gone")


def fresh_claim(world: World, namespace: str) -> Path:
    """A claim `fresh` with nothing but the file of the model, and a text."""
    folder = world.scratch / namespace
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(world.volume / MODEL_FILE, folder / MODEL_FILE)
    shutil.copyfile(ROOT / "worker/src/texts/evaluation.txt", folder / "text.txt")
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65532, 65532)
    world.api.create("persistentvolumes", None, {
        "metadata": {"name": f"fresh-{namespace}"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "", "hostPath": {"path": str(folder)}, "claimRef": {"namespace": namespace, "name": "fresh"},
        },
    })
    world.api.create("persistentvolumeclaims", namespace, {
        "metadata": {"name": "fresh"},
        "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": f"fresh-{namespace}",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
    return folder


def preparation_under_way(world: World) -> str:
    """A preparation tells how far it is with each thing that it does, and goes on where it was after it was killed."""
    namespace = world.namespace("preparing")
    folder = fresh_claim(world, namespace)
    try:
        model = world.model(namespace).apply(
            model={
                "uri": f"pvc://fresh/{MODEL_FILE}", "servedName": "smollm2", "maxContextTokens": 2048, "license": {"accepted": "apache-2.0"},
            },
            cache={"persistentVolumeClaim": "fresh"},
            # Many short windows, so that there is something to tell every few seconds.
            quality={"dataset": {"uri": "pvc://fresh/text.txt", "contextTokens": 64, "maxTokens": 1024}},
        )
        seen: list[tuple[str, int]] = []

        def look(enough) -> bool:
            condition = model.condition("Prepared")
            expect(condition.get("reason", "Preparing") == "Preparing", f"it is not at its end yet: {condition}")
            for activity, percent in re.findall(r"quality: (\w+)[^%]*?(\d+) %", condition.get("message", "")):
                if (activity, int(percent)) not in seen[-1:]:
                    seen.append((activity, int(percent)))
            expect(not model.pods(), "no worker starts before all is prepared")
            return enough()

        world.wait("a part of an artifact is written", lambda: look(lambda: layers_done(folder) > 5), 120, every=0.1)
        first = model.pods("prepare")[0]
        os.kill(world.process(first, "modelprofile-worker"), 9)
        world.wait(
            "another pod prepares",
            lambda: look(lambda: [pod for pod in model.pods("prepare") if pod["status"]["phase"] == "Running"]), 60,
        )
        world.wait(
            "percentages that rise, and of another thing then",
            lambda: look(lambda: seen and seen[-1][0] == "measuring" and len([one for one in seen if one[0] == "quantizing"]) >= 2), 300,
        )
        # The new pod says 0 until it has found what is there.
        falls = [(one, after) for one, after in zip(seen, seen[1:]) if one[0] == after[0] and after[1] < one[1]]
        expect(len(falls) <= 1, f"the percentage of one thing does not fall: {seen}")
        second = [pod for pod in model.pods("prepare") if pod["metadata"]["name"] != first["metadata"]["name"]][0]
        log = run("kubectl", "logs", "-n", namespace, second["metadata"]["name"])
        expect("going on with a build that was interrupted" in log, f"it goes on where it was:\n{log}")
        expect(model.events("Preparing"), "an Event tells that it is being prepared")
        api_says = run("kubectl", "modelprofile", "status", model.name, "-n", namespace)
        expect("%" in api_says, f"the plugin shows how far it is:\n{api_says}")
    finally:
        world.api.delete("persistentvolumes", f"fresh-{namespace}")
    return ", ".join(f"{activity} {percent} %" for activity, percent in seen)


def layers_done(folder: Path) -> int:
    """What the journal of a build says, which is replaced after each layer."""
    journals = list((folder / "artifacts").rglob("build.json"))
    return json.loads(journals[0].read_text())["groups"] if journals else 0


def quality_beyond_its_limits(world: World) -> None:
    """Profiles beyond a quality limit serve nobody with Block, are marked with Warn, and other limits count without another pod."""
    model = world.model(world.namespace("gate")).apply(quality={"maxMeanKLDivergence": "0.001", "onFailure": "Block"})
    figures = ("quality is beyond the quality limits", "density is beyond the quality limits", "the limit is 0.001")
    remedy = "raise the limit, give it another method or format, or set spec.quality.onFailure: Warn"
    sentence = told(model, "QualityGatePassed", "False", "BeyondLimits", *figures, remedy, seconds=90)
    # Instruction sets sum in other orders, and FP8's rounding of activations makes a few percent of that.
    measured = re.search(r"quality is beyond the quality limits: its mean KL divergence from the original is (0\.\d+)", sentence)[1]
    expect(0.025 < float(measured) < 0.04, f"the figure is FP8's: {sentence}")
    told(model, "Degraded", "True", "BeyondLimits", *figures)
    told(model, "Available", "False", "BeyondLimits", "density", seconds=90)
    pods = names(model.pods())

    model.edit({"quality": {"maxMeanKLDivergence": "0.01"}})
    model.serves("density", seconds=180)
    told(model, "QualityGatePassed", "False", "BeyondLimits", figures[0], measured, "0.01", "it is kept out of the ladder", remedy, event=False)
    model.edit({"switching": {"mode": "Pinned", "pinnedProfile": "quality"}})
    told(model, "Accepted", "False", "Invalid", "spec.switching.pinnedProfile", "quality", measured)
    refused = run("kubectl", "modelprofile", "pin", model.name, "quality", "-n", model.namespace, check=False)
    expect(measured in refused, f"the plugin says why it does not pin:\n{refused}")
    world.hold("density serves", lambda: model.status()["activeProfile"] == "density", 4)
    model.edit({"switching": {"mode": "Auto", "pinnedProfile": None}})
    model.becomes("Accepted", "True", "Valid")

    model.edit({"quality": {"maxMeanKLDivergence": "0.001", "onFailure": "Warn"}})
    warned = "used all the same, because spec.quality.onFailure is Warn"
    told(model, "QualityGatePassed", "False", "BeyondLimits", *figures, warned, event=False)
    model.serves("quality", seconds=180)
    expect([row["qualityGate"] for row in model.status()["profiles"]] == ["BeyondLimits"] * 2, f"both are marked: {model.status()}")
    model.edit({"quality": {"maxMeanKLDivergence": "0.1", "onFailure": "Block"}})
    model.becomes("QualityGatePassed", "True", "WithinLimits")
    all_well(model)
    expect(names(model.pods()) == pods, f"no pod was replaced: {pods} became {names(model.pods())}")


def metrics_that_are_stale(world: World) -> str:
    """Workers whose load is unknown serve on as they are: the profile is held and none is taken away, until it is known again."""
    model = world.model(world.namespace("stale")).apply(scaling={
        "minReplicas": 2, "maxReplicas": 2, "scaleDown": {"stabilizationWindowSeconds": 1},
    })
    all_well(model, replicas=2)
    model.becomes("MetricsAvailable", "True", "Fresh")
    # As a NetworkPolicy would do it: the kubelet's probes still arrive.
    inside = [("nsenter", "-t", str(min(processes(pod))), "-n", "iptables") for pod in model.pods()]
    rule = ("INPUT", "-p", "tcp", "--dport", str(ADMIN_PORT), "!", "-s", NODE_ADDRESS, "-j", "DROP")
    pods = names(model.pods())
    with Load(model.url(), clients=1, tokens=8, pause=0.3) as load:
        load.wait_for_answers(1)
        begun = time.monotonic()
        for enter in inside:
            run(*enter, "-I", *rule)
        sentence = told(model, "MetricsAvailable", "False", "MetricsUnavailable", "metrics port answers", seconds=60)
        noticed = time.monotonic() - begun
        model.edit({"scaling": {"minReplicas": 1}})
        held = lambda: (model.status()["activeProfile"], len(model.living())) == ("quality", 2)  # noqa: E731
        world.hold(f"quality and both workers ({sentence})", held, 8)
        expect(model.status()["lastDecision"]["reason"] == "MetricsUnavailable", f"the decision says so: {model.status()['lastDecision']}")
        load.wait_for_answers(2)
        for enter in inside:
            run(*enter, "-D", *rule)
        begun = time.monotonic()
        model.becomes("MetricsAvailable", "True", "Fresh")
        again = time.monotonic() - begun
    expect(not load.outcome.failed and not load.outcome.refused, f"all requests were answered: {load.outcome}")
    # Nobody asks any more, so what was held may now go.
    all_well(model, replicas=1, seconds=120)
    expect(names(model.pods()) <= pods, "no pod was replaced")
    return f"told after {noticed:.1f} s, well {again:.1f} s after metrics came back"


def memory_that_is_short(world: World) -> None:
    """A process that was killed for its memory limit says so, while it prepares and while it serves, and a higher limit mends it."""
    limit = lambda amount: {**BUDGET, "resources": {"limits": {"memory": amount}}}  # noqa: E731
    model = world.model(world.namespace("memory")).apply(placement=limit("60Mi"), scaling={"minReplicas": 2, "maxReplicas": 2})
    words = ("was killed for using more memory than its limit", "raise spec.placement.resources.limits.memory")
    told(model, "Prepared", "False", "OutOfMemory", *words)
    told(model, "Degraded", "True", "OutOfMemory", *words)
    model.edit({"placement": limit("1Gi")})
    all_well(model, replicas=2)
    with Load(model.url(), clients=1, tokens=8, pause=0.3) as load:
        load.wait_for_answers(1)
        model.edit({"placement": limit("60Mi")})
        told(model, "Degraded", "True", "OutOfMemory", *words)
        expect(model.condition("Available")["reason"] == "WorkerReady", "the other one serves on")
        load.wait_for_answers(3)
        model.edit({"placement": limit("1Gi")})
        all_well(model, replicas=2)
    expect(not load.outcome.failed and not load.outcome.refused, f"all requests were answered: {load.outcome}")


def worker_that_crashes(world: World) -> str:
    """A worker that ends again and again is told with its exit code and its last words, and told until it is mended."""
    model = world.model(world.namespace("crashes")).apply(engine={"args": ["--no-such-flag"]})
    words = ("exit code 2", "unexpected argument '--no-such-flag' found", "spec.engine.args")
    told(model, "Available", "False", "CrashLoop", *words)
    told(model, "Degraded", "True", "CrashLoop", *words)
    expect(column(model, "READY") == "0", "kubectl get mp shows that none is ready")

    def restarts() -> int:
        return sum(status["restartCount"] for pod in model.living() for status in pod["status"].get("containerStatuses", []))

    def again() -> bool:
        now = model.condition("Available")
        expect(now["reason"] == "CrashLoop", f"it is told all the time: {now}")
        return restarts() >= 2

    world.wait("it is started again and again", again, 90)
    written = len(model.events("CrashLoop"))
    expect(written <= 2, f"the Events do not pile up: {written}")
    model.edit({"engine": {"args": []}})
    all_well(model)
    return f"{written} Events"


SCENARIOS = [
    gpu_that_is_missing, image_that_is_missing, licence_that_differs, preparation_under_way, quality_beyond_its_limits,
    metrics_that_are_stale, memory_that_is_short, worker_that_crashes,
]
