"""A session as bytes: what SnapshotSession returns and RestoreSession takes.

magic (8 bytes), SHA-256 of the rest (32), length of the session (8, little endian), session (`pb.Session`), and
the light snapshot of its stream, empty before the first block
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from engines.config.geometry import BlockLengths
from serving.errors import InvalidRequest, LimitReached, TimelineError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import lora_marks, read_cue
from serving.replication.messages import ResumeState, SavedSession, SessionSpec
from serving.session.applied_log import AppliedLog
from serving.session.applied_page import read_number
from serving.session.cue_queue import MAX_PENDING
from serving.session.transitions import applied_as
from serving.session.types import SessionRecord
from serving.timeline.cue import LAST_FRAME, Cue

FORMATS = ("longtks1",)
"""That are read; the first is written."""

MAGIC = FORMATS[0].encode()
HEADER = len(MAGIC) + 32 + 8

MOST_APPLIED = 1 << 20
"""Cues that have applied in a session that is saved or restored: nine days of a prompt in every block."""

MOST_MESSAGES = 4 * MOST_APPLIED
"""Within a session: an applied cue has three, and up to twenty where it blends prompts."""

_Kind: TypeAlias = "Mapping[int, _Kind]"
"""The kinds of messages that one of this kind may hold, by the numbers of its fields."""

_VARINT, _DELIMITED, _FIXED = 0, 2, {1: 8, 5: 4}
"""How fields are written: the wire types, and of those of a fixed size how many bytes they have."""


def _kind(descriptor: Any) -> _Kind:
    return {field.number: _kind(field.message_type) for field in descriptor.fields if field.message_type}


_SESSION = _kind(pb.Session.DESCRIPTOR)


def pack(saved: SavedSession, most_bytes: int) -> bytes:
    """As bytes. Raises LimitReached if there are more than `most_bytes`: `RestoreSession` would refuse them."""
    session = saved.session.SerializeToString()
    body = len(session).to_bytes(8, "little") + session + (saved.stream or b"")
    data = MAGIC + hashlib.sha256(body).digest() + body
    if len(data) > most_bytes:
        cues = f"with {len(saved.session.applied)} applied cues"
        raise LimitReached(f"the snapshot has {len(data)} bytes, {cues}; at most {most_bytes} are taken")
    _require_few(saved.session)
    return data


def unpack(data: bytes) -> SavedSession:
    """Undo `pack`. Raises InvalidRequest for anything else, and LimitReached for what has too many cues."""
    if len(data) < HEADER or not data.startswith(MAGIC):
        raise InvalidRequest(f"{len(data)} bytes are not a session's snapshot; send what SnapshotSession returned")
    digest, body = data[len(MAGIC) : len(MAGIC) + 32], data[len(MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise InvalidRequest("the snapshot is damaged: its checksum does not match its content")
    length = int.from_bytes(body[:8], "little")
    if length > len(body) - 8:
        raise InvalidRequest(f"the snapshot ends within its session, which is said to have {length} bytes")
    written = body[8 : 8 + length]
    try:
        _require_small(written)
        session = pb.Session.FromString(written)
    except (DecodeError, IndexError, ValueError) as error:
        raise InvalidRequest(f"the snapshot's session cannot be read: {error}") from None
    _require_few(session)
    return SavedSession(session, body[8 + length :] or None)


def _require_few(session: pb.Session) -> None:
    if (count := len(session.applied)) > MOST_APPLIED:
        raise LimitReached(f"{count} cues have applied in the session; at most {MOST_APPLIED} are saved")
    if (count := len(session.pending)) > MAX_PENDING:
        raise LimitReached(f"{count} cues are pending in the session; at most {MAX_PENDING} are saved")


def _require_small(session: bytes) -> None:
    """Raise LimitReached for more messages than are parsed: an empty one takes thirty times as many bytes then.

    Raises IndexError or ValueError for what is no message.
    """
    # One loop for all depths: millions are counted in a second or two.
    at, end, inner, count = 0, len(session), _SESSION, 0
    outer: list[tuple[int, _Kind]] = []
    while at < end or outer:
        if at >= end:
            end, inner = outer.pop()
            continue
        tag, at = read_number(session, at)
        if (wire := tag & 7) in _FIXED:
            at += _FIXED[wire]
            continue
        value, at = read_number(session, at)
        if wire == _DELIMITED and (kind := inner.get(tag >> 3)) is not None:
            count += 1
            if count > MOST_MESSAGES:
                raise LimitReached(f"the snapshot's session has too many parts; at most {MOST_MESSAGES} are read")
            outer.append((end, inner))
            end, inner = at + value, kind
        elif wire == _DELIMITED:
            at += value
        elif wire != _VARINT:
            raise ValueError(f"a field of the wire type {wire}")


def restored(saved: SavedSession, spec: SessionSpec) -> ResumeState:
    """From where the session in `saved`, begun as `spec`, goes on. Raises InvalidRequest for what cannot be."""
    try:
        applied = [read_cue(entry.cue) for entry in saved.session.applied]
        pending = [read_cue(cue) for cue in saved.session.pending]
    except TimelineError as error:
        raise InvalidRequest(f"the snapshot's cues cannot be used: {error}") from None
    next_frame, lengths = saved.session.next_frame, spec.stream.blocks
    blocks = lengths.block_at(next_frame)
    _require(next_frame <= LAST_FRAME, f"its next frame is {next_frame}; none is behind {LAST_FRAME}")
    _require(lengths.pixel_frames(blocks) == next_frame, f"no block begins at its next frame, {next_frame}")
    _require((saved.stream is None) == (blocks == 0), f"a stream goes with blocks, and it has {blocks} of them")
    _check_cues(applied, pending, blocks, lengths)
    log = AppliedLog(applied_as(applied, lengths))
    record = SessionRecord.restored(spec.pace, log.tail, pending, next_frame, lengths)
    loras = lora_marks(saved.session.provenance)
    return ResumeState(record, saved.stream, past=log.past(), loras=loras)


def _check_cues(applied: Sequence[Cue], pending: Sequence[Cue], blocks: int, lengths: BlockLengths) -> None:
    frames = [cue.frame for cue in (*applied, *pending)]
    _require(all(before < after for before, after in pairwise(frames)), "its cues are not in order")
    _require(not frames or frames[-1] <= LAST_FRAME, f"a cue lies behind frame {LAST_FRAME}")
    landed = [lengths.block_at(cue.frame) for cue in applied]
    _require(all(before < after for before, after in pairwise(landed)), "two cues have applied with one block")
    _require(landed[:1] == ([0] if blocks else []), f"of {blocks} blocks the first has the first cue")
    _require(all(block < blocks for block in landed), f"a cue has applied behind its {blocks} blocks")
    _require(all(lengths.block_at(cue.frame) >= blocks for cue in pending), "a cue is pending in its past")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise InvalidRequest(f"the snapshot is inconsistent: {problem}")
