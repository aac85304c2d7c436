from __future__ import annotations

import logging
import sys

import grpc
import pytest
from ray.serve.exceptions import RequestCancelledError, gRPCStatusError

from serving.deployments.telemetry.logging_config import Departures, Refusals
from serving.errors import SessionNotFound, SlotsFull

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


def test_what_nobody_foresaw_keeps_its_traceback() -> None:
    record = logged(KeyError("latents"))
    assert Refusals(told=False).filter(record)
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


def test_a_client_that_has_gone_is_no_news_and_other_failures_are() -> None:
    assert not Departures().filter(logged(RequestCancelledError("a request")))
    assert Departures().filter(logged(KeyError("latents")))
