"""The JSON messages that clients send over the WebSocket.

They are written down in `proto/longtake/v1/websocket.md`. What is refused is answered by a `receipt` of stage
`refused`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from serving.errors import InvalidRequest
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.session.receipt_log import MAX_ID_CHARACTERS
from serving.timeline.cue import MAX_WEIGHT
from serving.timeline.formats.document import Node, maybe, shown
from serving.timeline.formats.native import read_method
from serving.timeline.formats.parsing import parse_json

MAX_CHARACTERS = 1 << 20
MAX_FRAME = 1 << 53
"""The largest whole number that every reader of JSON knows exactly."""

RequestKind = Literal["fork", "start_recording", "stop_recording", "end"]
Fields = dict[str, Node]


class Envelope(NamedTuple):
    """A message whose data has not been read yet."""

    id: str
    type: str
    data: Node


NOTHING = Envelope("", "", Node("", {}))
"""Of a message that cannot be taken apart."""


class Request(NamedTuple):
    """What is asked of a session beside the commands that steer it."""

    id: str
    kind: RequestKind
    frame: int | None = None


@dataclass(frozen=True)
class _Type:
    fields: tuple[str, ...]
    read: Callable[[Node, Fields], pb.Command]


def open_envelope(text: str) -> Envelope:
    """Take a message apart. Raises InvalidRequest or TimelineError for what is none."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"the message has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    fields = parse_json(text).fields(("type", "data", "id"))
    if "type" not in fields:
        raise InvalidRequest("the message has no type; known: " + ", ".join(_KNOWN))
    id = maybe(fields.get("id"), Node.text) or ""
    if len(id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"the message's id has {len(id)} characters; at most {MAX_ID_CHARACTERS} are kept")
    kind, data = fields["type"].text(), fields.get("data")
    empty = data is None or data.value is None
    return Envelope(id, kind, Node(kind, {}) if data is None or empty else Node(kind, data.value))


def read_message(envelope: Envelope) -> pb.Command | Request:
    """What a client asks for. Raises InvalidRequest or TimelineError, which names the field."""
    if envelope.type in _COMMANDS:
        known = _COMMANDS[envelope.type]
        command = known.read(envelope.data, envelope.data.fields(known.fields))
        command.id = envelope.id
        return command
    for kind in get_args(RequestKind):
        if envelope.type == kind:
            fields = envelope.data.fields(("frame",) if kind == "fork" else ())
            return Request(envelope.id, kind, maybe(fields.get("frame"), _frame))
    raise InvalidRequest(f"the type {shown(envelope.type)} is unknown; known: {', '.join(_KNOWN)}")


def read_cue(data: Node) -> pb.Cue:
    """A cue in the fields of `schedule_prompt`. Raises TimelineError."""
    return _cue(data, data.fields(_CUE_FIELDS))


def _cue(data: Node, fields: Fields) -> pb.Cue:
    cue = pb.Cue(frame=maybe(fields.get("timestamp"), _frame), prompts=_prompts(data, fields))
    if "transition" in fields:
        cue.transition.CopyFrom(_transition(fields["transition"]))
    return cue


def _prompts(data: Node, fields: Fields) -> list[pb.WeightedPrompt]:
    if ("new_prompt" in fields) == ("prompts" in fields):
        raise data.error("a cue needs either new_prompt, a text, or prompts, a list of texts with weights")
    if "new_prompt" in fields:
        return [pb.WeightedPrompt(text=fields["new_prompt"].text(), weight=1)]
    return [_part(node) for node in fields["prompts"].items()]


def _part(node: Node) -> pb.WeightedPrompt:
    fields = node.fields(("text", "weight"))
    weight = maybe(fields.get("weight"), lambda weight: weight.number(0, MAX_WEIGHT))
    return pb.WeightedPrompt(text=_field(node, fields, "text").text(), weight=1.0 if weight is None else weight)


def _transition(node: Node) -> pb.Transition:
    fields = node.fields(("blocks", "method"))
    slerp = maybe(fields.get("method"), read_method) == "slerp"
    method = pb.TRANSITION_METHOD_SLERP if slerp else pb.TRANSITION_METHOD_LINEAR
    blocks = _field(node, fields, "blocks")
    if not 0 <= blocks.whole() < 1 << 31:
        raise blocks.error(f"{shown(blocks.value)} blocks are no transition")
    return pb.Transition(blocks=blocks.whole(), method=method)


def _field(parent: Node, fields: Fields, name: str) -> Node:
    if name not in fields:
        raise parent.error(f"the field {name!r} is missing")
    return fields[name]


def _frame(node: Node) -> int:
    frame = node.whole()
    if not 0 <= frame <= MAX_FRAME:
        raise node.error(f"{shown(node.value)} is no frame; frames are counted from 0")
    return frame


_CUE_FIELDS = ("new_prompt", "prompts", "timestamp", "transition")

_COMMANDS: Mapping[str, _Type] = {
    "schedule_prompt": _Type(_CUE_FIELDS, lambda data, fields: pb.Command(schedule_prompt=_cue(data, fields))),
    "remove_prompt": _Type(
        ("timestamp",),
        lambda data, fields: pb.Command(
            remove_prompt=pb.RemovePrompt(frame=_frame(_field(data, fields, "timestamp")))
        ),
    ),
    "move_prompt": _Type(
        ("timestamp", "to"),
        lambda data, fields: pb.Command(
            move_prompt=pb.MovePrompt(
                frame=_frame(_field(data, fields, "timestamp")), to_frame=_frame(_field(data, fields, "to"))
            )
        ),
    ),
    "start": _Type((), lambda _, __: pb.Command(start=pb.Start())),
    "pause": _Type(
        ("frame",), lambda _, fields: pb.Command(pause=pb.Pause(frame=maybe(fields.get("frame"), _frame)))
    ),
    "resume": _Type((), lambda _, __: pb.Command(resume=pb.Resume())),
    "reset": _Type((), lambda _, __: pb.Command(reset=pb.Reset())),
    "shown": _Type(
        ("frame",), lambda data, fields: pb.Command(shown=pb.Shown(frame=_frame(_field(data, fields, "frame"))))
    ),
}

_KNOWN = (*_COMMANDS, *get_args(RequestKind))
