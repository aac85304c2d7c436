from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, ServingError, TimelineError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.formats.document import Json
from serving.web.inbound import MAX_CHARACTERS, Request, open_envelope, read_message


def read(message: Json) -> pb.Command | Request:
    return read_message(open_envelope(json.dumps(message)))


def test_the_published_example_is_a_cue_at_its_frame() -> None:
    data: Json = {"new_prompt": "The mountain transforms into a futuristic city", "timestamp": 30}
    text = "The mountain transforms into a futuristic city"
    cue = pb.Cue(frame=30, prompts=[pb.WeightedPrompt(text=text, weight=1)])
    assert read({"type": "schedule_prompt", "data": data}) == pb.Command(schedule_prompt=cue)


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ({"type": "start"}, pb.Command(start=pb.Start())),
        ({"type": "start", "data": {}}, pb.Command(start=pb.Start())),
        ({"type": "reset", "data": None}, pb.Command(reset=pb.Reset())),
        ({"type": "resume", "id": "r"}, pb.Command(id="r", resume=pb.Resume())),
        ({"type": "pause"}, pb.Command(pause=pb.Pause())),
        ({"type": "pause", "data": {"frame": 0}}, pb.Command(pause=pb.Pause(frame=0))),
        ({"type": "cut", "id": "c"}, pb.Command(id="c", cut=pb.Cut())),
        (
            {"type": "restyle", "data": {"noise_scale": 0.5, "follows_motion": False}},
            pb.Command(restyle=pb.Restyling(noise_scale=0.5, follows_motion=False)),
        ),
        ({"type": "restyle", "data": {"renews_sink": True}}, pb.Command(restyle=pb.Restyling(renews_sink=True))),
        ({"type": "end_input"}, pb.Command(end_input=pb.EndInput())),
        ({"type": "shown", "data": {"frame": 8}}, pb.Command(shown=pb.Shown(frame=8))),
        (
            {"type": "remove_prompt", "data": {"timestamp": 33}},
            pb.Command(remove_prompt=pb.RemovePrompt(frame=33)),
        ),
        (
            {"type": "move_prompt", "data": {"timestamp": 33, "to": 45.0}},
            pb.Command(move_prompt=pb.MovePrompt(frame=33, to_frame=45)),
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_command_is_read(message: Json, command: pb.Command) -> None:
    assert read(message) == command


@pytest.mark.parametrize("kind", ["fork", "start_recording", "stop_recording", "end"])
def test_a_request_is_read(kind: str) -> None:
    assert read({"type": kind, "id": "7"}) == Request("7", kind)  # type: ignore[arg-type]


def test_a_fork_may_name_a_frame() -> None:
    assert read({"type": "fork", "data": {"frame": 21}}) == Request("", "fork", 21)


def test_a_cue_without_a_timestamp_means_now() -> None:
    command = read({"type": "schedule_prompt", "data": {"new_prompt": "rain"}})
    assert isinstance(command, pb.Command)
    assert not command.schedule_prompt.HasField("frame")


def test_a_cue_may_blend_prompts_and_take_its_time() -> None:
    data: Json = {
        "prompts": [{"text": "noon", "weight": 3}, {"text": "night"}],
        "timestamp": 45,
        "transition": {"blocks": 4, "method": "slerp"},
    }
    command = read({"type": "schedule_prompt", "data": data})
    assert isinstance(command, pb.Command)
    cue = command.schedule_prompt
    assert [(part.text, part.weight) for part in cue.prompts] == [("noon", 3), ("night", 1)]
    assert cue.transition == pb.Transition(blocks=4, method=pb.TRANSITION_METHOD_SLERP)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([], "must be a mapping"),
        ({}, "the message has no type; known: schedule_prompt"),
        ({"type": 7}, "must be a text"),
        ({"type": "stop"}, "the type 'stop' is unknown; known: schedule_prompt"),
        ({"type": "start", "at": 3}, "the field 'at' is unknown"),
        ({"type": "start", "data": {"now": True}}, "the field 'now' is unknown"),
        ({"type": "start", "id": "x" * 201}, "the message's id has 201 characters"),
        ({"type": "remove_prompt"}, "the field 'timestamp' is missing"),
        ({"type": "remove_prompt", "data": {"timestamp": "30"}}, "'30' must be a whole number"),
        ({"type": "remove_prompt", "data": {"timestamp": True}}, "must be a whole number"),
        ({"type": "shown", "data": {"frame": -1}}, "-1 is no frame; frames are counted from 0"),
        ({"type": "shown", "data": {"frame": 1 << 63}}, "is no frame"),
        ({"type": "schedule_prompt", "data": {"timestamp": 3}}, "either new_prompt, a text, or prompts"),
        ({"type": "schedule_prompt", "data": {"new_prompt": 5}}, "5 must be a text"),
        ({"type": "schedule_prompt", "data": {"prompts": [{"text": "a", "weight": -1}]}}, "-1 is outside"),
        ({"type": "schedule_prompt", "data": {"new_prompt": "a", "transition": {}}}, "'blocks' is missing"),
        (
            {"type": "schedule_prompt", "data": {"new_prompt": "a", "transition": {"blocks": 1 << 40}}},
            "schedule_prompt.transition.blocks: 1099511627776 blocks are outside 1..1000",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(message: Json, reason: str) -> None:
    with pytest.raises((InvalidRequest, TimelineError), match=r".") as refusal:
        read(message)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", '{"type": "start", "type": "reset"}', "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(TimelineError):
        open_envelope(text)


def test_a_giant_message_is_not_even_parsed() -> None:
    with pytest.raises(InvalidRequest, match="characters; at most"):
        open_envelope('"' + "x" * MAX_CHARACTERS + '"')


names = st.sampled_from(
    ["timestamp", "new_prompt", "prompts", "text", "weight", "transition", "blocks", "frame", "to"]
)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
types = st.sampled_from(["schedule_prompt", "remove_prompt", "move_prompt", "pause", "shown", "fork", "end", "?"])


@given(types, values)
def test_no_message_does_worse_than_to_be_refused(type: str, data: Json) -> None:
    with suppress(ServingError):
        read({"type": type, "data": data})
