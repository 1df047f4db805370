"""Every status that a ModelProfile has in the course of something. Looking now and then would miss the short ones, and the order in
which things happened is what a person reads the status for."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable

from basics import Unmet
from models import Model


class Story:
    """`with Story(model) as story: ...` watches; the status as it was at the start is the first one."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.statuses: list[dict] = []
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> "Story":
        api, model = self.model.api, self.model
        self.connection = http.client.HTTPSConnection(api.host, api.port, timeout=600, context=api.tls)
        path = api.path("modelprofiles", model.namespace) + f"?watch=true&fieldSelector=metadata.name%3D{model.name}"
        self.connection.request("GET", path, headers={"Authorization": f"Bearer {api.token}"})
        self.thread.start()
        self.model.world.wait("the first line of the watch", lambda: self.statuses, 10, every=0.05)
        return self

    def __exit__(self, *_: object) -> None:
        # What happened last is still on its way.
        time.sleep(0.2)
        if self.connection is not None and self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)

    def _watch(self) -> None:
        try:
            for line in self.connection.getresponse():
                self.statuses.append(json.loads(line)["object"].get("status", {}))
        except (OSError, ValueError, http.client.HTTPException):
            # The end of the `with`; a watch that broke before misses what is asked of it.
            pass

    def profiles(self) -> list[str]:
        """Active profiles in their order, each once for as long as it stayed."""
        return self.of(lambda status: status.get("activeProfile"))

    def decisions(self) -> list[str]:
        """Decisions in their order, as `Hold WithinTargets`."""
        def words(status: dict) -> str | None:
            decision = status.get("lastDecision")
            return decision and f"{decision['action']} {decision['reason']}"

        return self.of(words)

    def sentences(self, reason: str) -> list[str]:
        """What the status said with this reason."""
        of = (status.get("lastDecision", {}) for status in self.statuses)
        return [decision["message"] for decision in of if decision.get("reason") == reason]

    def tells(self, *wanted: str) -> None:
        """These decisions were made in this order, whatever else was in between."""
        told = iter(self.decisions())
        for decision in wanted:
            if decision not in told:
                raise Unmet(f"{self.model.name}: in this order the decisions {list(wanted)}; there were {self.decisions()}")

    def of(self, look: Callable[[dict], object]) -> list:
        """What `look` finds in the statuses, each once for as long as it stayed; None is left out."""
        found: list = []
        for status in list(self.statuses):
            value = look(status)
            if value is not None and found[-1:] != [value]:
                found.append(value)
        return found
