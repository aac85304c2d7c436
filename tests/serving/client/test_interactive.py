"""A controller, and a spectator, whose streams break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import av
import numpy as np
import pytest

from serving.client.aio import AsyncClient
from serving.client.event_queue import MOST_EVENTS
from serving.client.interactive import InteractiveSession
from serving.errors import (
    ControllerReplaced,
    FrameOutOfRange,
    InvalidRequest,
    ReplicaLost,
    SessionNotFound,
    WrongState,
)
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Restyling
from tests.serving.client.test_aio import BALLOON, with_client
from tests.serving.fake_sessions import FakeServer, painted_frame, serving


async def chunks(events: AsyncIterator[pb.Event], end_frame: int) -> list[pb.Chunk]:
    """Those up to `end_frame`."""
    found: list[pb.Chunk] = []
    async for event in events:
        if event.HasField("chunk"):
            found.append(event.chunk)
            if event.chunk.first_frame + len(event.chunk.units) >= end_frame:
                break
    return found


async def until(events: AsyncIterator[pb.Event], wanted: Callable[[pb.Event], bool]) -> pb.Event:
    async for event in events:
        if wanted(event):
            return event
    raise AssertionError("the stream has ended")


def painted_frames(found: list[pb.Chunk]) -> list[int]:
    """The numbers in the pictures, as a decoder shows them."""
    decoder, frames = av.CodecContext.create("h264", "r"), []
    for unit in [*(unit for chunk in found for unit in chunk.units), None]:
        packets = [None] if unit is None else [av.Packet(unit.data)]
        frames += [frame for packet in packets for frame in decoder.decode(packet)]
    return [painted_frame(np.asarray(frame.to_ndarray(format="rgb24"))) for frame in frames]


def test_frames_come_in_order_and_reports_hold_generation_back() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            await asyncio.sleep(0.2)
            assert server.session(session.id).block == 1
            assert painted_frames(await chunks(controller, 45)) == list(range(45))
        assert server.session(session.id).block <= 5

    with_client(work)


@pytest.mark.parametrize("fps", [0, 60])
def test_a_report_that_was_lost_is_made_again(fps: int) -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.reports_lost = 2
        session = await client.create(fps=fps, ahead=1, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            assert painted_frames(await chunks(controller, 45)) == list(range(45))
        assert not server.faults.reports_lost

    with_client(work)


def test_no_frame_is_missing_or_comes_twice_over_lost_streams() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.chunks_before_loss += [2, 0, 0, 3, 1]
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            assert painted_frames(await chunks(controller, 117)) == list(range(117))
        assert not server.faults.chunks_before_loss

    with_client(work)


def test_a_spectator_goes_on_where_its_stream_ended() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.watch_chunks = 2
        server.faults.chunks_before_loss += [1, 2, 1]
        session = await client.create(fps=0, ahead=12, cues=[BALLOON])
        await client.start(session.id)
        assert painted_frames(await chunks(client.watch(session.id, 0), 117)) == list(range(117))

    with_client(work)


def test_a_stream_without_even_a_heartbeat_is_lost_and_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.client.event_stream.LOST_AFTER_S", 0.3)

    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.falls_silent = True
        server.faults.chunks_before_loss += [2]
        session = await client.create(fps=0, ahead=12, cues=[BALLOON])
        await client.start(session.id)
        assert painted_frames(await chunks(client.watch(session.id, 0), 57)) == list(range(57))
        assert not server.faults.chunks_before_loss

    with_client(work)


def test_where_the_numbers_of_events_skip_one_the_stream_is_had_again_from_how_the_session_stands() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            await chunks(controller, 21)
            server.faults.receipts_left_out = 1
            scheduling = asyncio.create_task(controller.schedule("a blue fish", 1000))
            await until(controller, lambda event: len(event.state.pending) == 1)
            assert (await scheduling).cue_frame == 1000
            assert await chunks(controller, 45)
        assert server.session(session.id).done == ["start", "schedule_prompt"]

    with_client(work)


def test_a_command_waits_for_no_more_than_the_picture_that_is_being_sent() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            write = controller._call.write

            async def slowly(command: pb.Command) -> None:
                await asyncio.sleep(0.02)
                await write(command)

            controller._call.write = slowly
            sending = [asyncio.create_task(controller.send_picture(b"x", "jpeg")) for _ in range(50)]
            await asyncio.sleep(0.01)
            await controller.start()
            assert len(server.session(session.id).input) < 10
            await asyncio.gather(*sending)

    with_client(work)


def test_that_no_more_pictures_come_is_said_again_over_another_stream() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        there = server.session(session.id)
        async with client.control(session) as controller:
            await controller.send_picture(b"x", "jpeg")
            await controller.end_input()
            server.faults.chunks_before_loss += [1]
            await controller.start()
            await chunks(controller, 21)
            while there.input != ["picture", "end_input", "end_input"]:
                await asyncio.sleep(0.01)
            await controller.send_picture(b"x", "jpeg")
            server.faults.chunks_before_loss += [1]
            await chunks(controller, 45)
            assert there.input[3:] == ["picture"]

    with_client(work)


@pytest.mark.parametrize("fault", ["commands_lost", "receipts_lost", "commands_unavailable", "too_often"])
def test_a_command_is_done_once_whether_it_or_its_receipt_was_lost(fault: str) -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0)

        async def despite(command: Awaitable[pb.Receipt]) -> pb.Receipt:
            setattr(server.faults, fault, 1)
            return await command

        async with client.control(session) as controller:
            assert (await despite(controller.schedule("a red balloon", 0))).cue_frame == 0
            assert (await despite(controller.start())).stage == pb.RECEIPT_STAGE_ACCEPTED
            assert (await despite(controller.schedule("a blue fish", 30))).cue_frame == 30
            assert (await despite(controller.move(30, 40))).cue_frame == 40
            assert (await despite(controller.remove(40))).frame >= 9
            assert (await despite(controller.pause())).stage == pb.RECEIPT_STAGE_ACCEPTED
            assert (await despite(controller.cut())).command == pb.COMMAND_KIND_CUT
            assert (await despite(controller.restyle(Restyling(0.5)))).command == pb.COMMAND_KIND_RESTYLE
            assert (await despite(controller.reset())).command == pb.COMMAND_KIND_RESET
        changes = ["schedule_prompt", "start", "schedule_prompt", "move_prompt", "remove_prompt"]
        done = [*changes, "pause", "cut", "restyle", "reset"]
        assert (server.session(session.id).done, server.session(session.id).take) == (done, 1)

    with_client(work)


def test_a_refusal_whose_receipt_was_lost_is_the_same_though_things_have_changed() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0)
        async with client.control(session) as controller:
            server.faults.receipts_lost = 1
            refused = asyncio.create_task(controller.start())
            while server.faults.receipts_lost:
                await asyncio.sleep(0.001)
            await client.schedule(session.id, "a red balloon", 0)
            with pytest.raises(WrongState, match="CREATED"):
                await refused
            assert server.session(session.id).state == pb.SESSION_STATE_READY

    with_client(work)


def test_commands_are_answered_though_nobody_takes_the_events() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session, reports="none") as controller:
            for frame in range(1, MOST_EVENTS):
                await controller.schedule("a bird", 3 * frame)
            await controller.start()
            for _ in range(200):
                server.session(session.id).make(1)
                await asyncio.sleep(0)
            assert (await controller.pause()).stage == pb.RECEIPT_STAGE_ACCEPTED
            told = await until(controller, lambda event: event.HasField("gap"))
            first = await until(controller, lambda event: event.HasField("chunk"))
            assert told.gap.first_frame == 0
            assert first.chunk.first_frame == told.gap.frames

    with_client(work)


def test_after_a_reset_a_refused_command_is_still_answered() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.reset()
            with pytest.raises(WrongState, match="CREATED"):
                await controller.start()

    with_client(work)


def test_a_controller_that_is_replaced_looks_on_and_stays_a_spectator() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.chunks_before_loss += [1, 2]
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as first, client.control(session) as second:
            await until(first, lambda event: event.HasField("replaced"))
            with pytest.raises(ControllerReplaced, match="another controller"):
                await first.start()
            await second.start()
            seen = asyncio.create_task(chunks(first, 57))
            assert painted_frames(await chunks(second, 57)) == list(range(57))
            assert painted_frames(await seen) == list(range(57))
            assert not server.faults.chunks_before_loss
            assert (first.replaced, second.replaced) == (True, False)
            assert server.session(session.id).controller == second.client_id
            assert (await second.pause()).stage == pb.RECEIPT_STAGE_ACCEPTED

    with_client(work)


def test_a_controller_that_comes_back_after_another_took_over_takes_nothing_back() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as first:
            server.faults.receipts_lost = 1
            asked = asyncio.create_task(first.start())
            while server.faults.receipts_lost:
                await asyncio.sleep(0.001)
            async with client.control(session) as second:
                assert (await asked).repeated
                await until(first, lambda event: event.HasField("replaced"))
                assert not second.replaced
                assert server.session(session.id).controller == second.client_id
        assert server.session(session.id).done == ["start"]

    with_client(work)


def test_an_answer_to_somebody_else_is_an_event_like_any_other() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await client.start(session.id)
            receipt = (await until(controller, lambda event: event.HasField("receipt"))).receipt
            assert receipt.command == pb.COMMAND_KIND_START
            with pytest.raises(WrongState, match="RUNNING"):
                await controller.start()

    with_client(work)


def test_a_refused_command_raises_and_ends_nothing() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0)
        async with client.control(session) as controller:
            with pytest.raises(WrongState, match="CREATED"):
                await controller.start()
            with pytest.raises(InvalidRequest, match="no cue is at frame 5"):
                await controller.move(5, 6)
            await controller.schedule("a red balloon", 0)
            await controller.start()
            assert len(await chunks(controller, 21)) == 2

    with_client(work)


def test_a_cue_tells_when_it_has_applied() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            accepted = await controller.schedule("a blue fish")
            applied = await until(
                controller,
                lambda event: (
                    event.receipt.command_id == accepted.command_id
                    and event.receipt.stage == pb.RECEIPT_STAGE_APPLIED
                ),
            )
            assert applied.receipt.frame == accepted.frame

    with_client(work)


def test_a_paced_session_is_played_and_pauses_at_the_frame_that_is_on_screen() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=60, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            found = await chunks(controller, 33)
            fake = server.session(session.id)
            assert fake.reports[0] < 9
            assert fake.reports == sorted(fake.reports)
            assert 9 <= fake.reports[-1] < 33
            await controller.pause()
            paused = await until(controller, lambda event: event.state.state == pb.SESSION_STATE_PAUSED)
            assert 9 <= paused.state.shown_frame < 33
            block = fake.block
            await asyncio.sleep(0.5)
            assert fake.block == block
            await controller.resume()
            found += await chunks(controller, 57)
            assert painted_frames(found) == list(range(57))

    with_client(work)


def test_after_a_reset_frames_begin_at_0_again() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            await chunks(controller, 33)
            await controller.reset()
            await controller.schedule("a blue fish", 0)
            await controller.start()
            event = await until(controller, lambda event: event.take == 1 and event.HasField("chunk"))
            assert event.chunk.first_frame == 0

    with_client(work)


def test_a_reset_behind_a_lost_stream_is_seen_from_its_beginning() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await controller.start()
            await chunks(controller, 33)
            server.faults.receipts_lost = 1
            await controller.reset()
            await controller.schedule("a blue fish", 0)
            await controller.start()
            event = await until(controller, lambda event: event.take == 1 and event.HasField("chunk"))
            assert event.chunk.first_frame == 0

    with_client(work)


def test_what_is_not_kept_any_more_is_a_gap_to_one_who_was_away() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        server.faults.kept_chunks, server.faults.watch_chunks = 2, 1
        session = await client.create(fps=0, ahead=8, cues=[BALLOON])
        spectator = client.watch(session.id, 0)
        await anext(spectator)
        await client.start(session.id)
        while server.session(session.id).block < 8:
            await asyncio.sleep(0.01)
        gap = await until(spectator, lambda event: event.HasField("gap"))
        assert (gap.gap.first_frame, gap.gap.frames) == (9, 60)
        await spectator.aclose()

    with_client(work)


def test_a_frame_that_was_never_there_is_refused() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create()
        with pytest.raises(FrameOutOfRange, match="999"):
            await anext(client.watch(session.id, 999))

    with_client(work)


def test_a_session_that_ends_ends_its_streams() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session) as controller:
            await client.delete(session.id)
            events = [event async for event in controller]
            assert events[-1].state.state == pb.SESSION_STATE_ENDED
            with pytest.raises(SessionNotFound, match="has ended"):
                await controller.start()
        with pytest.raises(SessionNotFound):
            async with client.control(session):
                pass

    with_client(work)


def test_a_server_that_stays_away_is_given_up() -> None:
    async def run() -> None:
        fake = FakeServer()
        async with serving(fake) as address:
            client = AsyncClient(address, patience_s=0.3)
            session = await client.create(fps=0, cues=[BALLOON])
            controller = await client.control(session).__aenter__()
            await controller.start()
        with pytest.raises(ReplicaLost, match=r"not there again within 0\.3 s"):
            async with asyncio.timeout(60):
                await chunks(controller, 10_000)
        await controller.close()
        await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("work", ["_take", "_tick"])
def test_an_error_that_nobody_foresaw_is_told_to_whoever_waits(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("not foreseen")

    async def use(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        with pytest.raises(RuntimeError, match="not foreseen"):
            async with client.control(session) as controller:
                await controller.start()

    monkeypatch.setattr(InteractiveSession, work, broken)
    with_client(use)


def test_a_controller_that_was_not_entered_says_so() -> None:
    async def use(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        with pytest.raises(WrongState, match="async with"):
            await client.control(session).start()

    with_client(use)


UNCARRIED: dict[str, Callable[[InteractiveSession], Awaitable[object]]] = {
    "frame is 9223372036854775808, which": lambda controller: controller.schedule("noon", 1 << 63),
    "frame is 9223372036854775808, which ": lambda controller: controller.remove(1 << 63),
    "to_frame is -9223372036854775809, which": lambda controller: controller.move(0, -(1 << 63) - 1),
    "frame is 9223372036854775808, which no": lambda controller: controller.pause(1 << 63),
    "frame is 9223372036854775808, which no ": lambda controller: controller.shown(1 << 63),
    "time_us is 18446744073709551616, which": lambda controller: controller.send_picture(b"x", "jpeg", 1 << 64),
    "format is 'gif'; known: jpeg, png, h264": lambda controller: controller.send_picture(b"x", cast(Any, "gif")),
}


def test_what_no_message_can_carry_is_refused_by_its_name_and_ends_nothing() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0, cues=[BALLOON])
        async with client.control(session, reports="none") as controller:
            for words, asked in UNCARRIED.items():
                with pytest.raises(InvalidRequest) as caught:
                    await asked(controller)
                assert str(caught.value).startswith(words)
            assert (await controller.start()).stage == pb.RECEIPT_STAGE_ACCEPTED

    with_client(work)


def test_a_controller_that_cannot_begin_says_why() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(cues=[BALLOON])
        with pytest.raises(InvalidRequest, match="reports is 'all'; known: received, played, none"):
            client.control(session, reports=cast(Any, "all"))
        with pytest.raises(InvalidRequest, match="from_frame is 9223372036854775808, which"):
            async with client.control(session, 1 << 63):
                pass

    with_client(work)
