"""The process that holds a server's Ray cluster: `serving.launch.supervisor` starts it and reads what it says.

A line of JSON on standard input is the config. When the server is there, or if it cannot be, a line of JSON is
written to standard output. The server runs until standard input ends.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from contextlib import AbstractContextManager
from typing import IO, Any

from engines.errors import EngineError
from serving.config import ServerConfig
from serving.deployments.existing_cluster import existing_cluster, wait_until_ended
from serving.deployments.local_cluster import local_cluster
from serving.errors import ServingError
from serving.launch.process_tree import adopt_orphans, end_descendants
from serving.launch.running import Running
from serving.launch.supervisor import GRACE_S, longest_stop


def main() -> int:
    """Serve until standard input ends."""
    adopt_orphans()
    messages = _messages()
    config = ServerConfig.model_validate_json(sys.stdin.readline())
    ending, ended = threading.Event(), threading.Event()
    threading.Thread(target=_end_with_input, args=(ending, ended, longest_stop(config)), daemon=True).start()
    try:
        with _cluster(config, ending) as running:
            _ignore_signals()
            _say(messages, **running.message)
            if config.address is None:
                ending.wait()
            else:
                wait_until_ended(config, ending)
    except Exception as error:
        _say(messages, problem=_in_words(error))
        return 1
    finally:
        end_descendants(GRACE_S)
        ended.set()
    return 0


def _cluster(config: ServerConfig, ending: threading.Event) -> AbstractContextManager[Running]:
    return local_cluster(config) if config.address is None else existing_cluster(config, ending)


def _end_with_input(ending: threading.Event, ended: threading.Event, longest_s: float) -> None:
    """See to it that all ends some time after standard input does, whatever the main thread waits for."""
    sys.stdin.read()
    ending.set()
    if not ended.wait(longest_s):
        end_descendants(GRACE_S)
        os._exit(1)


def _ignore_signals() -> None:
    """Ray puts handlers in place, which abort. Only whoever started this process stops it, by standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _messages() -> IO[str]:
    """Standard output, which is for messages only: what else is printed goes where errors go."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages


def _say(messages: IO[str], **message: Any) -> None:
    print(json.dumps(message), file=messages, flush=True)


def _in_words(error: Exception) -> str:
    """One sentence of an error. Serve puts the traceback of a replica that does not start into its own error."""
    if isinstance(error, ServingError | EngineError):
        return str(error)
    raised = re.findall(r"^[\w.]*?(\w+(?:Error|Exception|OutOfMemory|Full)): (.+)$", str(error), re.MULTILINE)
    return f"{raised[-1][0]}: {raised[-1][1]}" if raised else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
