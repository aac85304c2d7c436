"""The bytes of a snapshot: a safetensors file with facts and a checksum over all."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from engines.errors import SnapshotError

VERSION = 3


Kind = Literal["exact", "light"]


def pack(kind: Kind, tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Bytes of tensors and facts, with a checksum over both."""
    # Copies, because a finished block may be both among the recent ones and what went into a sink pass.
    here = {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps({"version": VERSION, "kind": kind} | facts)
    return safetensors.torch.save(here, {"snapshot": text, "checksum": _checksum(here, text)})


def unpack(data: bytes) -> tuple[Kind, dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of undamaged bytes."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text, checksum = metadata["snapshot"], metadata["checksum"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise SnapshotError(f"{len(data)} bytes are not a snapshot, or not all of one: {error!r}") from error
    if checksum != _checksum(tensors, text):
        raise SnapshotError("the snapshot is damaged: its checksum does not match its content")
    facts = json.loads(text)
    if facts["version"] != VERSION:
        raise SnapshotError(f"the snapshot is of version {facts['version']}; this program reads version {VERSION}")
    return facts["kind"], tensors, facts


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 over the facts and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
