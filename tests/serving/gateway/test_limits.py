"""What a caller may have and do, held by real managers and denoisers in one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from serving.auth import Caller, Tokens
from serving.config import Limits
from serving.errors import LimitReached, ServingError, SlotsFull, TooManyRequests
from serving.gateway import session_service
from serving.gateway.request_log import RequestLog
from serving.gateway.session_service import SessionService
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.weights.loader import OpenedModel
from tests.serving.gateway.ownership.local_cluster import Cluster, cluster, until
from tests.serving.worker.bench import NOON

ANNA, BERTA = Caller("anna"), Caller("berta")
TOKENS = Tokens({"anna": "digest of a", "berta": "digest of b"})
SMALL = pb.SessionOptions(height=32, width=48, seed=7)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await work

    asyncio.run(bounded())


def cue(frame: int) -> pb.Cue:
    return pb.Cue(frame=frame, prompts=[pb.WeightedPrompt(text=NOON)])


async def opened(manager: SessionService, caller: Caller = ANNA) -> pb.Session:
    return await manager.create(pb.CreateSessionRequest(options=SMALL), caller)


async def refused(work: Awaitable[object], kind: type[ServingError], words: str) -> None:
    with pytest.raises(kind, match=words):
        await work


def test_of_many_sessions_at_once_through_two_managers_a_caller_gets_as_many_as_may_be(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def work() -> None:
        limits = Limits(sessions_per_token=3)
        async with cluster(pocket, tmp_path, managers=2, slots=8, tokens=TOKENS, limits=limits) as there:
            asked = [opened(there.managers[number % 2]) for number in range(50)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(answer, pb.Session) for answer in answers) == 3
            assert {type(answer) for answer in answers} == {pb.Session, LimitReached}
            assert (await opened(there.managers[0], BERTA)).id

    run(work())


async def full_again(there: Cluster) -> None:
    """Anna, who may have two sessions and has one, gets the second and no third."""
    await opened(there.managers[0])
    await refused(opened(there.managers[1]), LimitReached, "anna has 2 sessions, and may have no more; end one")


def test_a_session_that_ended_leaves_its_place_to_another(pocket: OpenedModel, tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(sessions_per_token=2)
        async with cluster(pocket, tmp_path, managers=2, tokens=TOKENS, limits=limits) as there:
            first, _ = await opened(there.managers[0]), await opened(there.managers[1])
            await there.managers[1].delete(first.id, ANNA)
            await full_again(there)

    run(work())


def test_a_session_that_could_not_be_opened_leaves_its_place_to_another(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def work() -> None:
        limits = Limits(sessions_per_token=2)
        options = {"replicas": "a", "managers": 2, "slots": 2, "tokens": TOKENS, "limits": limits}
        async with cluster(pocket, tmp_path, **options) as there:  # type: ignore[arg-type]
            others = [await opened(there.managers[0], BERTA) for _ in range(2)]
            for manager in (*there.managers, *there.managers):
                await refused(opened(manager), SlotsFull, "all 2 sessions of this replica are taken")
            for other in others:
                await there.managers[0].delete(other.id, BERTA)
            await opened(there.managers[0])
            await full_again(there)

    run(work())


def test_a_request_that_is_made_again_through_another_manager_takes_no_second_place(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def work() -> None:
        limits = Limits(sessions_per_token=2)
        async with cluster(pocket, tmp_path, managers=2, tokens=TOKENS, limits=limits) as there:
            request = pb.CreateSessionRequest(options=SMALL, client_id="ann", command_id="1")
            first, again = [await manager.create(request, ANNA) for manager in there.managers]
            assert first.id == again.id
            await full_again(there)

    run(work())


@pytest.mark.parametrize("ids", [{}, {"client_id": "ann", "command_id": "1"}], ids=["without ids", "with ids"])
def test_a_fork_whose_client_goes_stops_and_leaves_nothing(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: dict[str, str]
) -> None:
    async def work() -> None:
        async with cluster(pocket, tmp_path, replicas="a", slots=2) as there:
            manager, bench = there.managers[0], there.benches["a"]
            manager._requests = RequestLog(abandoned_s=0.1)
            options = pb.SessionOptions(height=32, width=48, seed=7, fps=0)
            session = await manager.create(pb.CreateSessionRequest(options=options, cues=[cue(0)]), ANNA)
            await manager.command(session.id, pb.Command(start=pb.Start()), ANNA)
            (copy,) = bench.denoiser._copies.all
            await until(lambda: copy.logic.delivered_frames > 300)
            whole = bench.generator.generate

            def slow(*streams: Any) -> Any:
                time.sleep(0.2)
                return whole(*streams)

            monkeypatch.setattr(bench.generator, "generate", slow)
            request = pb.ForkSessionRequest(session_id=session.id, frame=290, **ids)
            forking = asyncio.create_task(manager.fork(request, ANNA))
            await until(lambda: bench.open_runs() == 2)
            forking.cancel()
            await until(lambda: (bench.open_runs(), bench.denoiser.free, there.copies()) == (1, 1, {"a": 1}))

    run(work())


def test_commands_that_come_too_often_are_refused_on_their_stream_and_reports_are_not(
    pocket: OpenedModel, tmp_path: Path
) -> None:
    async def work() -> None:
        limits = Limits(requests_per_second=0.01, requests_at_once=2)
        async with cluster(pocket, tmp_path, replicas="a", limits=limits) as there:
            manager = there.managers[0]
            session = await opened(manager)

            async def commands() -> AsyncIterator[pb.Command]:
                yield pb.Command(attach=pb.Attach(session_id=session.id))
                for number in range(4):
                    yield pb.Command(id="report", shown=pb.Shown(frame=0))
                    yield pb.Command(id=str(number), schedule_prompt=cue(9 * number))
                await asyncio.sleep(60)

            answers: dict[str, pb.Receipt] = {}
            stream: Any = manager.interact(commands(), ANNA)
            async with aclosing(stream) as events:
                async for sent in events:
                    event = sent.event
                    if event.receipt.command_id in "0123" and event.HasField("receipt"):
                        answers[event.receipt.command_id] = event.receipt
                    if len(answers) == 4:
                        break
            stages = [answers[str(number)].stage for number in range(4)]
            assert stages == [pb.RECEIPT_STAGE_ACCEPTED] * 2 + [pb.RECEIPT_STAGE_REFUSED] * 2
            error = answers["3"].error
            assert (error.reason, error.code) == (pb.ERROR_REASON_TOO_MANY_REQUESTS, 8)
            assert 50 < error.retry_delay.seconds <= 100

    run(work())


def test_long_pages_of_cues_count_as_the_short_ones_in_their_place(pocket: OpenedModel, tmp_path: Path) -> None:
    async def work() -> None:
        limits = Limits(requests_per_second=0.01, requests_at_once=20)
        async with cluster(pocket, tmp_path, replicas="a", limits=limits) as there:
            manager, session = there.managers[0], await opened(there.managers[0])
            whole = pb.ListPendingCuesRequest(session_id=session.id, page_size=1000)
            for _ in range(2):
                await manager.list_pending(whole, ANNA)
            with pytest.raises(TooManyRequests):
                await manager.list_pending(whole, ANNA)

    run(work())


def test_a_session_is_taken_over_so_often_a_second_and_no_more(pocket: OpenedModel, tmp_path: Path) -> None:
    async def attached(manager: SessionService, session: pb.Session) -> bool:
        async def commands() -> AsyncIterator[pb.Command]:
            yield pb.Command(attach=pb.Attach(session_id=session.id))
            await asyncio.sleep(60)

        stream: Any = manager.interact(commands(), ANNA)
        async with aclosing(stream) as events:
            try:
                await anext(events)
            except TooManyRequests:
                return False
        return True

    async def work() -> None:
        limits = Limits(attaches_per_second=0.01)
        async with cluster(pocket, tmp_path, replicas="a", limits=limits) as there:
            session = await opened(there.managers[0])
            assert [await attached(there.managers[0], session) for _ in range(3)] == [True, False, False]

    run(work())


def test_a_stream_that_never_attaches_does_not_stay(
    pocket: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_service, "ATTACH_S", 0.1)

    async def silent() -> AsyncIterator[pb.Command]:
        await asyncio.sleep(60)
        yield pb.Command()

    async def unknown() -> AsyncIterator[pb.Command]:
        yield pb.Command(attach=pb.Attach(session_id="x" * 10_000))

    async def work() -> None:
        async with cluster(pocket, tmp_path, replicas="a") as there:
            for commands, told in ((silent(), "no command came within 0.1 s"), (unknown(), "no session '?x+")):
                stream: Any = there.managers[0].interact(commands, ANNA)
                with pytest.raises(ServingError, match=told) as refused:
                    await anext(stream)
                assert len(str(refused.value)) < 200

    run(work())
