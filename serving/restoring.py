"""A session out of a snapshot: under a new id, paused where it was. Nothing in a snapshot is taken on trust."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engines.config.geometry import BlockLengths
from serving.errors import InvalidRequest, TimelineError
from serving.mirrored import Opening
from serving.saved import Saved
from serving.session import LAST_FRAME
from serving.session_record import SessionRecord
from serving.timeline import MAX_CUES, Cue
from serving.wire import read_cue


def restored_record(saved: Saved, opening: Opening) -> SessionRecord:
    """The logic of the session in `saved`, begun as `opening`. Raises InvalidRequest for what cannot have been."""
    try:
        applied = [read_cue(entry.cue) for entry in saved.session.applied]
        pending = [read_cue(cue) for cue in saved.session.pending]
    except TimelineError as error:
        raise InvalidRequest(f"the snapshot's cues cannot be used: {error}") from None
    next_frame, lengths = saved.session.next_frame, opening.stream.blocks
    blocks = lengths.block_at(next_frame)
    _require(lengths.pixel_frames(blocks) == next_frame, f"no block begins at its next frame, {next_frame}")
    _require((saved.stream is None) == (blocks == 0), f"a stream goes with blocks, and it has {blocks} of them")
    _check_cues(applied, pending, blocks, lengths)
    return SessionRecord.restored(opening.pace, applied, pending, next_frame, lengths)


def _check_cues(applied: Sequence[Cue], pending: Sequence[Cue], blocks: int, lengths: BlockLengths) -> None:
    frames = [cue.frame for cue in (*applied, *pending)]
    _require(len(frames) <= MAX_CUES, f"it has {len(frames)} cues; at most {MAX_CUES} can be")
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
