"""What the WebSocket's JSON messages carry to clients: sessions, cues, receipts, recordings and errors."""

from __future__ import annotations

import json
from collections.abc import Iterable

from serving.errors import ServingError, SessionMoved
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.convert import read_fit, read_restyling, weight_of, write_cue
from serving.protocol.status import code_numbered, code_of, message_of, reason_name, reason_of, retry_after_of
from serving.timeline.formats.document import Json
from serving.timeline.formats.native import restyling_fields
from serving.timeline.formats.reader import ReadTimeline
from serving.timeline.timeline import unserved


def error_json(error: ServingError) -> dict[str, Json]:
    """An error as messages carry it."""
    data: dict[str, Json] = {"code": code_of(error).name, "reason": reason_of(error), "message": message_of(error)}
    if (seconds := retry_after_of(error)) is not None:
        data["retry_after_s"] = seconds
    if isinstance(error, SessionMoved):
        data |= {name: where for name, where in (("server", error.server), ("page", error.page)) if where}
    return data


def wire_error_json(error: pb.Error) -> Json:
    """An error out of an event."""
    data: dict[str, Json] = {
        "code": code_numbered(error.code).name, "reason": reason_name(error), "message": error.message,
    }  # fmt: skip
    if error.HasField("retry_delay"):
        data["retry_after_s"] = error.retry_delay.ToMilliseconds() / 1000
    return data


def refusal_json(id: str, type: str, error: ServingError) -> dict[str, Json]:
    """The data of a receipt that says why a message was not obeyed."""
    return {"command_id": id, "command": type, "stage": "refused", "error": error_json(error)}


def receipt_json(receipt: pb.Receipt) -> dict[str, Json]:
    """The data of a receipt."""
    data: dict[str, Json] = {
        "command_id": receipt.command_id,
        "command": pb.CommandKind.Name(receipt.command).removeprefix("COMMAND_KIND_").lower(),
        "stage": pb.ReceiptStage.Name(receipt.stage).removeprefix("RECEIPT_STAGE_").lower(),
        "frame": receipt.frame,
        "timestamp": receipt.cue_frame,
        "replicated": receipt.replicated,
        "repeated": receipt.repeated,
    }
    if receipt.HasField("error"):
        data["error"] = wire_error_json(receipt.error)
    return data


MOST_BYTES = 256 << 10
"""Of each of a state's lists of cues: many clients of WebSockets take messages of 1 MiB unless told otherwise."""

MOST_TEXT = 20_000
"""Characters of a blend in words, which `prompts` have whole."""


def cue_json(cue: pb.Cue) -> dict[str, Json]:
    """A cue in the fields of `schedule_prompt`, and its blend in words as `text`."""
    data: dict[str, Json] = {
        "timestamp": cue.frame,
        "text": cue_text(cue),
        "prompts": [{"text": part.text, "weight": weight_of(part)} for part in cue.prompts],
    }
    if cue.HasField("transition"):
        slerp = cue.transition.method == pb.TRANSITION_METHOD_SLERP
        data["transition"] = {"blocks": cue.transition.blocks, "method": "slerp" if slerp else "linear"}
    if (restyling := read_restyling(cue)) is not None:
        data["restyling"] = restyling_fields(restyling)
    return data


def applied_json(applied: pb.AppliedCue) -> dict[str, Json]:
    """A cue that has come into force, with the `frame` at which it has."""
    data: dict[str, Json] = {"frame": applied.frame, "cut_tokens": applied.cut_tokens, **cue_json(applied.cue)}
    if applied.HasField("picture_size"):
        data["picture_size"] = _size_json(applied.picture_size)
    return data


def cue_text(cue: pb.Cue) -> str:
    """A blend in words: `a (0.7) + b (0.3)`."""
    total = sum(map(weight_of, cue.prompts))
    if len(cue.prompts) == 1 or total <= 0:
        return _shortened(" + ".join(part.text for part in cue.prompts))
    return _shortened(" + ".join(f"{part.text} ({weight_of(part) / total:.3g})" for part in cue.prompts))


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


def _fitting(cues: Iterable[dict[str, Json]]) -> list[Json]:
    """The first of `cues` that have no more than MOST_BYTES together, with their texts once more."""
    found: list[Json] = []
    left = MOST_BYTES
    for cue in cues:
        left -= len(json.dumps([cue, cue["text"]], ensure_ascii=False).encode())
        if left < 0:
            break
        found.append(cue)
    return found


def session_json(session: pb.Session) -> dict[str, Json]:
    """The data of a `state` message, with as many cues as fit: their counts tell of the others.

    The seed is a text: many readers of JSON round numbers that large.
    """
    options = session.options
    pending = _fitting(map(cue_json, session.pending))
    applied = _fitting(map(applied_json, reversed(session.applied)))[::-1]
    data: dict[str, Json] = {
        "session": session.id,
        "state": pb.SessionState.Name(session.state).removeprefix("SESSION_STATE_").lower(),
        "running": session.state == pb.SESSION_STATE_RUNNING,
        "paused": session.state == pb.SESSION_STATE_PAUSED,
        "suspended": session.suspended,
        "take": session.take,
        "current_frame": session.current_start_frame,
        "next_frame": session.next_frame,
        "shown_frame": session.shown_frame,
        "oldest_frame": session.oldest_frame,
        "current_prompt": _shortened(session.prompt) or None,
        "scheduled_prompts": {str(cue.frame): cue_text(cue) for cue in session.pending[: len(pending)]},
        "pending": pending,
        "pending_count": session.pending_count,
        "applied": applied,
        "applied_count": session.applied_count,
        "viewers": session.viewers,
        "recording": session.recording or None,
        "waiting": waiting_json(session.waiting),
        "broken_picture": session.broken_picture or None,
        "held_fps": round(session.held_fps, 2) or None,
        "loop": loop_json(session.loop),
        "restyling": _restyling_json(session),
    }
    settings: dict[str, Json] = {
        "model": options.model,
        "seed": str(options.seed),
        "height": options.height,
        "width": options.width,
        "fps": options.fps,
        "ahead": options.ahead,
        "lease_s": options.lease.ToMilliseconds() / 1000,
        "input": input_json(options.input),
        "fit": read_fit(options.fit),
        "noise_scale": options.noise_scale if options.HasField("noise_scale") else None,
        "first_block_frames": session.first_block_frames,
        "block_frames": session.block_frames,
    }
    return data | settings


def loop_json(loop: pb.VideoLoop) -> Json:
    """How the blocks of a restyled video are made: `plain` or `batch`; null where none is restyled."""
    return pb.VideoLoop.Name(loop).removeprefix("VIDEO_LOOP_").lower() if loop else None


def _restyling_json(session: pb.Session) -> Json:
    """What the next pictures are mixed with; null where none are taken."""
    if not session.HasField("restyling"):
        return None
    told = session.restyling
    return {"noise_scale": told.noise_scale, "follows_motion": told.follows_motion}


def input_json(kind: pb.InputKind) -> str:
    """What a session's video is made from, beside prompts: `none` or `video`."""
    return "video" if kind == pb.INPUT_KIND_VIDEO else "none"


def progress_json(progress: pb.Progress) -> dict[str, Json]:
    """The data of a `progress` message."""
    data: dict[str, Json] = {
        "current_start_frame": progress.current_start_frame,
        "generated_fps": round(progress.generated_fps, 2),
        "queued_blocks": progress.queued_blocks,
    }
    if progress.HasField("input"):
        counts = progress.input
        data["input"] = {
            "received": counts.received,
            "dropped": counts.dropped,
            "broken": counts.broken,
            "noise_scale": round(counts.noise_scale, 3),
        }
    return data


def waiting_json(reason: pb.WaitReason) -> Json:
    """What a session waits for, null for nothing."""
    return pb.WaitReason.Name(reason).removeprefix("WAIT_REASON_").lower() if reason else None


def server_json(server: pb.DescribeServerResponse) -> dict[str, Json]:
    """What a server generates, as the page asks for it."""
    return {
        "model": server.model,
        "sizes": [_size_json(size) for size in server.sizes],
        "other_sizes": server.other_sizes,
        "max_pixels": server.max_pixels,
        "max_fps": server.max_fps,
        "default_fps": server.default_fps,
        "inputs": [input_json(kind) for kind in server.inputs],
        "video_size": _size_json(server.video_size) if server.HasField("video_size") else None,
    }


def _size_json(size: pb.PictureSize) -> dict[str, Json]:
    return {"height": size.height, "width": size.width}


def timeline_json(read: ReadTimeline) -> dict[str, Json]:
    """A timeline out of a file: cues in the fields of `schedule_prompt`, settings as addresses have them.

    Warnings name what a session does not take from it, whatever session that is.
    """
    settings, timeline = read.timeline.settings, read.timeline
    length = [] if timeline.frames is None else [f"length: it ends at frame {timeline.frames}; a session goes on"]
    return {
        "format": read.format,
        "cues": [cue_json(write_cue(cue)) for cue in timeline.cues],
        "frames": timeline.frames,
        "seed": None if settings.seed is None else str(settings.seed),
        "height": settings.height,
        "width": settings.width,
        "model": settings.model,
        "notes": list(read.notes),
        "warnings": [*read.warnings, *unserved(settings), *length],
    }


def recording_json(recording: pb.Recording) -> dict[str, Json]:
    """The data of a `recording` message; `url` is relative to the page."""
    data: dict[str, Json] = {
        "name": recording.name,
        "session": recording.session_id,
        "first_frame": recording.first_frame,
        "frames": recording.frames,
        "bytes": recording.bytes,
        "finished": recording.finished,
        "finish_time": recording.finish_time.ToJsonString() if recording.finished else None,
        "url": f"recordings/{recording.name}.mp4",
    }
    if recording.HasField("error"):
        data["error"] = wire_error_json(recording.error)
    return data
