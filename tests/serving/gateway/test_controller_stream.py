"""What a controller is answered, whatever becomes of its session's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from grpc import StatusCode

from serving.errors import InvalidRequest, ReplicaLost
from serving.gateway import controller_stream
from serving.gateway.controller_stream import Apply, ControllerStream, PassOn
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import SerializedEvent
from serving.protocol.picture_queue import Batch


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_stream, "MISSED_S", 0.05)
    monkeypatch.setattr(controller_stream, "HEARTBEAT_S", 0.02)


def accepted(command_id: str) -> pb.Receipt:
    return pb.Receipt(command_id=command_id, stage=pb.RECEIPT_STAGE_ACCEPTED)


async def no_pictures(batch: Batch) -> None:
    raise AssertionError("no picture was sent")


def receipts(*, published: bool) -> list[pb.Receipt]:
    """Of a command whose receipt comes with the session's events, or was published where nobody read them."""

    async def session(done: asyncio.Event) -> AsyncGenerator[SerializedEvent]:
        await done.wait()
        if published:
            yield SerializedEvent.of(pb.Event(seq=1, receipt=accepted("one")))
        await asyncio.sleep(0.3)

    async def commands() -> AsyncGenerator[pb.Command]:
        yield pb.Command(id="one", pause=pb.Pause())
        await asyncio.Future()

    async def steer() -> list[pb.Receipt]:
        done, followed = asyncio.Event(), asyncio.Event()
        followed.set()

        async def apply(command: pb.Command) -> pb.Receipt:
            done.set()
            return accepted(command.id)

        async def never() -> None:
            raise AssertionError("the client sends on")

        stream = ControllerStream("a client", session(done), followed, apply, never, no_pictures)
        return [sent.event.receipt async for sent in stream.run(commands()) if sent.event.HasField("receipt")]

    return asyncio.run(steer())


def test_a_command_is_answered_though_its_receipt_was_lost_between_two_streams() -> None:
    (answer,) = receipts(published=False)
    assert (answer.command_id, answer.stage) == ("one", pb.RECEIPT_STAGE_ACCEPTED)


def test_a_receipt_that_came_is_not_sent_again() -> None:
    (answer,) = receipts(published=True)
    assert not answer.repeated


def test_a_client_that_sends_no_more_is_sent_all_events_until_the_session_ends() -> None:
    async def session() -> AsyncGenerator[SerializedEvent]:
        for number in range(3):
            await asyncio.sleep(0.05)
            yield SerializedEvent.of(pb.Event(seq=number, progress=pb.Progress()))

    async def commands() -> AsyncGenerator[pb.Command]:
        yield pb.Command(id="one", pause=pb.Pause())

    async def steer() -> tuple[list[str | None], list[str]]:
        followed, said = asyncio.Event(), list[str]()
        followed.set()

        async def apply(command: pb.Command) -> pb.Receipt:
            said.append("command")
            return pb.Receipt()

        async def ended() -> None:
            said.append("no more commands")

        stream = ControllerStream("a client", session(), followed, apply, ended, no_pictures)
        return [sent.event.WhichOneof("event") async for sent in stream.run(commands())], said

    events, said = asyncio.run(steer())
    assert [event for event in events if event != "heartbeat"] == ["progress"] * 3 + ["end"]
    assert said == ["command", "no more commands"]


def test_commands_that_end_with_an_error_end_the_stream_with_it() -> None:
    async def session() -> AsyncGenerator[SerializedEvent]:
        yield SerializedEvent.of(pb.Event(state=pb.Session()))
        await asyncio.Future()

    async def commands() -> AsyncGenerator[pb.Command]:
        raise InvalidRequest("no command")
        yield

    async def steer() -> None:
        followed = asyncio.Event()
        stream: Any = ControllerStream("a client", session(), followed, Any, Any, no_pictures)  # type: ignore[arg-type]
        async for _ in stream.run(commands()):
            pass

    with pytest.raises(InvalidRequest, match="no command"):
        asyncio.run(steer())


@pytest.mark.parametrize(("lost", "waiting"), [(False, pb.WAIT_REASON_SHOWN), (True, pb.WAIT_REASON_REPLICA)])
def test_a_heartbeat_says_what_the_session_waits_for(lost: bool, waiting: int) -> None:
    async def session() -> AsyncGenerator[SerializedEvent]:
        yield SerializedEvent.of(pb.Event(state=pb.Session(waiting=pb.WAIT_REASON_SHOWN)))
        await asyncio.sleep(0.2)

    async def commands() -> AsyncGenerator[pb.Command]:
        await asyncio.Future()
        yield pb.Command()

    async def steer() -> list[int]:
        followed = asyncio.Event()
        if not lost:
            followed.set()
        stream: Any = ControllerStream("a client", session(), followed, Any, Any, no_pictures)  # type: ignore[arg-type]
        events = [sent.event async for sent in stream.run(commands())]
        return [event.heartbeat.waiting for event in events if event.HasField("heartbeat")]

    assert set(asyncio.run(steer())) == {waiting}


async def slow(command: pb.Command) -> pb.Receipt:
    await asyncio.sleep(0.3)
    return pb.Receipt()


async def half_a_second() -> AsyncGenerator[SerializedEvent]:
    """The events of a session that is short."""
    await asyncio.sleep(0.5)
    return
    yield


def fed(
    feed: Callable[[], AsyncGenerator[pb.Command]], pass_on: PassOn, apply: Apply = slow,
    session: Callable[[], AsyncGenerator[SerializedEvent]] = half_a_second,
) -> list[pb.Event]:  # fmt: skip
    """What a controller is sent whose commands never end, for as long as the session's events come."""

    async def never() -> None:
        raise AssertionError("the client sends on")

    async def steer() -> list[pb.Event]:
        followed = asyncio.Event()
        followed.set()
        stream = ControllerStream("a client", session(), followed, apply, never, pass_on)
        return [sent.event async for sent in stream.run(feed())]

    return asyncio.run(steer())


def steered(commands: list[pb.Command], pass_on: PassOn, apply: Apply = slow) -> list[pb.Event]:
    """What a controller is sent that sends these, over a session of half a second."""

    async def sent() -> AsyncGenerator[pb.Command]:
        for command in commands:
            yield command
        await asyncio.Future()

    return fed(sent, pass_on, apply)


@pytest.mark.parametrize("picture", [False, True], ids=["command", "picture"])
def test_a_command_that_fails_as_nobody_foresaw_is_answered_logged_once_and_ends_nothing(
    picture: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def pass_on(batch: Batch) -> None:
        raise RuntimeError("a bug")

    async def apply(command: pb.Command) -> pb.Receipt:
        if command.id == "bad":
            raise RuntimeError("a bug")
        return accepted(command.id)

    bad = shown(1) if picture else pb.Command(id="bad", pause=pb.Pause())
    events = steered([bad, pb.Command(id="good", pause=pb.Pause())], pass_on, apply)
    refused, done = [event.receipt for event in events if event.HasField("receipt")]
    assert (refused.stage, refused.error.code) == (pb.RECEIPT_STAGE_REFUSED, StatusCode.INTERNAL.value[0])
    assert "which nobody foresaw" in refused.error.message
    assert (done.command_id, events[-1].WhichOneof("event")) == ("good", "end")
    assert [record.exc_info is not None for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("large", "most"),
    [
        (pb.Command(id="x" * (1 << 20), pause=pb.Pause()), 1 << 20),
        (pb.Command(picture=pb.Picture(data=bytes(16 << 20))), 16 << 20),
    ],
    ids=["command", "picture"],
)
def test_a_command_that_is_too_large_is_refused_at_once_and_ends_nothing(large: pb.Command, most: int) -> None:
    asked: list[int] = []

    async def apply(command: pb.Command) -> pb.Receipt:
        asked.append(command.ByteSize())
        return accepted(command.id)

    events = steered([large, pb.Command(id="good", pause=pb.Pause())], no_pictures, apply)
    refused, done = [event.receipt for event in events if event.HasField("receipt")]
    assert refused.error.reason == pb.ERROR_REASON_INVALID_REQUEST
    assert f"at most {most} are read" in refused.error.message
    assert (len(asked), done.command_id) == (1, "good")
    assert refused.ByteSize() < 1000


def shown(number: int, nbytes: int = 10) -> pb.Command:
    return pb.Command(picture=pb.Picture(id=number, format=pb.PICTURE_FORMAT_JPEG, data=bytes(nbytes)))


def test_of_reports_that_come_too_fast_the_newest_is_passed_on() -> None:
    passed: list[int] = []

    async def apply(command: pb.Command) -> pb.Receipt:
        passed.append(command.shown.frame)
        return pb.Receipt()

    steered([pb.Command(shown=pb.Shown(frame=frame)) for frame in range(1000)], no_pictures, apply)
    assert len(passed) < 100
    assert passed == sorted(passed)
    assert passed[-1] == 999


def test_a_report_goes_before_the_commands_that_came_after_it() -> None:
    applied: list[str] = []

    async def apply(command: pb.Command) -> pb.Receipt:
        await asyncio.sleep(0.01 if command.HasField("shown") else 0)
        applied.append(command.WhichOneof("action") or "")
        return pb.Receipt()

    reset = pb.Command(id="again", reset=pb.Reset())
    steered([pb.Command(shown=pb.Shown(frame=1)), pb.Command(shown=pb.Shown(frame=2)), reset], no_pictures, apply)
    assert applied[-1] == "reset"


def test_pictures_do_not_wait_for_a_command_that_is_being_answered() -> None:
    passed: list[int] = []

    async def pass_on(batch: Batch) -> None:
        passed.extend(command.picture.id for command in batch.commands)

    async def never(_: pb.Command) -> pb.Receipt:
        await asyncio.Event().wait()
        return pb.Receipt()

    steered([shown(1), pb.Command(id="one", pause=pb.Pause()), shown(2)], pass_on, never)
    assert passed == [1, 2]


def test_of_pictures_that_come_too_fast_the_newest_are_passed_on_and_the_others_counted() -> None:
    batches: list[Batch] = []

    async def pass_on(batch: Batch) -> None:
        batches.append(batch)
        await asyncio.sleep(0.1)

    steered([shown(number) for number in range(100)], pass_on)
    numbers = [command.picture.id for batch in batches for command in batch.commands]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 99
    assert sum(batch.dropped for batch in batches) == 100 - len(numbers)


def test_what_is_no_picture_is_refused_alone_and_named() -> None:
    batches: list[Batch] = []

    async def pass_on(batch: Batch) -> None:
        batches.append(batch)

    empty, unknown = shown(2, 0), shown(3)
    empty.id, unknown.id, unknown.picture.format = "empty", "unknown", pb.PICTURE_FORMAT_UNSPECIFIED
    events = steered([shown(1), empty, unknown, shown(4), pb.Command(end_input=pb.EndInput())], pass_on)
    refusals = [event.receipt for event in events if event.HasField("receipt")]
    assert [(receipt.command_id, receipt.error.reason) for receipt in refusals] == [
        ("empty", pb.ERROR_REASON_INVALID_REQUEST),
        ("unknown", pb.ERROR_REASON_INVALID_REQUEST),
    ]
    passed = [command for batch in batches for command in batch.commands]
    assert [command.picture.id for command in passed[:-1]] == [1, 4]
    assert passed[-1].HasField("end_input")
    assert sum(batch.dropped for batch in batches) == 2


@pytest.mark.parametrize("goes_on", [False, True], ids=["ended", "goes on"])
def test_a_replica_that_takes_a_session_over_is_told_that_no_more_pictures_come(goes_on: bool) -> None:
    passed: list[str] = []

    async def pass_on(batch: Batch) -> None:
        passed.extend(command.WhichOneof("action") or "" for command in batch.commands)

    async def feed() -> AsyncGenerator[pb.Command]:
        yield pb.Command(end_input=pb.EndInput())
        yield pb.Command(end_input=pb.EndInput())
        if goes_on:
            yield shown(1)
        await asyncio.Future()

    async def session() -> AsyncGenerator[SerializedEvent]:
        await asyncio.sleep(0.05)
        yield SerializedEvent.of(pb.Event(resumed=pb.Resumed(frame=9)))
        await asyncio.sleep(0.05)

    fed(feed, pass_on, session=session)
    assert passed == (["end_input", "picture"] if goes_on else ["end_input", "end_input"])


def test_an_end_of_pictures_that_did_not_arrive_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.gateway.controller_stream.REFUSED_AGAIN_S", 0.05)
    passed: list[Batch] = []

    async def pass_on(batch: Batch) -> None:
        passed.append(batch)
        if len(passed) < 3:
            raise ReplicaLost("it did not answer in time")

    steered([shown(1), pb.Command(end_input=pb.EndInput())], pass_on)
    assert [batch.commands[-1].WhichOneof("action") for batch in passed] == ["end_input"] * 3
    assert [batch.dropped for batch in passed] == [0, 1, 1]


def test_pictures_that_are_refused_are_refused_once_and_counted_as_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.gateway.controller_stream.REFUSED_AGAIN_S", 60.0)
    batches: list[Batch] = []

    async def pass_on(batch: Batch) -> None:
        batches.append(batch)
        raise InvalidRequest("the session takes no pictures")

    async def feed() -> AsyncGenerator[pb.Command]:
        for number in range(4):
            yield shown(number)
            while len(batches) == number:
                await asyncio.sleep(0.001)
        await asyncio.Future()

    async def session() -> AsyncGenerator[SerializedEvent]:
        async with asyncio.timeout(20):
            while len(batches) < 4:
                await asyncio.sleep(0.01)
        return
        yield

    refusals = [event.receipt for event in fed(feed, pass_on, session=session) if event.HasField("receipt")]
    assert [receipt.command for receipt in refusals] == [pb.COMMAND_KIND_PICTURE]
    assert [batch.dropped for batch in batches] == [0, 1, 2, 3]
