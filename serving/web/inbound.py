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
from serving.protocol.requests import new_cue, write_restyling
from serving.session.receipt_log import MAX_ID_CHARACTERS
from serving.timeline.formats.document import Json, Node, maybe, shown
from serving.timeline.formats.native import (
    RESTYLING_FIELDS,
    read_blend,
    read_restyling,
    read_restyling_fields,
    read_transition,
)
from serving.timeline.formats.parsing import load_json

MAX_CHARACTERS = 1 << 20
MAX_FRAME = (1 << 63) - 1
"""The largest that a message can carry; what a session takes is less, which it says itself."""

RequestKind = Literal["fork", "start_recording", "stop_recording", "end"]
Fields = dict[str, Node]


class Envelope(NamedTuple):
    """A message of which no more than its id has been read."""

    id: str
    content: dict[str, Json]

    @property
    def type(self) -> str:
        """What it asks for; empty where that is not known."""
        return next((name for name in _KNOWN if name == self.content.get("type")), "")


NOTHING = Envelope("", {})
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
    """The id of a message, by which it is answered. Raises InvalidRequest or TimelineError for what has none."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"the message has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    content = load_json(text)
    if not isinstance(content, dict):
        raise InvalidRequest(f"the message is {shown(content)}; it must be a mapping of fields")
    id = Node("id", content["id"]).text() if "id" in content else ""
    if len(id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"the message's id has {len(id)} characters; at most {MAX_ID_CHARACTERS} are kept")
    return Envelope(id, content)


def read_message(envelope: Envelope) -> pb.Command | Request:
    """What a client asks for. Raises InvalidRequest or TimelineError, which names the field."""
    outer = Node("", envelope.content).fields(("type", "data", "id"))
    if "type" not in outer:
        raise InvalidRequest("the message has no type; known: " + ", ".join(_KNOWN))
    name, content = outer["type"].text(), envelope.content.get("data")
    data = Node(name, {} if content is None else content)
    if name in _COMMANDS:
        known = _COMMANDS[name]
        command = known.read(data, data.fields(known.fields))
        command.id = envelope.id
        return command
    for kind in get_args(RequestKind):
        if name == kind:
            fields = data.fields(("frame",) if kind == "fork" else ())
            return Request(envelope.id, kind, maybe(fields.get("frame"), _frame))
    raise InvalidRequest(f"the type {shown(name)} is unknown; known: {', '.join(_KNOWN)}")


def _cue(data: Node, fields: Fields) -> pb.Cue:
    frame = maybe(fields.get("timestamp"), _frame)
    blend, transition = read_blend(data, fields, "new_prompt"), read_transition(data, fields)
    return new_cue(blend, frame, transition, read_restyling(data, fields))


def _field(parent: Node, fields: Fields, name: str) -> Node:
    if name not in fields:
        raise parent.error(f"the field {name!r} is missing")
    return fields[name]


def _frame(node: Node) -> int:
    frame = node.whole()
    if not 0 <= frame <= MAX_FRAME:
        raise node.error(f"{shown(node.value)} is no frame; frames are counted from 0")
    return frame


_CUE_FIELDS = ("new_prompt", "prompts", "timestamp", "transition", "restyling")

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
    "cut": _Type((), lambda _, __: pb.Command(cut=pb.Cut())),
    "restyle": _Type(
        RESTYLING_FIELDS,
        lambda data, fields: pb.Command(restyle=write_restyling(read_restyling_fields(data, fields))),
    ),
    "end_input": _Type((), lambda _, __: pb.Command(end_input=pb.EndInput())),
    "shown": _Type(
        ("frame",), lambda data, fields: pb.Command(shown=pb.Shown(frame=_frame(_field(data, fields, "frame"))))
    ),
}

_KNOWN = (*_COMMANDS, *get_args(RequestKind))
