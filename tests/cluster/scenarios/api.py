"""A small client of the API server: one kept connection, objects as dictionaries. A kubectl process for each look would cost a
tenth of a second of the processor that the cluster itself needs."""

import base64
import http.client
import json
import os
import ssl
import threading
import urllib.parse
from pathlib import Path

GROUPS = {
    "modelprofiles": "apis/modelprofile.dev/v1alpha1",
    "deployments": "apis/apps/v1", "replicasets": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "endpointslices": "apis/discovery.k8s.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
    "customresourcedefinitions": "apis/apiextensions.k8s.io/v1",
    # Of the newer API, which has the sentence in `note`.
    "events": "apis/events.k8s.io/v1",
}
CLUSTER_SCOPED = {"nodes", "namespaces", "persistentvolumes", "customresourcedefinitions"}


class Failed(Exception):
    """An answer that is none of success; `code` is its status, 0 without an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class Api:
    def __init__(self, kubeconfig: str | None = None, token: str | None = None) -> None:
        # The cluster writes it as JSON.
        config = json.loads(Path(kubeconfig or os.environ["KUBECONFIG"]).read_text())
        cluster = config["clusters"][0]["cluster"]
        server = urllib.parse.urlsplit(cluster["server"])
        self.host, self.port = server.hostname, server.port
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.tls = ssl.create_default_context(cadata=authority)
        self.token = token or config["users"][0]["user"]["token"]
        self.kept = threading.local()

    def call(self, method: str, path: str, body: object = None, kind: str = "application/json") -> str:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body)
        for attempt in (1, 2):
            connection = getattr(self.kept, "connection", None)
            if connection is None:
                connection = http.client.HTTPSConnection(self.host, self.port, timeout=20, context=self.tls)
                self.kept.connection = connection
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                text = answer.read().decode()
                break
            except (OSError, http.client.HTTPException) as why:
                connection.close()
                self.kept.connection = None
                # A kept connection may have been closed by the other side.
                if attempt == 2:
                    raise Failed(0, f"{method} {path}: {why}") from None
        if answer.status >= 400:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError):
                message = text.strip()
            raise Failed(answer.status, f"{method} {path}: {message}")
        return text

    @staticmethod
    def path(resource: str, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        parts = ["", GROUPS.get(resource, "api/v1")]
        if namespace is not None and resource not in CLUSTER_SCOPED:
            parts += ["namespaces", namespace]
        return "/".join(parts + [resource] + [part for part in (name, sub) if part])

    def get(self, resource: str, name: str, namespace: str | None = None) -> dict | None:
        """None if there is none."""
        try:
            return json.loads(self.call("GET", self.path(resource, namespace, name)))
        except Failed as why:
            if why.code == 404:
                return None
            raise

    def list(self, resource: str, namespace: str | None = None, selector: str = "") -> list[dict]:
        query = "?labelSelector=" + urllib.parse.quote(selector) if selector else ""
        return json.loads(self.call("GET", self.path(resource, namespace) + query))["items"]

    def create(self, resource: str, namespace: str | None, value: dict) -> dict:
        return json.loads(self.call("POST", self.path(resource, namespace), value))

    def patch(self, resource: str, name: str, namespace: str | None, value: dict, sub: str | None = None) -> dict:
        """A merge patch."""
        path = self.path(resource, namespace, name, sub)
        return json.loads(self.call("PATCH", path, value, "application/merge-patch+json"))

    def delete(self, resource: str, name: str, namespace: str | None = None, grace: int | None = None) -> None:
        body = {} if grace is None else {"gracePeriodSeconds": grace}
        try:
            self.call("DELETE", self.path(resource, namespace, name), {**body, "propagationPolicy": "Background"})
        except Failed as why:
            if why.code != 404:
                raise
