"""A controller that schedules, pauses, resumes and reports what it shows."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

import pytest

from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.pb.longtake.v1 import sessions_pb2_grpc
from tests.serving.live.scenes import NIGHT, NOON, SNOW, chunks, create, cue, frames_of, start, watch

Stub = sessions_pb2_grpc.SessionsStub


class InteractiveSession:
    """One Interact stream: what is sent goes out in order, and every event that comes is kept."""

    def __init__(self, stub: Stub, session_id: str, from_frame: int = 0) -> None:
        self._commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        self.send(pb.Command(id="attach", attach=pb.Attach(session_id=session_id, from_frame=from_frame)))
        self._call = stub.Interact(iter(self._commands.get, None), timeout=60)
        self.events: list[pb.Event] = []

    def send(self, command: pb.Command) -> None:
        self._commands.put(command)

    def end_commands(self) -> None:
        """Close the client's half of the stream."""
        self._commands.put(None)

    def until(self, reached: Callable[[pb.Event], bool]) -> pb.Event:
        for event in self._call:
            self.events.append(event)
            if reached(event):
                return event
        raise AssertionError("the stream ended")

    def receipt(self, command_id: str, stage: int) -> pb.Receipt:
        return self.until(
            lambda event: event.receipt.command_id == command_id and event.receipt.stage == stage
        ).receipt

    def frames(self) -> list[int]:
        return frames_of(event.chunk for event in self.events if event.HasField("chunk"))

    def close(self) -> None:
        self._call.cancel()


@pytest.fixture
def controlled(stub: Stub) -> Iterator[InteractiveSession]:
    session = create(stub, fps=16, ahead=1)
    controller = InteractiveSession(stub, session.id)
    yield controller
    controller.close()


def chunk_from(frame: int) -> Callable[[pb.Event], bool]:
    return lambda event: event.HasField("chunk") and event.chunk.first_frame >= frame


def test_a_command_is_accepted_and_then_applied_at_the_frame_it_was_told(controlled: InteractiveSession) -> None:
    controlled.send(pb.Command(id="go", start=pb.Start()))
    controlled.until(chunk_from(9))
    controlled.send(pb.Command(id="night", schedule_prompt=cue(NIGHT)))
    accepted = controlled.receipt("night", pb.RECEIPT_STAGE_ACCEPTED)
    applied = controlled.receipt("night", pb.RECEIPT_STAGE_APPLIED)
    assert applied.frame == accepted.frame
    assert accepted.frame >= 21


def test_a_refused_command_is_answered_and_ends_nothing(controlled: InteractiveSession) -> None:
    controlled.send(pb.Command(id="too early", resume=pb.Resume()))
    refusal = controlled.receipt("too early", pb.RECEIPT_STAGE_REFUSED)
    assert "only a paused one can resume" in refusal.error.message
    controlled.send(pb.Command(id="go", start=pb.Start()))
    assert controlled.receipt("go", pb.RECEIPT_STAGE_ACCEPTED).frame == 0


def test_a_removed_cue_never_applies_and_a_moved_one_applies_where_it_was_moved(
    controlled: InteractiveSession,
) -> None:
    controlled.send(pb.Command(id="night", schedule_prompt=cue(NIGHT, 21)))
    controlled.send(pb.Command(id="snow", schedule_prompt=cue(SNOW, 33)))
    controlled.send(pb.Command(id="away", remove_prompt=pb.RemovePrompt(frame=21)))
    controlled.send(pb.Command(id="later", move_prompt=pb.MovePrompt(frame=33, to_frame=34)))
    controlled.send(pb.Command(id="go", start=pb.Start()))
    controlled.until(chunk_from(57))
    applied = [event.applied for event in controlled.events if event.HasField("applied")]
    assert [entry.frame for entry in applied] == [0, 45]
    assert applied[1].cue.prompts[0].text == SNOW


def test_progress_counts_the_frames_made_so_far(controlled: InteractiveSession) -> None:
    controlled.send(pb.Command(id="go", start=pb.Start()))
    controlled.until(lambda event: event.progress.current_start_frame == 33)
    counts = [e.progress.current_start_frame for e in controlled.events if e.HasField("progress")]
    assert counts == [9, 21, 33]


def test_a_pause_stops_where_the_viewer_is_and_nothing_is_lost(controlled: InteractiveSession, stub: Stub) -> None:
    controlled.send(pb.Command(id="go", start=pb.Start()))
    controlled.until(chunk_from(33))
    controlled.send(pb.Command(id="wait", pause=pb.Pause(frame=25)))
    assert controlled.receipt("wait", pb.RECEIPT_STAGE_ACCEPTED).frame == 25
    session_id = next(event.state.id for event in controlled.events if event.HasField("state"))
    time.sleep(1)
    held = stub.GetSession(pb.GetSessionRequest(session_id=session_id))
    assert (held.state, held.shown_frame) == (pb.SESSION_STATE_PAUSED, 25)
    time.sleep(1)
    assert stub.GetSession(pb.GetSessionRequest(session_id=session_id)).next_frame == held.next_frame
    controlled.send(pb.Command(id="on", resume=pb.Resume()))
    assert controlled.receipt("on", pb.RECEIPT_STAGE_ACCEPTED).frame == 26
    controlled.until(chunk_from(81))
    assert controlled.frames() == list(range(controlled.frames()[-1] + 1))


def test_reports_of_a_slow_viewer_hold_generation_back(controlled: InteractiveSession, stub: Stub) -> None:
    controlled.send(pb.Command(id="go", start=pb.Start()))
    controlled.until(chunk_from(9))
    controlled.send(pb.Command(shown=pb.Shown(frame=3)))
    time.sleep(3)
    session_id = next(event.state.id for event in controlled.events if event.HasField("state"))
    assert stub.GetSession(pb.GetSessionRequest(session_id=session_id)).current_start_frame == 21


def test_a_controller_that_returns_goes_on_where_it_was(stub: Stub) -> None:
    session = create(stub, fps=16, ahead=1)
    first = InteractiveSession(stub, session.id)
    first.send(pb.Command(id="go", start=pb.Start()))
    first.until(chunk_from(21))
    first.close()
    time.sleep(1)
    second = InteractiveSession(stub, session.id, from_frame=33)
    second.until(chunk_from(57))
    assert second.frames()[0] == 33
    assert second.frames() == list(range(33, second.frames()[-1] + 1))
    second.close()


def test_two_viewers_see_the_same(stub: Stub) -> None:
    session = create(stub, cue(NOON, 0))
    start(stub, session)
    assert chunks(watch(stub, session), 45) == chunks(watch(stub, session), 45)


def test_a_client_that_sends_no_more_goes_on_being_sent_frames_by_the_clock(
    stub: Stub, controlled: InteractiveSession
) -> None:
    controlled.send(pb.Command(id="start", start=pb.Start()))
    controlled.until(chunk_from(9))
    controlled.send(pb.Command(shown=pb.Shown(frame=9)))
    controlled.end_commands()
    controlled.until(chunk_from(93))
    session = controlled.events[0].state
    stub.DeleteSession(pb.DeleteSessionRequest(session_id=session.id))
    ended = controlled.until(lambda event: event.HasField("end")).end
    assert ended.reason == pb.STREAM_END_REASON_SESSION_ENDED
