"""Logs of replicas: lines of JSON in Serve's own files, each with the session and block it is about."""

from __future__ import annotations

import logging

from ray.serve.schema import EncodingType, LoggingConfig

SERVE = "ray.serve"
"""The logger whose handlers write a replica's file."""

LOGGING = LoggingConfig(encoding=EncodingType.JSON, enable_access_log=False)


def join_serve_logs() -> None:
    """Send what `serving` and `engines` log to where Serve logs; to be called in a replica."""
    serve = logging.getLogger(SERVE)
    for name in ("serving", "engines"):
        ours = logging.getLogger(name)
        ours.handlers, ours.propagate = serve.handlers, False
        ours.setLevel(logging.INFO)
