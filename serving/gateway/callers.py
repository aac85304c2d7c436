"""Who calls: which sessions are theirs, how many they may have, and how often they may ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from cachetools import LRUCache

from serving.auth import Caller, OperatorToken, Tokens, TokensFile
from serving.config import ServerConfig
from serving.errors import LimitReached, NotAllowed, RegisterUnavailable, SessionNotFound
from serving.gateway.ownership.session_directory import REMEMBERED
from serving.rate_limit import RateLimit
from serving.replication.register import Register
from serving.timeline.formats.document import shown


class Callers:
    """Those of one manager. `owner_of` asks whose a session is; `beside` runs something that outlives a request.

    A server without tokens has one caller, whose name is empty and who may have every session. `managers` there
    are, each of which lets in its share, since requests are spread evenly over them.
    """

    def __init__(
        self,
        config: ServerConfig,
        register: Register,
        owner_of: Callable[[str], Awaitable[str]],
        beside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._config, self._register = config, register
        self._tokens_file = TokensFile(config.tokens)
        self._operator_token = OperatorToken(config.operator_token)
        self.managers = config.managers
        self._owner_of, self._beside = owner_of, beside
        # Whose a session is never changes.
        self._owners: LRUCache[str, str] = LRUCache(REMEMBERED)
        limits = config.limits
        self._rate = RateLimit(limits.requests_per_second, limits.requests_at_once)
        self._attaches = RateLimit(limits.attaches_per_second, 2 * limits.attaches_per_second)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self._tokens.digests) or ("",)

    @property
    def _tokens(self) -> Tokens:
        return self._tokens_file.tokens

    def authenticate(self, token: str | None) -> Caller:
        """Who has a token. Raises NotAllowed for one that is unknown, and where one is missing."""
        if token is not None and self._operator_token.is_of(token):
            return Caller("", is_operator=True)
        name = self._tokens.caller(token)
        if name is None:
            known = "a token is missing" if token is None else "the token is unknown"
            raise NotAllowed(f"{known}; send `authorization: Bearer TOKEN`")
        self.admit(Caller(name))
        return Caller(name)

    def admit(self, caller: Caller, requests: int = 1) -> None:
        """Count so many more requests of a caller. Raises TooManyRequests, which says when to come back."""
        asking = f"{caller.name} asks" if caller.name else "all clients together ask"
        self._rate.take(caller.name, asking, requests * self.managers)

    def admit_controller(self, session_id: str) -> None:
        """Count one more controller that attaches. Raises TooManyRequests, which says when to come back."""
        self._attaches.take(session_id, "controllers attach to the session")

    async def require_own(self, session_id: str, caller: Caller) -> None:
        """Raise SessionNotFound for a session that is not there, or is somebody else's."""
        if not self._tokens.digests:
            return
        if (owner := self._owners.get(session_id)) is None:
            owner = self._owners[session_id] = await self._owner_of(session_id)
        if owner != caller.name:
            raise SessionNotFound(f"no session {shown(session_id)} is here; it may have ended")

    async def sessions(self, caller: Caller) -> list[str] | None:
        """The ids of the caller's; None where every session is."""
        return await self._register.sessions_of(caller.name) if self._tokens.digests else None

    async def reserve(self, session_id: str, caller: Caller) -> None:
        """Take a place for a session. Raises LimitReached for one more than the caller may have."""
        most = self._config.limits.sessions_per_token
        if not self._tokens.digests:
            return
        try:
            has_place = await self._register.reserve(caller.name, session_id, most)
        except RegisterUnavailable:  # It may have been reserved all the same.
            self.release(session_id, caller)
            raise
        if not has_place:
            raise LimitReached(f"{caller.name} has {most} sessions, and may have no more; end one")

    def release(self, session_id: str, caller: Caller) -> None:
        """The session was not to be: its place is free again, soon."""
        if self._tokens.digests:
            self._beside(self._release(session_id, caller))

    async def _release(self, session_id: str, caller: Caller) -> None:
        with suppress(RegisterUnavailable):  # The place is free again by itself, a while later.
            await self._register.release(caller.name, session_id)
