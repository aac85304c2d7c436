"""Logs of replicas and proxies: lines of JSON in Serve's own files, with the session and block they are about."""

from __future__ import annotations

import logging

from ray.serve.exceptions import RequestCancelledError, gRPCStatusError
from ray.serve.schema import EncodingType, LoggingConfig
from typing_extensions import override

from engines.errors import EngineError
from serving.errors import ServingError, Unforeseen
from serving.pipeline.engine_errors import refusal
from serving.protocol.status import REFUSED, refusal_fields

SERVE = "ray.serve"
"""The logger whose handlers write a replica's or a proxy's file."""

JOINED = ("serving", "engines", "asyncio")
"""Loggers whose lines also go to Serve's file; asyncio's tell of tasks that failed once nobody waited for them."""

LOGGING = LoggingConfig(encoding=EncodingType.JSON, enable_access_log=False)


def join_serve_logs(*, tells_refusals: bool = False) -> None:
    """Send what `JOINED` log to where Serve logs; to be called in a replica or a proxy.

    With `tells_refusals` each request that Serve says has failed is a line where it was refused: that is for the
    replica that clients call.
    """
    serve = logging.getLogger(SERVE)
    serve.addFilter(Refusals(told=tells_refusals))
    logging.getLogger("asyncio").addFilter(Refusals(told=True))
    for name in JOINED:
        ours = logging.getLogger(name)
        ours.handlers, ours.propagate = serve.handlers, False
        ours.setLevel(logging.INFO)


class Departures(logging.Filter):
    """Drops what asyncio and Serve's proxy say of a stream whose client has gone: a traceback of each."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], RequestCancelledError))


class Refusals(logging.Filter):
    """Makes one line of a refused request, or none if it is not `told` here. Serve logs a traceback.

    What nobody foresaw stays what it is.
    """

    def __init__(self, *, told: bool) -> None:
        super().__init__()
        self._told = told

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        refused = _refusal(record.exc_info[1] if record.exc_info else None)
        if refused is None:
            return True
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.msg, record.args, record.exc_info, record.exc_text = REFUSED, (), None, None
        vars(record).update(refusal_fields(refused))
        return self._told


def _refusal(error: BaseException | None) -> ServingError | None:
    """What was foreseen of an error; None where nothing was."""
    if isinstance(error, gRPCStatusError):
        error = error.original_exception
    if isinstance(error, Unforeseen) and isinstance(error.__cause__, EngineError):
        return None
    if isinstance(error, EngineError):
        error = refusal(error)
        return None if isinstance(error, Unforeseen) else error
    return error if isinstance(error, ServingError) else None
