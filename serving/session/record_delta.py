"""What has changed in a session's record, which is all that its standby is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from serving.session.applied_log import AppliedLog
from serving.session.pacing import Pace
from serving.session.receipt_log import MOST_RECEIPTS
from serving.session.types import Applied, AppliedTail, LoggedReceipt, Pending, SessionRecord, State, tail_start


class RecordGap(Exception):
    """A delta that does not go with the copy: one before it is missing. The full record and log are needed."""


@dataclass(frozen=True)
class RecordDelta:
    """What turns one record of a session into a later one.

    `removed` are the frames of cues that are not pending any more, `put` those that are now, or are others now. Of
    the log of applied cues the first `kept` entries stay, and `applied` come behind them. Where not `joins`, too
    much has applied, or been taken back, for the records to tell how the logs go together. `receipts` are new.
    """

    state: State
    take: int
    next_block: int
    delivered_frames: int
    shown: int
    kept: int
    pace: Pace | None = None
    removed: tuple[int, ...] = ()
    put: tuple[Pending, ...] = ()
    applied: tuple[Applied, ...] = ()
    receipts: tuple[LoggedReceipt, ...] = ()
    controller: str = ""
    seq: int = 0
    joins: bool = True
    suspended: bool = False

    @classmethod
    def between(cls, before: SessionRecord, after: SessionRecord) -> RecordDelta:
        """What has changed since `before`."""
        removed, put = _pending_changes(before.pending, after.pending)
        same_take = before.take == after.take
        kept = _kept(before.applied, after.applied) if same_take else (0 if after.applied.first == 0 else None)
        begin = after.applied.first if before.applied.first > after.applied.first else kept or after.applied.first
        return cls(
            after.state, after.take, after.next_block, after.delivered_frames, after.shown, begin,
            None if before.pace == after.pace else after.pace,
            removed, put, after.applied.entries[begin - after.applied.first :],
            _new_receipts(before.receipts, after.receipts), after.controller, after.seq, kept is not None,
            after.suspended,
        )  # fmt: skip

    def apply_to(self, before: SessionRecord) -> SessionRecord:
        """The record that `before` has become."""
        pending = before.pending
        if self.removed or self.put:
            by_frame = {found.cue.frame: found for found in pending}
            for frame in self.removed:
                del by_frame[frame]
            by_frame |= {found.cue.frame: found for found in self.put}
            pending = tuple(by_frame[frame] for frame in sorted(by_frame))
        return replace(
            before,
            pace=self.pace or before.pace,
            state=self.state,
            take=self.take,
            next_block=self.next_block,
            delivered_frames=self.delivered_frames,
            shown=self.shown,
            pending=pending,
            applied=self._tail(before.applied),
            receipts=(*before.receipts, *self.receipts)[-MOST_RECEIPTS:],
            controller=self.controller,
            seq=self.seq,
            suspended=self.suspended,
        )

    def _tail(self, before: AppliedTail) -> AppliedTail:
        count = self.kept + len(self.applied)
        first = tail_start(count)
        stays = before.entries[max(first - before.first, 0) : max(self.kept - before.first, 0)]
        return AppliedTail(first, (*stays, *self.applied))


class RecordCopy:
    """A session's record and its log of applied cues in another process, which deltas keep up to date."""

    def __init__(self, record: SessionRecord, past: bytes) -> None:
        self.record = record
        self.log = AppliedLog.of(record.applied, past)

    def apply(self, delta: RecordDelta) -> None:
        """Take over what has changed.

        Raises RecordGap, which changes nothing; and LimitReached as the log does, after which the copy is useless.
        """
        there = len(self.log) if delta.take == self.record.take else 0
        if not delta.joins or delta.kept > there:
            raise RecordGap(f"the copy has {there} applied cues; the delta goes on from {delta.kept}")
        self.log.replace_from(delta.kept, delta.applied)
        self.record = delta.apply_to(self.record)

    def close(self) -> None:
        """It is not needed any more."""
        self.log.close()


def _pending_changes(
    before: tuple[Pending, ...], after: tuple[Pending, ...]
) -> tuple[tuple[int, ...], tuple[Pending, ...]]:
    if before is after:
        return (), ()
    old, new = _by_frame(before), _by_frame(after)
    removed = tuple(frame for frame in old if frame not in new)
    return removed, tuple(found for frame, found in new.items() if old.get(frame) != found)


def _new_receipts(
    before: tuple[LoggedReceipt, ...], after: tuple[LoggedReceipt, ...]
) -> tuple[LoggedReceipt, ...]:
    """Those of `after` that came behind the last one of `before`."""
    if not before:
        return after
    last = next((number for number in range(len(after), 0, -1) if after[number - 1] == before[-1]), 0)
    return after[last:]


def _by_frame(cues: tuple[Pending, ...]) -> Mapping[int, Pending]:
    return {found.cue.frame: found for found in cues}


def _kept(before: AppliedTail, after: AppliedTail) -> int | None:
    """How many entries of a log have stayed as they were; None if its ends do not tell."""
    start, end = max(before.first, after.first), min(before.count, after.count)
    old, new = (tail.entries[start - tail.first : max(end - tail.first, 0)] for tail in (before, after))
    if start > end:
        return None
    pairs = enumerate(zip(old, new, strict=True))
    same = len(old) if old == new else next(number for number, (one, other) in pairs if one != other)
    return start + same if same or start == 0 else None
