"""GUIDE.md as a user follows it: every manifest is validated and every command of ours run, in order, as it stands there.

Three things differ. The model is another path, the first layers of the demo's, so that it takes seconds; `evaluate` gives short
answers and hides numbers in one short text, since that model's answers never end; and a file of the repository is named by its
whole path, because the commands run in a folder of their own. What the pipelines for other engines write is then read by
readers that are not ours.
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
# Options that a command gets here beside the guide's.
SHORT = {"evaluate": ["--max-tokens", "16", "--needle", "1024"]}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def text():
    return (ROOT / "GUIDE.md").read_text(encoding="utf-8")


def commands():
    return [line for block in blocks(text(), "sh") for line in block.splitlines()]


def outputs(folder):
    """What the commands leave for readers that are not ours."""
    words = [shlex.split(line) for line in commands()]
    return [folder / line[at + 1] for line in words for at, word in enumerate(line) if word in ("--output", "--report")]


def follow(worker, operator, model, folder):
    """Yields a line for each manifest and command. Exits at the first that does not work."""
    folder.mkdir()
    if not (len(commands()) >= 7 and len(outputs(folder)) >= 4):
        sys.exit(f"error: GUIDE.md has {len(commands())} commands with {len(outputs(folder))} outputs; its pipelines are not found")
    programs = {"modelprofile-worker": worker, "modelprofile": operator}

    def run(*command):
        ran = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True,
                             env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})
        if ran.returncode != 0:
            sys.exit(f"error: GUIDE.md's {' '.join(map(str, command))} failed:\n{ran.stdout}{ran.stderr}")

    for index, manifest in enumerate(blocks(text(), "yaml")):
        file = folder / f"manifest-{index}.yaml"
        file.write_text(manifest, encoding="utf-8")
        run(operator, "validate", "-f", file)
        yield {"guide": "manifest", "valid": True}
    for line in commands():
        words = shlex.split(line)
        if words[0] not in programs:
            sys.exit(f"error: GUIDE.md's command is no program of this repository: {line}")
        if MODEL in words and "--model" not in words:
            sys.exit(f"error: GUIDE.md's command names the model elsewhere than in --model: {line}")
        named = {MODEL: str(model)} | {word: str(ROOT / word) for word in words if (ROOT / word).is_file() and word != MODEL}
        run(programs[words[0]], *(named.get(word, word) for word in words[1:]), *SHORT.get(words[1], []))
        yield {"guide": line}


def results(folder):
    """Yields a line for each result, once the commands have run."""
    for output in outputs(folder):
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
