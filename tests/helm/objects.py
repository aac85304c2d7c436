"""The objects of the stand-in for a Kubernetes API server, and what may happen to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from threading import Lock
from typing import Any, NamedTuple

Object = dict[str, Any]

IMMUTABLE = {"Job": ("template",), "PersistentVolumeClaim": ("accessModes", "storageClassName", "volumeMode")}
"""What of an object's `spec` a real server lets nobody change."""


class Refused(Exception):
    """A request is refused: code, reason and message are those of a Kubernetes `Status`."""

    def __init__(self, code: HTTPStatus, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Place(NamedTuple):
    """Where an object is; without a name, all of a kind, and without a namespace, of all namespaces."""

    version: str
    plural: str
    namespace: str
    name: str


class Objects:
    """What has been created and not deleted. Requests come from several threads."""

    def __init__(self, validate: Callable[[Mapping[str, Any]], str | None]) -> None:
        self._validate = validate
        self._objects: dict[Place, Object] = {}
        self._written = 0
        self._lock = Lock()

    def get(self, place: Place) -> Object:
        """The object that is there."""
        if place not in self._objects:
            raise Refused(HTTPStatus.NOT_FOUND, "NotFound", f'{place.plural} "{place.name}" not found')
        return self._objects[place]

    def list(self, place: Place, labels: Mapping[str, str]) -> list[Object]:
        """All of a kind that have these labels, and perhaps others."""
        with self._lock:
            return [
                found for at, found in self._objects.items()
                if at[:2] == place[:2] and place.namespace in ("", at.namespace)
                and labels.items() <= found["metadata"].get("labels", {}).items()
            ]  # fmt: skip

    def create(self, place: Place, new: Object) -> Object:
        """Puts an object where none is."""
        place = place._replace(name=new["metadata"]["name"])
        if place in self._objects:
            raise Refused(HTTPStatus.CONFLICT, "AlreadyExists", f'{place.plural} "{place.name}" already exists')
        return self.put(place, new)

    def put(self, place: Place, new: Object) -> Object:
        """Puts an object where none is, or in the place of the one that is."""
        with self._lock:
            old = self._objects.get(place)
            if wrong := self._validate(new) or (old and _changed(old, new)):
                message = f'{new["kind"]} "{place.name}" is invalid: {wrong}'
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", message)
            self._written += 1
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            born = old["metadata"] if old else {"uid": str(uuid.uuid4()), "creationTimestamp": now}
            metadata = {
                **new["metadata"], "namespace": place.namespace, "resourceVersion": str(self._written),
                "uid": born["uid"], "creationTimestamp": born["creationTimestamp"],
            }  # fmt: skip
            self._objects[place] = {**new, "metadata": metadata}
            return self._objects[place]

    def delete(self, place: Place) -> Object:
        """Removes an object at once: none has a finalizer."""
        with self._lock:
            self.get(place)
            return self._objects.pop(place)


def _changed(old: Object, new: Object) -> str | None:
    """What the new object would change and must not."""
    fields = IMMUTABLE.get(new["kind"], ())
    changed = [f"spec.{field}" for field in fields if old["spec"].get(field) != new["spec"].get(field)]
    return f"{', '.join(changed)}: field is immutable" if changed else None
