"""The bytes of a snapshot: a safetensors file with facts and a checksum over all."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NamedTuple, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from engines.device.memory_budget import typed_out_of_memory
from engines.errors import SnapshotError

VERSION = 3

MOST_HEADER_BYTES = 8 << 20
"""Of facts and of what the tensors are called: read as JSON, they take many times as much."""

Kind = Literal["exact", "light"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Parts(NamedTuple):
    """Tensors and facts of a snapshot."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def pack(kind: Kind, tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Bytes of tensors and facts, with a checksum over both. Raises DeviceOutOfMemory."""
    # Copies, because a finished block may be both among the recent ones and what went into a sink pass.
    # A view of a window is made whole on its device before it leaves that.
    with typed_out_of_memory("a snapshot"):
        here = {
            name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    text = json.dumps({"version": VERSION, "kind": kind} | facts)
    return safetensors.torch.save(here, {"snapshot": text, "checksum": _checksum(here, text)})


def unpack(data: bytes) -> tuple[Kind, dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of undamaged bytes."""
    length = int.from_bytes(data[:8], "little")
    if MOST_HEADER_BYTES < length <= len(data):
        raise SnapshotError(f"the snapshot's header has {length} bytes; at most {MOST_HEADER_BYTES} are read")
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text, checksum = metadata["snapshot"], metadata["checksum"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{len(data)} bytes are not a snapshot, or not all of one: {error!r}") from error
    if checksum != _checksum(tensors, text):
        raise SnapshotError("the snapshot is damaged: its checksum does not match its content")
    facts = _facts(text)
    return _kind(facts), tensors, facts


def _facts(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot's facts cannot be read: {error}") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise SnapshotError(f"the snapshot is of version {version}; this program reads version {VERSION}")
    return dict(facts)


def _kind(facts: dict[str, Any]) -> Kind:
    for kind in KINDS:
        if facts.get("kind") == kind:
            return kind
    raise SnapshotError(f"the snapshot is of kind {facts.get('kind')!r}; known: {', '.join(KINDS)}")


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 over the facts and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
