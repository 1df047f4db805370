"""GUIDE.md as a user follows it: every manifest is validated and every command of ours run, in order, as it stands there.

Two things differ. The model is another path, the first layers of the demo's, so that it takes seconds; and a file of the
repository is named by its whole path, because the commands run in a folder of their own. What the pipelines for other
engines write is then read by readers that are not ours.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gguf

import check_hub

ROOT = Path(__file__).resolve().parents[2]
MODEL = "models/SmolLM2-135M-Instruct-Q4_1.gguf"


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def check(worker, operator, model, folder):
    """Yields a line for each manifest, command and result. Exits at the first that does not work."""
    folder.mkdir()
    guide = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
    programs = {"modelprofile-worker": worker, "modelprofile": operator}

    def run(*command):
        ran = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True,
                             env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})
        if ran.returncode != 0:
            sys.exit(f"error: GUIDE.md's {' '.join(map(str, command))} failed:\n{ran.stdout}{ran.stderr}")

    for index, manifest in enumerate(blocks(guide, "yaml")):
        file = folder / f"manifest-{index}.yaml"
        file.write_text(manifest, encoding="utf-8")
        run(operator, "validate", "-f", file)
        yield {"guide": "manifest", "valid": True}
    outputs = []
    commands = [line for block in blocks(guide, "sh") for line in block.splitlines()]
    for line in commands:
        words = shlex.split(line)
        if words[0] not in programs:
            sys.exit(f"error: GUIDE.md's command is no program of this repository: {line}")
        if MODEL in words and "--model" not in words:
            sys.exit(f"error: GUIDE.md's command names the model elsewhere than in --model: {line}")
        named = {MODEL: str(model)} | {word: str(ROOT / word) for word in words if (ROOT / word).is_file() and word != MODEL}
        run(programs[words[0]], *(named.get(word, word) for word in words[1:]))
        yield {"guide": line}
        outputs += [folder / words[at + 1] for at, word in enumerate(words) if word in ("--output", "--report")]
    if not (len(commands) >= 7 and len(outputs) >= 4):
        sys.exit(f"error: GUIDE.md has {len(commands)} commands with {len(outputs)} outputs; its pipelines are not found")
    for output in outputs:
        yield {"guide": output.name, "read": read(output)}


def read(output):
    """What a foreign reader finds in a result."""
    if output.is_dir():
        return len(check_hub.check(output, None))
    if output.suffix == ".gguf":
        found = gguf.GGUFReader(output)
        kinds = {tensor.tensor_type.name for tensor in found.tensors}
        expected = re.search(r"q\d_[k0]", output.stem.lower()).group().upper()
        if expected not in kinds:
            sys.exit(f"error: {output} has no tensor of {expected}: {sorted(kinds)}")
        return len(found.tensors)
    text = output.read_text(encoding="utf-8")
    if "<svg" not in text:
        sys.exit(f"error: {output} has no plots")
    return len(text)
