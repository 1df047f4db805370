"""How much a server is asked for when it is measured: requests for each number of streams, and their lengths."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Effort:
    """`requests[n]` at n streams, each `prompt_tokens` in and `output_tokens` out; `prefills` prompts of each length."""

    requests: dict
    prefills: int
    prompt_tokens: int = 256
    output_tokens: int = 128

    def count(self, streams):
        """Requests of a level; one that is not listed keeps each stream busy twice."""
        return self.requests.get(streams, 2 * streams)


EFFORTS = {
    # Enough that every stream runs at least twice, and that one stream is not over in a moment.
    "full": Effort({1: 6, 4: 12, 8: 24, 16: 48}, prefills=5),
    # For a large model or a look after a change: every stream runs once, and the median over rounds does the rest.
    "short": Effort({1: 2, 4: 4, 8: 8, 16: 16}, prefills=2),
    # Shows that everything works; a result it is not.
    "quick": Effort({1: 1, 4: 4, 8: 8, 16: 16}, prefills=1, prompt_tokens=64, output_tokens=16),
}
