"""A model of an engine that is not ours: llama.cpp, played by images/llama-server.c."""

import os
import shutil

from basics import ROOT, run
from models import Model
from world import World


FORMATS = {"quality": "Q8_0", "density": "Q4_K_M"}


def llama(world: World, namespace: str, name: str = "llama", *, strategy: str, replicas: int = 1) -> Model:
    """Applies one, pinned to `quality`."""
    load_image(world, "test")
    for profile in FORMATS:
        write(world, profile, "what the stand-in loads")
    kv = {"format": "FP16"}
    return world.model(namespace, name).apply(
        model={
            "uri": "pvc://models/llama-{format}.gguf", "servedName": "smollm2", "maxContextTokens": 2048,
            "license": {"accepted": "apache-2.0"},
        },
        engine={"type": "LlamaCpp", "image": "localhost/modelprofile-llama-server:test"},
        profiles=[{"name": name, "weights": {"format": kind}, "kvCache": kv} for name, kind in FORMATS.items()],
        switching={"mode": "Pinned", "pinnedProfile": "quality", "strategy": strategy},
        scaling={"minReplicas": replicas, "maxReplicas": replicas},
        quality={"onFailure": "Warn"},
        placement={},
    )


def write(world: World, profile: str, text: str) -> None:
    """The model file of a profile. With `broken` a pod gets ready and answers no request, until it says something else."""
    file = world.volume / f"llama-{FORMATS[profile]}.gguf"
    file.write_text(f"{text}\n")
    os.chown(file, 65532, 65532)


def load_image(world: World, tag: str) -> None:
    """Compiled by cc, which the cluster itself needs for its pause image; static, so that the image is one file."""
    program = world.scratch / "llama-server"
    if not program.exists():
        source = ROOT / "tests/cluster/images/llama-server.c"
        run(shutil.which("cc") or "cc", "-O1", "-static", "-s", "-pthread", "-o", str(program), str(source))
    world.image("llama-server", tag, program=program)
