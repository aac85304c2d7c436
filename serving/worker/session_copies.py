"""The copies of sessions on a replica: their slots, their leases, and how they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from serving.background_tasks import within
from serving.errors import NoLease, RegisterUnavailable, ReplicaLost, ServingError, SessionNotFound, SlotsFull
from serving.replication.leases import CopyReport, RenewAnswer, RenewRequest, ReplicaLeases
from serving.replication.messages import SessionSpec
from serving.replication.register import Ended, Owner, Register
from serving.worker.capacity.capacity import Capacity, Load
from serving.worker.capacity.slot_report import SlotReport
from serving.worker.state.active_session import ActiveSession
from serving.worker.state.metrics import Following, Metrics

logger = logging.getLogger(__name__)

RETRY_S = 0.5


class SessionCopies:
    """Up to `slots` sessions, each as one copy or, while it moves, as several. `free` gives back what a copy
    holds.

    A copy without a lease makes and sends nothing. One that ends of itself has its session's end committed in the
    register first, so that its standby does not open it again.
    """

    def __init__(
        self,
        slots: int,
        leases: ReplicaLeases,
        register: Register,
        free: Callable[[ActiveSession], Coroutine[Any, Any, None]],
        metrics: Metrics,
        capacity: Capacity,
    ) -> None:
        self.leases = leases
        self._slots = slots
        self._register = register
        self._free = free
        self._metrics = metrics
        self._capacity = capacity
        self._copies: dict[str, ActiveSession] = {}
        self._opening: list[SessionSpec] = []
        self._making: dict[str, asyncio.Task[ActiveSession]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._freeing: set[asyncio.Task[None]] = set()
        self._admitted = self._refused = 0
        self.count()

    @property
    def all(self) -> list[ActiveSession]:
        """Every copy."""
        return list(self._copies.values())

    @property
    def free(self) -> int:
        """Sessions that can still be opened."""
        return self._slots - len(self._loads())

    @property
    def report(self) -> SlotReport:
        """What is used of the slots, and of how many there is time for."""
        loads = self._loads().values()
        more = self._capacity.more(loads, max(0, self.free), _now())
        return SlotReport(len(loads), len(loads) + more, self._admitted, self._refused)

    def has_lease(self, session: ActiveSession) -> bool:
        """Whether the copy may make and send anything now."""
        return not session.closed and self.leases.has_lease(session.attempt, _now())

    def get(self, attempt: str) -> ActiveSession:
        """A copy. Raises SessionNotFound."""
        session = self._copies.get(attempt)
        if session is None:
            raise SessionNotFound("this copy of the session is not here any more")
        return session

    def leased(self, attempt: str) -> ActiveSession:
        """A copy that may answer. Raises SessionNotFound, and NoLease."""
        session = self.get(attempt)
        if session.ending or not self.has_lease(session):
            raise NoLease("this copy of the session has no lease at the moment; ask again")
        return session

    async def wait_for_lease(self, session: ActiveSession) -> bool:
        """Wait until the copy may go on; False if it never will."""
        while not session.closed and not self.has_lease(session):
            await session.renewed.wait()
        return not session.closed

    # Opening

    @contextmanager
    def slot(self, spec: SessionSpec, *, moves: bool = False) -> Iterator[None]:
        """A slot, taken while a copy is made or resumed; a session that is here and not suspended has its own.

        Raises SlotsFull where none is free, or where the device has no time for one session more. One that `moves`
        here is let in all the same: slowly is better than not at all.
        """
        if spec.session_id not in self._loads():
            self._require_room(spec, in_time=not moves)
            self._admitted += not moves
        self._opening.append(spec)
        try:
            yield
        finally:
            self._opening.remove(spec)
            self.count()

    async def made(
        self, attempt: str, make: Callable[[], Coroutine[Any, Any, ActiveSession]], within_s: float | None = None
    ) -> ActiveSession:
        """The copy of an attempt, which `make` makes once: who got no answer asks for the same again.

        Raises ReplicaLost if the attempt is given up before it is done, or is not done `within_s`, for which the
        caller waits.
        """
        if (copy := self._copies.get(attempt)) is not None:
            return copy
        if (making := self._making.get(attempt)) is None:
            made = within(within_s, make(), lambda: ReplicaLost(f"the copy was not made within {within_s:g} s"))
            making = self._making[attempt] = asyncio.create_task(made)
            making.add_done_callback(lambda _: self._making.pop(attempt))
        try:
            return await making
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ReplicaLost("the copy was cancelled while it was being made") from None

    def _require_room(self, spec: SessionSpec, *, in_time: bool) -> None:
        if self.free <= 0:
            self._count_refusal("slots", is_new=in_time)
            raise SlotsFull(f"all {self._slots} sessions of this replica are taken; end one, or try again later")
        if in_time:
            others = (load for session_id, load in self._loads().items() if session_id != spec.session_id)
            try:
                self._capacity.require_time(Load(spec.stream, spec.pace), others, _now())
            except SlotsFull:
                self._count_refusal("time", is_new=True)
                raise

    def _count_refusal(self, reason: str, *, is_new: bool) -> None:
        self._metrics.refused(reason)
        self._refused += is_new

    def _loads(self) -> dict[str, Load]:
        """Of the sessions that are here and not suspended, or come, by id."""
        here = (copy.spec for copy in self._copies.values() if not copy.logic.suspended)
        specs = (*here, *self._opening)
        return {spec.session_id: Load(spec.stream, spec.pace) for spec in specs}

    def admit(self, session: ActiveSession) -> ActiveSession:
        """Keep a copy that has been made. Raises ReplicaLost, and frees it, if it was cancelled meanwhile."""
        if not self.leases.prepared(session.id, session.attempt, _now()):
            session.finish()
            self._begin_freeing(session)
            raise ReplicaLost("the copy was cancelled while it was being made")
        self._copies[session.attempt] = session
        logger.info("session opened", extra={"session": session.id, "attempt": session.attempt})
        return session

    async def make_way(self, session_id: str, epoch: int, attempt: str | None) -> None:
        """End what is here of a session whose owner, at `epoch`, is `attempt`; wait until its memory is free."""
        self.leases.fence(session_id, epoch, attempt, _now())
        self._end_fenced()
        await asyncio.gather(*self._freeing, return_exceptions=True)

    # Leases

    def renew(self, request: RenewRequest) -> RenewAnswer:
        """Renew leases, and end copies that another one has replaced."""
        answer = self.leases.renew(request, _now())
        self._end_fenced()
        for copy in request.copies:
            if (session := self._copies.get(copy.attempt)) is not None:
                renewed, session.renewed = session.renewed, asyncio.Event()
                renewed.set()
        return answer._replace(room=self.free, copies=tuple(map(self._with_wish, answer.copies)))

    def _with_wish(self, report: CopyReport) -> CopyReport:
        copy = self._copies.get(report.attempt)
        return report._replace(wants_room=copy is not None and copy.wants_room > _now())

    def cancel(self, attempt: str) -> None:
        """The copy will not be committed."""
        self.leases.cancel(attempt, _now())
        if (making := self._making.get(attempt)) is not None:
            making.cancel()
        self._end_fenced()

    def yield_lease(self, attempt: str, epoch: int, move: int) -> None:
        """End the copy's lease for the sake of a move. Raises NoLease where that is not to be any more."""
        if not self.leases.yield_lease(attempt, epoch, move, _now()):
            raise NoLease(f"this copy of the session does not yield to move {move} at epoch {epoch}")

    def drop(self, attempt: str, epoch: int) -> None:
        """The register says at `epoch` that the copy is not the owner."""
        self.leases.drop(attempt, epoch, _now())
        self._end_fenced()

    def session_ended(self, session_id: str, epoch: int) -> None:
        """The register says that the session is over: its viewers are told so."""
        for session in [copy for copy in self._copies.values() if copy.id == session_id]:
            self._finish(session, None)
        self.leases.fence(session_id, epoch, None, _now())
        self.leases.pop_fenced()

    def _end_fenced(self) -> None:
        for attempt in self.leases.pop_fenced():
            if (session := self._copies.get(attempt)) is not None:
                self._finish(session, ReplicaLost("the session goes on elsewhere"))

    # Ending

    def end(self, session: ActiveSession, failure: ServingError | None) -> None:
        """End a session for good, as soon as the register has it."""
        if session.ending or session.closed:
            return
        session.ending = True
        task = asyncio.create_task(self._commit_end(session, failure))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def settled(self) -> None:
        """Wait until what has ended is gone."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.gather(*self._freeing, return_exceptions=True)

    def close(self) -> None:
        """Let everything go without a word to the register: the sessions go on elsewhere."""
        for session in self.all:
            self._finish(session, ReplicaLost("its replica stops"))

    def following(self, now: float) -> Following:
        """Who follows the sessions whose owners are here."""
        owned = [session for session in self.all if self.has_lease(session)]
        feeds = [session.feed for session in owned if session.feed is not None]
        viewers = sum(session.audience.viewers for session in owned)
        lag_s = max((feed.lag_s(now) for feed in feeds), default=0.0)
        suspended = sum(session.logic.suspended for session in owned)
        return Following(viewers, len(owned) - len(feeds), lag_s, suspended)

    def count(self) -> None:
        """Tell how many slots are taken."""
        self._metrics.slots(self._slots - self.free, self.free)

    async def _commit_end(self, session: ActiveSession, failure: ServingError | None) -> None:
        while not session.closed:
            try:
                is_over = await self._is_over(session, str(failure or "ended"))
            except Exception as error:
                extra = {"session": session.id, "why": str(error)}
                bug = None if isinstance(error, RegisterUnavailable) else error
                logger.warning("the end of a session is not in the register yet", extra=extra, exc_info=bug)
                await asyncio.sleep(RETRY_S)
                continue
            self._finish(session, failure if is_over else ReplicaLost("the session goes on elsewhere"))

    async def _is_over(self, session: ActiveSession, reason: str) -> bool:
        """Commit the end of a session whose owner this copy is; False if it is not."""
        while (top := await self._register.latest(session.id)) is not None:
            if not isinstance(top.record, Owner):
                return top.record.moved_to is None
            if top.record.attempt != session.attempt:
                return False
            if await self._register.create(session.id, top.epoch + 1, Ended(reason)):
                return True
        return True

    def _finish(self, session: ActiveSession, failure: ServingError | None) -> None:
        """Take a copy away at once; its memory follows when nothing works on it any more."""
        if session.closed:
            return
        del self._copies[session.attempt]
        self.leases.closed(session.attempt, _now())
        extra = {"session": session.id, "why": str(failure or "closed")}
        try:
            if not isinstance(failure, ReplicaLost):
                session.logic.end()
                session.audience.publish_state()
        except Exception:
            logger.exception("how a session stands at its end cannot be told", extra=extra)
        session.finish(failure)
        self.count()
        logger.info("session ended", extra=extra)
        self._begin_freeing(session)

    def _begin_freeing(self, session: ActiveSession) -> None:
        freeing = asyncio.create_task(self._let_go(session))
        self._freeing.add(freeing)
        freeing.add_done_callback(self._freeing.discard)

    async def _let_go(self, session: ActiveSession) -> None:
        try:
            await self._free(session)
        except Exception:
            logger.exception("what a session held is not all free", extra={"session": session.id})


def _now() -> float:
    return asyncio.get_running_loop().time()
