"""The denoisers as the gateway knows them: who holds what, who is lost, and how they are called."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

CALL_S = 30.0
"""The longest a call may take: a fork that generates minutes again takes so long, nothing else does."""


class ReplicaPool(Protocol):
    """Calls methods of the replica that holds a session, wherever that is. Lost replicas raise ReplicaLost."""

    def remember(self, session_id: str, replica: str) -> None:
        """A session is on this replica."""

    def owner(self, session_id: str) -> str | None:
        """The replica that a session is thought to be on."""

    def forget(self, session_id: str) -> None:
        """A session is not where it was."""

    async def place(self, session_id: str, method: str, *arguments: Any) -> Any:
        """Call `method` on the replica with most free slots. Raises SlotsFull if all are full, or ReplicaLost."""

    async def call(self, session_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Call `method` on the replica that holds the session. Raises SessionNotFound, or what it raises."""

    def stream(self, session_id: str, method: str, *arguments: Any) -> AsyncGenerator[Any]:
        """The items of a streaming method of the replica that holds the session."""

    async def tell(self, replica: str, method: str, *arguments: Any) -> None:
        """Call `method` of a replica that is silent, for when it speaks again; if it does not, nothing is lost."""

    async def locate(self, session_id: str, besides: str | None = None) -> str | None:
        """The replica that holds the session in its latest epoch, asked for; None if none `besides` does."""

    async def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What every replica answers within a second; those that do not are left out."""
