"""A session's record as it was before an earlier block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.config.geometry import BlockLengths
from serving.session.applied_log import AppliedLog
from serving.session.cue_queue import MAX_PENDING
from serving.session.types import Applied, AppliedTail, Pending, SessionRecord, State


def rewound(
    record: SessionRecord, log: AppliedLog, block: int, applied: AppliedTail, blocks: BlockLengths
) -> SessionRecord:
    """As it was before `block` was begun, when only the cues of `applied` had applied.

    Those of `log` that have since are pending again: at most MAX_PENDING of them, and where there were more, the
    cues that are pending now are left out.
    """
    since = log.page(applied.count, MAX_PENDING)
    now = record.pending if applied.count + len(since) == len(log) else ()
    pending = _pending(since, now)
    frames = blocks.pixel_frames(block)
    delivered = min(record.delivered_frames, frames) if block >= record.next_block else frames
    state = record.state
    if block == 0 and state in (State.CREATED, State.READY):
        state = State.READY if pending and pending[0].cue.frame == 0 else State.CREATED
    return replace(
        record,
        state=state,
        next_block=min(block, record.next_block),
        delivered_frames=delivered,
        shown=min(record.shown, delivered - 1),
        pending=pending,
        applied=applied,
    )


def _pending(since: Sequence[Applied], now: Sequence[Pending]) -> tuple[Pending, ...]:
    again = {entry.cue.frame: Pending(entry.cue, entry.command_id) for entry in since}
    again |= {found.cue.frame: found for found in now}
    return tuple(again[frame] for frame in sorted(again))
