"""A session out of a snapshot: under a new id, paused where it was."""

from __future__ import annotations

from serving.errors import InvalidRequest, TimelineError
from serving.mirrored import Opening
from serving.saved import Saved
from serving.session_record import SessionRecord
from serving.wire import read_cue


def restored_record(saved: Saved, opening: Opening) -> SessionRecord:
    """The logic of the session in `saved`, begun as `opening`. Raises InvalidRequest for cues that cannot be."""
    try:
        applied = [read_cue(entry.cue) for entry in saved.session.applied]
        pending = [read_cue(cue) for cue in saved.session.pending]
    except TimelineError as error:
        raise InvalidRequest(f"the snapshot's cues cannot be used: {error}") from None
    return SessionRecord.restored(
        opening.pace, applied, pending, saved.session.next_frame, opening.stream.block_frames
    )
