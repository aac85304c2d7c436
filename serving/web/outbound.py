"""A session's events as the messages of a WebSocket: JSON texts, and binary segments of MP4.

A binary message is a head of four 32-bit numbers and one of 64 bits, the highest byte first, and a segment for the
browser's MediaSource. The head says the kind (1: how to decode, which comes first in each take and whenever it
changes; 2: frames), the take, the first frame and the number of frames, and the event's `seq`. A text before
frames says which pictures they were made of, if any.
"""

from __future__ import annotations

import json
import struct

from serving.media.chunk import FRAMES_PER_SECOND
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.formats.document import Json
from serving.web.json_format import (
    applied_json,
    cue_text,
    loop_json,
    progress_json,
    receipt_json,
    recording_json,
    session_json,
    waiting_json,
    wire_error_json,
)
from serving.web.segments import SegmentCache

HEAD = struct.Struct(">4IQ")
INIT, FRAMES = 1, 2

_DONE = {
    pb.COMMAND_KIND_START: "generation_started",
    pb.COMMAND_KIND_PAUSE: "generation_paused",
    pb.COMMAND_KIND_RESUME: "generation_resumed",
    pb.COMMAND_KIND_RESET: "generation_reset",
}


def text(type: str, data: Json, seq: int = 0) -> str:
    """A message as JSON; `seq` is that of the event it tells of, left out where that has none."""
    message: dict[str, Json] = {"type": type, "data": data}
    if seq:
        message["seq"] = seq
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def state_text(session: pb.Session, seq: int = 0) -> str:
    """The message that says how a session stands."""
    return text("state", session_json(session), seq)


class EventWriter:
    """Writes the events of one stream, of which the first is the session's state."""

    def __init__(self, segments: SegmentCache) -> None:
        self._cache = segments
        self._segments = segments.session("")
        self._session = pb.Session()
        self._prompt = ""
        self._take = -1
        self._init = b""
        self._seq = 0

    def write(self, event: pb.Event) -> list[str | bytes]:
        """The messages of an event, in order."""
        self._seq = event.seq
        match event.WhichOneof("event"):
            case "chunk":
                return self._chunk(event)
            case "progress":
                return [self._text("progress", progress_json(event.progress))]
            case "receipt":
                return list(self._receipt(event.receipt))
            case "state":
                return [self.state(event.state, event.seq)]
            case "applied":
                return list(self._applied(event.applied))
            case "resumed":
                return [self._resumed(event.resumed)]
            case "slowed":
                slowed = event.slowed
                held: dict[str, Json] = {"held_fps": round(slowed.held_fps, 2), "reason": slowed.reason}
                return [self._text("slowed", held)]
            case "gap":
                return [self._text("gap", {"first_frame": event.gap.first_frame, "frames": event.gap.frames})]
            case "error":
                return [self._text("error", wire_error_json(event.error))]
            case "heartbeat":
                waiting = event.heartbeat.waiting
                return [self._text("heartbeat", {"waiting": waiting_json(waiting)} if waiting else {})]
            case "recording":
                return [self._text("recording", recording_json(event.recording))]
            case "replaced":
                return [self._text("replaced", {})]
            case "end":
                reason = pb.StreamEndReason.Name(event.end.reason).removeprefix("STREAM_END_REASON_").lower()
                return [self._text("end", {"reason": reason, "message": event.end.message})]
            case _:
                return []

    def state(self, session: pb.Session, seq: int = 0) -> str:
        """How the session stands; without `seq` it was asked for, and no event told of it."""
        self.stands(session)
        return state_text(session, seq)

    def stands(self, session: pb.Session) -> None:
        """The client has been told how the session stands."""
        self._session = pb.Session(id=session.id, options=session.options)
        self._segments = self._cache.session(session.id)
        self._prompt = session.prompt

    def _chunk(self, event: pb.Event) -> list[str | bytes]:
        messages: list[str | bytes] = []
        segment, take = self._segments.of(self._session, event), event.take
        if take != self._take or segment.init != self._init:
            self._take, self._init = take, segment.init
            mime, options = f'video/mp4; codecs="{segment.codec}"', self._session.options
            size: dict[str, Json] = {"height": options.height, "width": options.width}
            messages += [self._text("media", {"mime": mime, "fps": FRAMES_PER_SECOND, **size})]
            messages += [HEAD.pack(INIT, take, segment.first_frame, 0, self._seq) + segment.init]
        if pictures := [unit.picture for unit in event.chunk.units if unit.HasField("picture")]:
            made_of: dict[str, Json] = {"take": take, "first_frame": segment.first_frame, "pictures": [*pictures]}
            messages += [self._text("pictures", made_of | {"loop": loop_json(event.chunk.loop)})]
        head = HEAD.pack(FRAMES, take, segment.first_frame, segment.frames, self._seq)
        return [*messages, head + segment.data]

    def _receipt(self, receipt: pb.Receipt) -> list[str]:
        messages = [self._text("receipt", receipt_json(receipt))]
        # A report that is refused was overtaken by a reset: nobody need be told so in words.
        if receipt.command == pb.COMMAND_KIND_SHOWN:
            return messages
        if receipt.stage == pb.RECEIPT_STAGE_REFUSED:
            messages.append(self._happened("error", receipt.frame, message=receipt.error.message))
        elif receipt.stage == pb.RECEIPT_STAGE_ACCEPTED and receipt.command in _DONE:
            messages.append(self._happened(_DONE[receipt.command], receipt.frame))
            if receipt.command in (pb.COMMAND_KIND_START, pb.COMMAND_KIND_RESET):
                messages.append(self._text("progress", progress_json(pb.Progress())))
        return messages

    def _applied(self, applied: pb.AppliedCue) -> list[str]:
        before, self._prompt = self._prompt, cue_text(applied.cue)
        switched = self._happened(
            "prompt_switched", applied.frame, new_prompt=self._prompt, previous_prompt=before or None
        )
        return [self._text("applied", applied_json(applied)), switched]

    def _happened(self, name: str, frame: int, **facts: Json) -> str:
        return self._text("event", {"event": name, "frame": frame, **facts})

    def _resumed(self, resumed: pb.Resumed) -> str:
        silence = resumed.silence.ToMilliseconds() / 1000
        return self._text("resumed", {"frame": resumed.frame, "reason": resumed.reason, "silence_s": silence})

    def _text(self, type: str, data: Json) -> str:
        return text(type, data, self._seq)
