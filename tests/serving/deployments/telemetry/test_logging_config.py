from __future__ import annotations

import asyncio
import gc
import logging
import sys
from itertools import product

import grpc
import pytest
from ray.serve.exceptions import RequestCancelledError, gRPCStatusError

from engines.errors import EngineError, PlanError, PoolFull
from serving.background_tasks import wait_without_cancelling
from serving.deployments.telemetry.logging_config import JOINED, SERVE, Departures, Refusals, join_serve_logs
from serving.errors import SessionNotFound, SlotsFull, Unforeseen
from serving.pipeline.engine_errors import refused

FULL = SlotsFull("no replica has room")


def logged(error: Exception) -> logging.LogRecord:
    """What Serve logs of a request that ends with an error."""
    try:
        raise error
    except Exception:
        return logging.LogRecord("ray.serve", logging.ERROR, __file__, 1, "Request failed.", (), sys.exc_info())


@pytest.mark.parametrize("error", [FULL, gRPCStatusError(FULL, grpc.StatusCode.RESOURCE_EXHAUSTED, "full")])
def test_a_refusal_is_a_line_without_a_traceback(error: Exception) -> None:
    record = logged(error)
    assert Refusals(told=True).filter(record)
    assert (record.levelname, record.getMessage(), record.exc_info) == ("INFO", "request refused", None)
    assert (vars(record)["reason"], vars(record)["why"]) == ("SLOTS_FULL", "no replica has room")


def test_a_refusal_that_is_told_elsewhere_is_no_line() -> None:
    assert not Refusals(told=False).filter(logged(SessionNotFound("no such session")))


def meant(error: EngineError) -> Exception:
    """What an error of the engine is to whoever it worked for."""
    with pytest.raises(Unforeseen) as told, refused():
        raise error
    return told.value


@pytest.mark.parametrize("error", [KeyError("latents"), meant(PlanError("a graph is missing"))])
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    record = logged(error)
    assert Refusals(told=False).filter(record)
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


def test_a_client_that_has_gone_is_no_news_and_other_failures_are() -> None:
    assert not Departures().filter(logged(RequestCancelledError("a request")))
    assert Departures().filter(logged(KeyError("latents")))


@pytest.mark.parametrize(
    ("error", "level", "is_traced"),
    [
        (KeyError("latents"), "ERROR", True), (FULL, "INFO", False), (PoolFull("no room"), "INFO", False),
        (EngineError("a NaN"), "ERROR", True),
    ],
)  # fmt: skip
def test_a_task_that_fails_once_nobody_waits_for_it_is_in_the_log_in_one_line_where_it_was_foreseen(
    monkeypatch: pytest.MonkeyPatch, error: Exception, level: str, is_traced: bool
) -> None:
    written: list[logging.LogRecord] = []
    file = logging.Handler()
    monkeypatch.setattr(file, "emit", written.append)
    for name, attribute in product((SERVE, *JOINED), ("handlers", "filters")):
        monkeypatch.setattr(logging.getLogger(name), attribute, [])
    for name in JOINED:
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    logging.getLogger(SERVE).handlers = [file]
    join_serve_logs()

    async def ask() -> None:
        async def answer() -> None:
            await asyncio.sleep(0)
            raise error

        asker = asyncio.create_task(wait_without_cancelling(asyncio.create_task(answer())))
        await asyncio.sleep(0)
        asker.cancel()
        await asyncio.gather(asker, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(ask())
    gc.collect()
    assert [(line.levelname, line.exc_info is not None) for line in written] == [(level, is_traced)]
