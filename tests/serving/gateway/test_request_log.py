from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from weakref import WeakSet

import pytest

from serving.errors import CommandIdReused, ReplicaLost, ServingError, SlotsFull, Unforeseen
from serving.gateway.request_log import RequestLog, session_id_of
from serving.pb.longtake.v1 import sessions_pb2 as pb


class Opened:
    """Opens sessions, of which it counts; `failures` come first."""

    def __init__(self, *failures: Exception) -> None:
        self.count = 0
        self._failures = list(failures)
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> int:
        self.count += 1
        await self.may_end.wait()
        if self._failures:
            raise self._failures.pop(0)
        return self.count


def creation(command_id: str = "1", client_id: str = "ann", seed: int = 7) -> pb.CreateSessionRequest:
    options = pb.SessionOptions(seed=seed)
    return pb.CreateSessionRequest(client_id=client_id, command_id=command_id, options=options)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def test_a_request_that_comes_again_has_its_first_answer() -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened()
        assert [await log.once("", creation(), opened) for _ in range(3)] == [1, 1, 1]
        assert await log.once("", creation("2"), opened) == 2

    run(work)


def test_what_was_done_for_an_answer_is_not_kept_with_it() -> None:
    class Pictures:
        """What somebody read in order to answer."""

    read = WeakSet[Pictures]()

    async def refuse() -> None:
        pictures = Pictures()
        read.add(pictures)
        raise SlotsFull("all 3 are taken")

    async def work() -> None:
        log = RequestLog()
        for _ in range(2):
            with pytest.raises(SlotsFull, match="all 3 are taken"):
                await log.once("", creation(), refuse)
            gc.collect()
            assert (len(log), len(read)) == (1, 0)

    run(work)


def test_who_asks_while_it_is_being_done_waits_for_the_same() -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened()
        opened.may_end.clear()
        first, second = (asyncio.create_task(log.once("", creation(), opened)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        opened.may_end.set()
        assert (await second, opened.count) == (1, 1)
        assert first.cancelled()

    run(work)


@pytest.mark.parametrize(("failure", "lines"), [(KeyError("latents"), 1), (SlotsFull("all 3 are taken"), 0)])
def test_what_fails_as_nobody_foresaw_once_who_asked_has_gone_is_logged(
    caplog: pytest.LogCaptureFixture, failure: Exception, lines: int
) -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened(failure)
        opened.may_end.clear()
        asked = asyncio.create_task(log.once("", creation(), opened))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        opened.may_end.set()
        await asyncio.sleep(0.05)

    run(work)
    assert len(caplog.records) == lines


@pytest.mark.parametrize("failure", [ReplicaLost("it died"), Unforeseen("a plan that fails")])
def test_a_refusal_is_an_answer_and_what_the_server_failed_at_is_none(failure: ServingError) -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened(failure, SlotsFull("all 3 are taken"))
        with pytest.raises(type(failure)):
            await log.once("", creation(), opened)
        for _ in range(2):
            with pytest.raises(SlotsFull, match="all 3 are taken"):
                await log.once("", creation(), opened)
        assert opened.count == 2
        assert await log.once("", creation("2"), opened) == 3

    run(work)


def test_a_fault_is_no_answer() -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened(ValueError("a bug"))
        with pytest.raises(ValueError, match="a bug"):
            await log.once("", creation(), opened)
        await asyncio.sleep(0)
        assert await log.once("", creation(), opened) == 2

    run(work)


@pytest.mark.parametrize(
    "other", [creation(seed=8), pb.RestoreSessionRequest(client_id="ann", command_id="1")], ids=["fields", "kind"]
)
def test_the_same_ids_with_another_content_are_refused(
    other: pb.CreateSessionRequest | pb.RestoreSessionRequest,
) -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened()
        await log.once("", creation(), opened)
        with pytest.raises(CommandIdReused, match="'1' was used before"):
            await log.once("", other, opened)
        assert opened.count == 1

    run(work)


def test_callers_and_clients_do_not_hear_each_others_answers() -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened()
        asked = [("a", creation()), ("b", creation()), ("a", creation(client_id="bea"))]
        assert [await log.once(caller, request, opened) for caller, request in asked] == [1, 2, 3]

    run(work)


@pytest.mark.parametrize("ids", [("", "1"), ("ann", "")])
def test_nothing_is_promised_without_both_ids(ids: tuple[str, str]) -> None:
    async def work() -> None:
        log, opened = RequestLog(), Opened()
        request = creation(client_id=ids[0], command_id=ids[1])
        assert [await log.once("", request, opened) for _ in range(2)] == [1, 2]
        assert len(log) == 0

    run(work)


def test_answers_are_forgotten_in_time() -> None:
    async def work() -> None:
        now = [0.0]
        log, opened = RequestLog(kept_s=60, clock=lambda: now[0]), Opened()
        await log.once("", creation(), opened)
        now[0] = 59
        assert await log.once("", creation(), opened) == 1
        now[0] = 61
        assert await log.once("", creation(), opened) == 2
        assert len(log) == 1

    run(work)


def test_only_so_many_answers_are_kept_and_what_is_being_done_is_not_forgotten() -> None:
    async def work() -> None:
        log, slow, opened = RequestLog(most=4), Opened(), Opened()
        slow.may_end.clear()
        waiting = asyncio.create_task(log.once("", creation("slow"), slow))
        await asyncio.sleep(0)
        for number in range(20):
            await log.once("", creation(str(number)), opened)
        assert len(log) == 4
        again = asyncio.create_task(log.once("", creation("slow"), slow))
        await asyncio.sleep(0)
        slow.may_end.set()
        assert (await waiting, await again, slow.count) == (1, 1, 1)
        assert await log.once("", creation("19"), opened) == 20

    run(work)


def test_a_request_that_comes_again_opens_the_same_session_through_another_manager() -> None:
    assert session_id_of("", creation()) == session_id_of("", creation())
    others = [("b", creation()), ("", creation("2")), ("", creation(client_id="bea")), ("", creation(""))]
    ids = [session_id_of(caller, request) for caller, request in [("", creation()), *others, others[-1]]]
    assert len(set(ids)) == len(ids)


def test_what_nobody_waits_for_any_more_is_given_up_and_can_be_asked_for_anew() -> None:
    async def work() -> None:
        log, opened = RequestLog(abandoned_s=0.05), Opened()
        opened.may_end.clear()
        gone = asyncio.create_task(log.once("", creation(), opened))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0.2)
        assert len(log) == 0
        opened.may_end.set()
        assert (await log.once("", creation(), opened), opened.count) == (2, 2)

    run(work)


def test_who_comes_back_soon_finds_it_going_on() -> None:
    async def work() -> None:
        log, opened = RequestLog(abandoned_s=0.2), Opened()
        opened.may_end.clear()
        gone = asyncio.create_task(log.once("", creation(), opened))
        await asyncio.sleep(0)
        gone.cancel()
        back = asyncio.create_task(log.once("", creation(), opened))
        await asyncio.sleep(0.5)
        opened.may_end.set()
        assert (await back, opened.count) == (1, 1)

    run(work)


def test_answers_that_are_kept_are_bounded_in_bytes_and_a_neighbours_stay() -> None:
    async def work() -> None:
        log, small = RequestLog(most_bytes=10_000), Opened()

        async def large() -> pb.Session:
            return pb.Session(prompt="x" * 4_000)

        await log.once("bert", creation("small"), small)
        for number in range(50):
            await log.once("anna", creation(str(number)), large)
        assert len(log) <= 4
        assert await log.once("bert", creation("small"), small) == 1
        assert (await log.once("anna", creation("49"), large)).prompt

    run(work)
