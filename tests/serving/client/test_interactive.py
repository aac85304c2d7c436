"""A controller, and a spectator, whose streams break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import av
import numpy as np
import pytest

from serving.client.aio import AsyncClient
from serving.errors import FrameOutOfRange, InvalidRequest, ReplicaLost, SessionNotFound, WrongState
from serving.pb.longtake.v1 import sessions_pb2 as pb
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


def test_a_command_is_done_once_whether_it_or_its_receipt_was_lost() -> None:
    async def work(client: AsyncClient, server: FakeServer) -> None:
        session = await client.create(fps=0)
        async with client.control(session) as controller:
            server.faults.commands_lost = 1
            assert (await controller.schedule("a red balloon", 0)).cue_frame == 0
            server.faults.receipts_lost = 1
            assert (await controller.start()).stage == pb.RECEIPT_STAGE_ACCEPTED
            server.faults.commands_lost = 1
            assert (await controller.schedule("a blue fish")).cue_frame == 9
            server.faults.receipts_lost = 1
            await controller.schedule("a bird", 40)
            server.faults.receipts_lost = 1
            await controller.remove(40)
        assert len(server.session(session.id).pending) == 1

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
            assert fake.reports == [0, 9]
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
            await asyncio.wait_for(chunks(controller, 10_000), 10)
        await controller.close()
        await client.close()

    asyncio.run(run())
