"""Whether people are told: a condition with its sentence, an Event, `kubectl get` and `describe`, the plugin."""

from basics import expect, run
from models import Model


def told(model: Model, kind: str, status: str, reason: str, *words: str, seconds: float = 120, event: bool = True) -> str:
    """The condition gets that status and reason, with a sentence that has all the words; an Event of the same reason has them too, and
    describe and the plugin show it. Returns the sentence. Another sentence with the reason of the one before makes no Event."""
    world = model.world

    def look() -> str | None:
        now = model.condition(kind)
        is_so = (now.get("status"), now.get("reason")) == (status, reason)
        return now["message"] if is_so and all(word in now["message"] for word in words) else None

    try:
        sentence = world.wait(f"{model.name}: {kind}={status} {reason} with {words}", look, seconds)
    except AssertionError as why:
        raise AssertionError(f"{why}; it is {model.condition(kind)}") from None
    expect("\n" not in sentence, f"a sentence has one line: {sentence}")
    expect(model.status()["observedGeneration"] == model.get()["metadata"]["generation"], "the status is of the spec that was applied")
    if event:
        world.wait(
            f"an Event {reason} with {words}",
            lambda: any(all(word in note for word in words) for note in model.events(reason)), 15,
        )
    if kind in ("Available", "Degraded"):
        expect(column(model, kind.upper()) == reason, f"kubectl get mp shows {reason}, not {column(model, kind.upper())}")
    for text in (
        run("kubectl", "describe", "mp", model.name, "-n", model.namespace),
        run("kubectl", "modelprofile", "status", model.name, "-n", model.namespace),
    ):
        for word in (reason, *words):
            expect(word in text, f"“{word}” is not shown:\n{text}")
    return sentence


def column(model: Model, name: str) -> str:
    """What `kubectl get mp` shows there."""
    lines = run("kubectl", "get", "mp", model.name, "-n", model.namespace).splitlines()
    start = lines[0].index(name)
    return lines[1][start:].split("  ")[0].strip()


def all_well(model: Model, profile: str = "quality", replicas: int = 1, seconds: float = 180) -> None:
    """No trouble is left in the status."""
    model.serves(profile, replicas, seconds)
    model.becomes("Degraded", "False", "AsExpected", seconds)
    model.becomes("Progressing", "False", "Stable", seconds)
    model.becomes("Available", "True", "WorkerReady")
    expect(column(model, "READY") == str(replicas), f"kubectl get mp shows {replicas} ready workers")


def names(pods: list[dict]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}
