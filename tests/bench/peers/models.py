"""The models that are measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """`suffix` is that of its keys; `effort` what is asked of a server unless the command line says otherwise."""

    name: str
    title: str
    suffix: str
    effort: str
    # Bytes of all the files that the contestants read, made once under the cache.
    disk_bytes: int

    @property
    def small(self):
        """Overhead decides about its speed, not the machine's limits."""
        return not self.suffix


SMOLLM2 = Model("smollm2", "SmolLM2-135M", "", "full", int(2.5e9))
# Eight times the work a token: half as many requests, and the median over rounds does the rest.
LLAMA_1B = Model("1b", "the shape of Llama-3.2-1B, random weights", "_1b", "short", int(22e9))
BY_NAME = {model.name: model for model in (SMOLLM2, LLAMA_1B)}
