from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from typing_extensions import override

from serving.auth import Caller
from serving.errors import TooManyRequests, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue, Transition
from serving.timeline.formats.reader import parse_timeline
from serving.web.app import web_app

BLEND = pb.Cue(
    frame=10,
    prompts=[pb.WeightedPrompt(text="dusk", weight=0.5), pb.WeightedPrompt(text="night", weight=2)],
    transition=pb.Transition(blocks=3, method=pb.TRANSITION_METHOD_SLERP),
)


def applied(number: int) -> pb.AppliedCue:
    frame = 12 * number - 3 if number else 0
    return pb.AppliedCue(
        cue=pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=f"n {number}", weight=1)]), frame=frame
    )


class Past:
    """A session with a past, in pages of 700 cues."""

    def __init__(self, cues: list[pb.AppliedCue]) -> None:
        self._cues = cues

    def authenticate(self, token: str | None) -> Caller:
        return Caller("")

    async def get(self, session_id: str, caller: Caller) -> pb.Session:
        return pb.Session(options=pb.SessionOptions(model="pocket", seed=(1 << 64) - 1, height=32, width=48))

    async def list_applied(self, request: pb.ListAppliedCuesRequest, caller: Caller) -> pb.ListAppliedCuesResponse:
        start = int(request.page_token or 0)
        if start == 1400:
            raise WrongState("the session has been reset")
        token = str(start + 700) if start + 700 < len(self._cues) else ""
        return pb.ListAppliedCuesResponse(applied=self._cues[start : start + 700], next_page_token=token)


def file_of(cues: list[pb.AppliedCue]) -> Any:
    sessions: Any = Past(cues)
    return TestClient(web_app(sessions)).get("/sessions/one/timeline.json")


def test_a_past_of_many_pages_is_a_timeline_that_can_be_read_again() -> None:
    answer = file_of([applied(number) for number in range(1400)])
    read = parse_timeline(answer.content, "timeline.json").timeline
    assert [cue.frame for cue in read.cues] == [0, *range(9, 12 * 1399, 12)]
    assert (read.cues[-1].blend.text, read.settings.seed, read.settings.width) == ("n 1399", (1 << 64) - 1, 48)


def test_a_cue_is_in_the_file_where_it_applied_with_its_blend_and_transition() -> None:
    answer = file_of([applied(0), pb.AppliedCue(cue=BLEND, frame=21)])
    blend, way = Blend((("dusk", 0.5), ("night", 2.0))), Transition(3, "slerp")
    assert parse_timeline(answer.content, "timeline.json").timeline.cues[1] == Cue(21, blend, way)


class Future(Past):
    """A session with cues to come, two a page."""

    async def list_pending(self, request: pb.ListPendingCuesRequest, caller: Caller) -> pb.ListPendingCuesResponse:
        start = int(request.page_token or 0)
        cues = [entry.cue for entry in self._cues[start : start + 2]]
        token = str(start + 2) if start + 2 < len(self._cues) else ""
        return pb.ListPendingCuesResponse(pending=cues, next_page_token=token)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_is_to_come_is_a_file_of_all_its_pages(count: int) -> None:
    sessions: Any = Future([applied(number) for number in range(count)])
    cues = TestClient(web_app(sessions)).get("/sessions/one/pending.json").json()["cues"]
    assert [cue["text"] for cue in cues] == [f"n {number}" for number in range(count)]


class OftenAsked(Past):
    """Refuses the requests of these numbers, as asked too soon."""

    def __init__(self, *refused: int) -> None:
        super().__init__([applied(number) for number in range(1000)])
        self._refused, self._asked = refused, 0

    @override
    async def list_applied(self, request: pb.ListAppliedCuesRequest, caller: Caller) -> pb.ListAppliedCuesResponse:
        self._asked += 1
        if self._asked in self._refused:
            raise TooManyRequests("all clients together ask too often", 0.01)
        return await super().list_applied(request, caller)


@pytest.mark.parametrize(("refused", "status"), [((1,), 429), ((2, 3), 200)], ids=["first page", "next page"])
def test_a_file_that_has_begun_goes_on_once_its_caller_may_ask(refused: tuple[int, ...], status: int) -> None:
    sessions: Any = OftenAsked(*refused)
    answer = TestClient(web_app(sessions)).get("/sessions/one/timeline.json")
    assert answer.status_code == status
    if status == 200:
        assert len(answer.json()["cues"]) == 1000


def test_a_session_that_has_shown_nothing_has_no_timeline() -> None:
    answer = file_of([])
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "FAILED_PRECONDITION")


def test_a_file_whose_session_is_reset_meanwhile_does_not_end_as_if_it_were_whole() -> None:
    with pytest.raises(RuntimeError, match="response already started"):
        file_of([applied(number) for number in range(1500)])
