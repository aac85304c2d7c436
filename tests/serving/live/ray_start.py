"""Ray begun in the process of the tests, which has threads of gRPC: a fork from it hangs now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from serving.config import ServerConfig
from serving.deployments.local_cluster import local_cluster
from serving.launch.running import Running

T = TypeVar("T")

NEVER_CAME_UP = "The current node timed out during startup"
"""What Ray says of a raylet that was forked and never ran."""


def begun(start: Callable[[], T]) -> T:
    """What `start` returns; where a raylet did not come up, it is called once more."""
    try:
        return start()
    except Exception as error:
        if NEVER_CAME_UP not in str(error):
            raise
        return start()


@contextmanager
def cluster_here(config: ServerConfig) -> Iterator[Running]:
    """As `local_cluster`."""
    with ExitStack() as stack:
        yield begun(lambda: stack.enter_context(local_cluster(config)))
