"""A stand-in for a Kubernetes API server, over HTTP on loopback: what helm and kubectl ask of one, and no more.

Nothing acts on the objects: there is no operator, no pod, and no admission but the check that is given. An object
is as it was last applied, since helm is the only one who applies. There are no watches, and no OpenAPI documents:
helm needs `--disable-openapi-validation`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.helm.objects import Objects, Place, Refused
from tests.helm.secret_wire import PROTOBUF, secret

APPLY = "application/apply-patch+yaml"
"""Server-side apply, which is the one kind of patch that helm needs."""

KINDS: dict[str, tuple[str, ...]] = {
    "v1": ("ConfigMap", "PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"),
    "batch/v1": ("Job",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1": ("PodDisruptionBudget",),
    "ray.io/v1": ("RayService",),
    "monitoring.coreos.com/v1": ("PodMonitor",),
    "gateway.networking.k8s.io/v1": ("GRPCRoute", "HTTPRoute"),
}
"""By version: of Kubernetes itself, then of KubeRay, the Prometheus operator and the Gateway API."""

PATH = re.compile(
    r"/apis?/(?P<version>v1|[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[^/]+)(/(?P<name>[^/]+))?"
)


def plural(kind: str) -> str:
    """The name of a kind in paths."""
    return re.sub("ys$", "ies", f"{kind.lower()}s")


def discovery() -> dict[str, dict[str, Any]]:
    """What the server says of itself and of its kinds, by path."""
    groups = [version for version in KINDS if "/" in version]
    answers: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": [
            {"name": group.split("/")[0], "versions": [{"groupVersion": group, "version": group.split("/")[1]}]}
            for group in groups
        ]},
    }  # fmt: skip
    for version, kinds in KINDS.items():
        answers[f"/apis/{version}" if version in groups else "/api/v1"] = {
            "kind": "APIResourceList", "groupVersion": version,
            "resources": [
                {"name": plural(kind), "singularName": kind.lower(), "kind": kind, "namespaced": True,
                 "verbs": ["create", "delete", "get", "list", "patch", "update"]} for kind in kinds
            ],
        }  # fmt: skip
    return answers


class _Handler(BaseHTTPRequestHandler):
    """A connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # An answer is two packets, and 40 ms with it.
    server: _Server

    def do_GET(self) -> None:
        self._answer(lambda place, _: self.server.objects.get(place) if place.name else self._list(place))

    def do_POST(self) -> None:
        self._answer(lambda place, body: self.server.objects.create(place, self._written(body)))

    def do_PUT(self) -> None:
        self._answer(lambda place, body: self.server.objects.put(place, self._written(body)))

    def do_PATCH(self) -> None:
        self._answer(self._apply)

    def do_DELETE(self) -> None:
        self._answer(lambda place, _: self.server.objects.delete(place))

    def _list(self, place: Place) -> dict[str, Any]:
        query = parse_qs(urlsplit(self.path).query)
        if "watch" in query:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed", "this server has no watches")
        asked = query.get("labelSelector", [""])[0]
        labels = dict(label.split("=") for label in asked.split(",") if label)
        (kind,) = (kind for kind in KINDS[place.version] if plural(kind) == place.plural)
        items = self.server.objects.list(place, labels)
        return {"kind": f"{kind}List", "apiVersion": place.version, "metadata": {}, "items": items}

    def _answer(self, answer: Callable[[Place, bytes], dict[str, Any]]) -> None:
        """Answers a request, once its body is read."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        try:
            self._send(HTTPStatus.OK, discovery().get(path) or answer(self._place(path), body))
        except Refused as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refused.code}
            self._send(refused.code, status | {"reason": refused.reason, "message": str(refused)})

    def _place(self, path: str) -> Place:
        found = PATH.fullmatch(path)
        if not found or found["kind"] not in map(plural, KINDS.get(found["version"], ())):
            raise Refused(HTTPStatus.NOT_FOUND, "NotFound", f"the server could not find {path}")
        return Place(found["version"], found["kind"], found["namespace"] or "", found["name"] or "")

    def _written(self, body: bytes) -> dict[str, Any]:
        """What a client wrote as protobuf, or as YAML, which JSON is as well."""
        in_protobuf = self.headers["Content-Type"] == PROTOBUF
        written: dict[str, Any] = secret(body) if in_protobuf else yaml.safe_load(body)
        return written

    def _apply(self, place: Place, body: bytes) -> dict[str, Any]:
        if (kind := self.headers["Content-Type"]) != APPLY:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", f"cannot patch by {kind}")
        return self.server.objects.put(place, self._written(body))

    def _send(self, code: int, answer: Mapping[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the tests' output is theirs."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, objects: Objects) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = objects


@contextmanager
def fake_api(validate: Callable[[Mapping[str, Any]], str | None]) -> Iterator[str]:
    """A server, by its address. It refuses (422) what `validate` finds something wrong with, and says what."""
    with _Server(Objects(validate)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
