"""The Secrets that helm keeps its releases in: its client writes them as protobuf, and reads JSON as well."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

PROTOBUF = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"


def secret(body: bytes) -> dict[str, Any]:
    """The object that a body of protobuf stands for: name, labels, data and type, which is all that helm sets.

    Raises:
        ValueError: it is no Secret.
    """
    if not body.startswith(MAGIC):
        raise ValueError(f"protobuf of Kubernetes begins with {MAGIC!r}, not {body[:4]!r}")
    envelope = dict(_fields(body[len(MAGIC) :]))
    kind = dict(_fields(envelope[1])).get(2, b"").decode()
    if kind != "Secret":
        raise ValueError(f"only a Secret is read from protobuf, not a {kind}")
    fields = list(_fields(envelope[2]))
    single = dict(fields)
    metadata = list(_fields(single[1]))
    return {
        "apiVersion": "v1", "kind": "Secret", "type": single[3].decode(),
        "metadata": {
            "name": dict(metadata)[1].decode(),
            "labels": {key: value.decode() for key, value in _map(metadata, 11)},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in _map(fields, 2)},
    }  # fmt: skip


def _map(fields: list[tuple[int, bytes]], number: int) -> Iterator[tuple[str, bytes]]:
    """A map is a repeated message of a key (1) and a value (2)."""
    for at, entry in fields:
        if at == number:
            pair = dict(_fields(entry))
            yield pair[1].decode(), pair.get(2, b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field that has a length; those of varints are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + value]
            at += value
        elif tag & 7 != 0:
            raise ValueError(f"wire type {tag & 7} is in no Secret")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
