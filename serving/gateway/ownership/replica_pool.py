"""The denoisers as the gateway knows them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from serving.errors import ReplicaLost

CALL_S = 30.0
"""The longest a call may take: a fork that generates minutes again takes so long, nothing else does."""

ANSWER_S = 1.0
"""How long a question to all replicas waits for each."""

TOLD_S = 60.0
"""How long a silent replica may take to hear what it is told. Serve has replaced it long before."""


Managers = Callable[[], Awaitable[Collection[str]]]
"""Names the managers that there are. Raises ReplicaLost where nobody says."""


def inside(timeout_s: float) -> float:
    """How long a replica may take for what is waited for so long: its own answer comes before that."""
    return 0.9 * timeout_s


def none_answers(stage: str) -> ReplicaLost:
    """What is said where no replica of a stage takes something."""
    return ReplicaLost(f"no {stage} answers: it is starting, or stopped; try again in a few seconds")


class Replicas(NamedTuple):
    """All that may hold sessions; `silent` ones did not answer just now, `leaving` ones are being taken away."""

    speaking: Sequence[str]
    silent: Sequence[str] = ()
    leaving: Sequence[str] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """In the order in which they are asked to take a session."""
        return (*self.speaking, *self.silent, *self.leaving)


class ReplicaPool(Protocol):
    """Calls methods of replicas, each of which is a process that holds sessions and is never used again.

    Calls raise what the method raises; ReplicaDied where a live node says that the process is dead, and
    ReplicaLost where nothing is known but that no answer came.
    """

    async def replicas(self) -> Replicas:
        """Which there are."""

    async def call(self, replica: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What `method` of a replica returns."""

    def stream(self, replica: str, method: str, *arguments: Any, silence_s: float) -> AsyncGenerator[Any]:
        """The items of a streaming method; ReplicaLost if none comes for `silence_s`."""
