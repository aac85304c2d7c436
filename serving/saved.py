"""A session as bytes: what SnapshotSession returns and RestoreSession takes.

magic (8 bytes), SHA-256 of the rest (32), length of the session (8, little endian), session (`pb.Session`), and
the light snapshot of its stream, empty before the first block
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from google.protobuf.message import DecodeError

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb

MAGIC = b"longtks1"
HEADER = len(MAGIC) + 32 + 8


class Saved(NamedTuple):
    """A session that goes on later, and its stream's light snapshot (None before the first block)."""

    session: pb.Session
    stream: bytes | None


def pack(saved: Saved) -> bytes:
    """As bytes."""
    session = saved.session.SerializeToString()
    body = len(session).to_bytes(8, "little") + session + (saved.stream or b"")
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(data: bytes) -> Saved:
    """Undo `pack`. Raises InvalidRequest for anything else."""
    if len(data) < HEADER or not data.startswith(MAGIC):
        raise InvalidRequest(f"{len(data)} bytes are not a session's snapshot; send what SnapshotSession returned")
    digest, body = data[len(MAGIC) : len(MAGIC) + 32], data[len(MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise InvalidRequest("the snapshot is damaged: its checksum does not match its content")
    length = int.from_bytes(body[:8], "little")
    if length > len(body) - 8:
        raise InvalidRequest(f"the snapshot ends within its session, which is said to have {length} bytes")
    try:
        session = pb.Session.FromString(body[8 : 8 + length])
    except DecodeError as error:
        raise InvalidRequest(f"the snapshot's session cannot be read: {error}") from None
    return Saved(session, body[8 + length :] or None)
