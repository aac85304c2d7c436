"""One table of prompts through every door: each says the same of each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from engines.config.geometry import BlockLengths
from serving.auth import Caller
from serving.cli.main import main
from serving.errors import TimelineError
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.commands import handle
from serving.protocol.convert import read_cues
from serving.protocol.requests import new_cue
from serving.session.pacing import Pace
from serving.session.state_machine import Session
from serving.timeline.cue import Blend
from serving.timeline.formats.reader import parse_timeline
from serving.web.app import web_app
from serving.web.inbound import open_envelope, read_message

Parts = list[tuple[str, float]]

NAN, INFINITE = float("nan"), float("inf")
HALF = "the prompt contains '\\ud83d', half a character, which no encoder can read"
EMPTY = "the prompt is empty{}; say who or what is seen, and where"

BAD: list[tuple[Parts, str]] = [
    ([], "the list is empty; at least one prompt is needed"),
    ([("", 1)], EMPTY.format("")),
    ([(" \n\t", 1)], EMPTY.format("")),
    ([("\u200b", 1)], EMPTY.format("")),
    ([("\u2800", 1)], EMPTY.format("")),
    ([("\u3164\uffa0 \u115f", 1)], EMPTY.format("")),
    ([("\ufe0f\u034f\U000e0100", 1)], EMPTY.format("")),
    ([("\u200b\u200d\u2060\ufeff\u00ad", 1)], EMPTY.format("")),
    ([("&#x3164;", 1)], EMPTY.format(" once '&#x3164;' is cleaned")),
    ([("&nbsp;", 1)], EMPTY.format(" once '&nbsp;' is cleaned")),
    ([("a lake", 1), ("&#32;&nbsp;", 1)], EMPTY.format(" once '&#32;&nbsp;' is cleaned")),
    ([("&amp;nbsp;", 1)], EMPTY.format(" once '&amp;nbsp;' is cleaned")),
    ([("a \ud83d lake", 1)], HALF),
    ([("a lake", 1), ("\ud83d", 1)], HALF),
    ([("\x1b[31m", 1)], EMPTY.format(" once '\\x1b[31m' is cleaned")),
    ([("\x00\x07", 1)], EMPTY.format("")),
    ([("a" * 10_001, 1)], "the prompt has 10001 characters; at most 10000 are read"),
    ([("a lake", 0), ("a hill", 0)], "all weights are 0; one must be positive"),
    ([("a lake", 0)], "all weights are 0; one must be positive"),
    ([("a lake", -1)], "-1 is outside 0..1000000"),
    ([("a lake", 1e7), ("a hill", 1)], "10000000 is outside 0..1000000"),
    ([("a lake", NAN)], "nan is not a finite number"),
    ([("a lake", INFINITE)], "inf is not a finite number"),
    ([("a lake", 1)] * 17, "17 prompts are blended; at most 16 can be"),
]

GOOD: list[Parts] = [
    [("a lake\n\tat dawn", 1)],
    [("a \x1b[31mred\x1b[0m balloon \x1b]0;not your window\x07 over the sea\x00", 1)],
    [("雪の山", 1)],
    [("a lake &amp; a hill", 1)],
    [("don\u00e2\u0080\u0099t\u0092", 1)],
    [("👩\u200d🚀 🎈", 1)],
    [("❤\ufe0f", 1)],
    [("ㄅㄆㄇ", 1)],
    [("x" * 10_000, 1)],
    [("a lake", 0), ("a hill", 1e6)],
]


def listed(parts: Parts) -> list[dict[str, Any]]:
    return [{"text": text, "weight": weight} for text, weight in parts]


def wire(parts: Parts) -> pb.Cue:
    return pb.Cue(frame=0, prompts=[pb.WeightedPrompt(text=text, weight=weight) for text, weight in parts])


def over_grpc(parts: Parts) -> None:
    handle(Session(Pace(), BlockLengths(), 0.0), pb.Command(schedule_prompt=wire(parts)), 0.0)


def with_a_new_session(parts: Parts) -> None:
    read_cues([wire(parts)])


def over_the_websocket(parts: Parts) -> None:
    message = {"type": "schedule_prompt", "data": {"prompts": listed(parts), "timestamp": 0}}
    command = read_message(open_envelope(json.dumps(message)))
    assert isinstance(command, pb.Command)
    over_grpc([(part.text, part.weight) for part in command.schedule_prompt.prompts])


def by_the_client(parts: Parts) -> None:
    read_cues([new_cue(Blend(tuple(parts)), 0)])


def own(parts: Parts) -> dict[str, Any]:
    return {"cues": [{"frame": 0, "prompts": listed(parts)}]}


def in_our_json(parts: Parts) -> None:
    parse_timeline(json.dumps(own(parts)).encode(), "clip.json")


def in_our_yaml(parts: Parts) -> None:
    text = json.dumps(own(parts), ensure_ascii=False).replace("NaN", ".nan").replace("Infinity", ".inf")
    escaped = re.sub("[\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    parse_timeline(escaped.encode("utf-8", "surrogatepass"), "clip.yaml")


def in_scopes_file(parts: Parts) -> None:
    document = {"prompts": [{"startTime": 0, "endTime": 3, "prompts": listed(parts)}]}
    parse_timeline(json.dumps(document).encode(), "clip.json")


def in_scopes_workflow(parts: Parts) -> None:
    document = {"timeline": {"entries": [{"start_time": 0, "end_time": 3, "prompts": listed(parts)}]}}
    parse_timeline(json.dumps(document).encode(), "clip.scope-workflow.json")


SESSIONS: list[Callable[[Parts], None]] = [
    over_grpc, with_a_new_session, over_the_websocket, by_the_client, in_our_json, in_our_yaml, in_scopes_file,
    in_scopes_workflow,
]  # fmt: skip

UNSAYABLE: dict[Callable[[Parts], None], str] = {
    over_grpc: HALF, with_a_new_session: HALF, in_our_yaml: HALF,
    in_scopes_file: "the list is empty", in_scopes_workflow: "the list is empty",
}  # fmt: skip
"""No message of protobuf and no YAML can have half a character; without prompts, Scope's files have their text."""


CASES = [
    pytest.param(door, parts, problem, id=f"{door.__name__} {parts}"[:60])
    for door in SESSIONS
    for parts, problem in BAD
    if not problem.startswith(UNSAYABLE.get(door, "nothing"))
]


@pytest.mark.parametrize(("door", "parts", "problem"), CASES)
def test_what_cannot_be_a_prompt_is_refused_in_the_same_words(
    door: Callable[[Parts], None], parts: Parts, problem: str
) -> None:
    with pytest.raises(TimelineError) as refused:
        door(parts)
    assert refused.value.problem == problem
    assert "prompts" in refused.value.place or "weight" in refused.value.place


@pytest.mark.parametrize("door", SESSIONS, ids=lambda door: door.__name__)
@pytest.mark.parametrize("parts", GOOD, ids=[f"{parts}"[:30] for parts in GOOD])
def test_what_can_be_a_prompt_is_one_everywhere(door: Callable[[Parts], None], parts: Parts) -> None:
    door(parts)


@pytest.mark.parametrize(("parts", "problem"), BAD, ids=[f"{parts}"[:30] for parts, _ in BAD])
def test_the_command_line_and_the_page_say_the_same_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: Parts, problem: str
) -> None:
    file = tmp_path / "clip.json"
    file.write_text(json.dumps(own(parts)))
    assert main(["timeline", "check", str(file)]) == 2
    assert capsys.readouterr().err.rstrip().endswith(problem)
    sessions: Any = Anybody()
    answer = TestClient(web_app(sessions)).post("/timelines?name=clip.json", content=file.read_bytes())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(problem)


class Anybody:
    """Sessions for which everyone may read files."""

    def authenticate(self, token: str | None) -> Caller:
        """Nobody is refused."""
        return Caller("")


SINGLE = [(parts[0][0], problem) for parts, problem in BAD if [weight for _, weight in parts] == [1]]


@pytest.mark.parametrize(("text", "problem"), SINGLE, ids=[repr(text)[:30] for text, _ in SINGLE])
def test_a_prompt_by_itself_is_refused_as_in_a_list(text: str, problem: str) -> None:
    message = json.dumps({"type": "schedule_prompt", "data": {"new_prompt": text}})
    file = json.dumps({"cues": [{"frame": 0, "prompt": text}]}).encode()
    scope = json.dumps({"prompts": [{"startTime": 0, "endTime": 3, "text": text}]}).encode()
    doors: list[tuple[str, Callable[[], object]]] = [
        ("schedule_prompt.new_prompt", lambda: read_message(open_envelope(message))),
        ("cues[0].prompt", lambda: parse_timeline(file, "clip.json")),
        ("prompts[0]", lambda: parse_timeline(scope, "clip.json")),
        ("prompts[0].text", lambda: new_cue(text)),
    ]
    for place, door in doors:
        with pytest.raises(TimelineError) as refused:
            door()
        assert (refused.value.place.startswith(place), refused.value.problem) == (True, problem)
