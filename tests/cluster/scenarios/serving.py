"""From a manifest to answers, and from load to another profile and back."""

import json
import urllib.request

from basics import expect, run
from world import World


def first_answer(world: World) -> str:
    """A model of deploy/examples is prepared and answers through its Service, and the status tells each step."""
    namespace = world.namespace("first")
    model = world.model(namespace).apply()
    told = set()

    def prepared() -> bool:
        workers, condition = model.pods(), model.condition("Prepared")
        told.add(condition.get("message", ""))
        done = condition.get("status") == "True"
        expect(done or not workers, f"no worker starts before the model is prepared: {condition}")
        return done

    world.wait("the model is prepared", prepared, 240, every=0.5)
    model.serves("quality")
    model.becomes("Available", "True", "WorkerReady")
    model.becomes("QualityGatePassed", "True", "WithinLimits")
    model.becomes("LicenseAccepted", "True", "Matches")
    body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{model.url()}/v1/chat/completions", body, {"Content-Type": "application/json"})

    def answer() -> dict:
        with urllib.request.urlopen(request, timeout=5) as answered:
            return json.load(answered)

    # kube-proxy may not have written its rules yet.
    answered = world.wait("an answer through the Service", answer, 20)
    expect(answered["choices"][0]["message"]["content"], f"an answer has text: {answered}")
    expect(model.events("Preparing"), "an Event tells that it is being prepared")
    table = run("kubectl", "get", "mp", "-n", namespace)
    expect("quality" in table, f"kubectl get mp shows the profile:\n{table}")


SCENARIOS = [first_answer]
