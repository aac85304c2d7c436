"""A session that comes from another server: with its id, its caller, and all that its clients know of it."""

from __future__ import annotations

from dataclasses import replace

from serving.errors import InvalidRequest
from serving.gateway.session_snapshot import pack, restored
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.evacuated import read_answered, read_chunks
from serving.replication.messages import Departure, ResumeState, SavedSession, SessionSpec
from serving.session.types import Pending, SessionRecord, State

CAME = "another server: all sessions of its own go there"
"""Why the session goes on elsewhere."""

_OPEN = (State.CREATED, State.READY, State.RUNNING, State.PAUSED)


def evacuated(departure: Departure, most_bytes: int) -> pb.EvacuatedSession:
    """To be sent. Raises LimitReached for a snapshot of more than `most_bytes`."""
    whole = pb.EvacuatedSession(snapshot=pack(departure.saved, most_bytes))
    whole.MergeFrom(departure.rest)
    return whole


def arrived(evacuated: pb.EvacuatedSession, saved: SavedSession, spec: SessionSpec) -> ResumeState:
    """From where the session in `saved`, which is that of `evacuated`, goes on as it was.

    Raises InvalidRequest for what cannot have been.
    """
    resume, session = restored(saved, spec), saved.session
    record = replace(
        resume.record,
        state=_state(session, resume.record),
        take=session.take,
        shown=min(session.shown_frame, resume.record.delivered_frames - 1),
        pending=_pending(evacuated, resume.record),
        receipts=read_answered(evacuated),
        controller=evacuated.controller,
        seq=evacuated.seq,
    )
    return replace(resume, record=record, chunks=read_chunks(evacuated, session.next_frame), reason=CAME)


def _state(session: pb.Session, record: SessionRecord) -> State:
    state = next((state for state in _OPEN if state.value == session.state), None)
    has_begun = record.next_block > 0
    if state is None or session.take < 0 or (has_begun and state not in (State.RUNNING, State.PAUSED)):
        begun = f"{record.next_block} blocks"
        raise InvalidRequest(f"no session is in state {session.state} of take {session.take} with {begun}")
    return state


def _pending(evacuated: pb.EvacuatedSession, record: SessionRecord) -> tuple[Pending, ...]:
    names, pending = evacuated.pending_command_ids, record.pending
    if len(names) != len(pending):
        raise InvalidRequest(f"{len(names)} commands have scheduled the {len(pending)} cues that are pending")
    return tuple(Pending(found.cue, name) for found, name in zip(pending, names, strict=True))
