"""One session that this manager is the standby of: its copy is fed, and opened again where the owner is lost."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from functools import partial
from itertools import chain
from typing import Any

from serving.errors import (
    RegisterUnavailable,
    ReplicaDied,
    ReplicaLost,
    ServingError,
    SessionNotFound,
    SlotsFull,
)
from serving.gateway.ownership.feed_retries import FeedRetries
from serving.gateway.ownership.moves import departed, has_begun, moved_copy
from serving.gateway.ownership.placement import prepare
from serving.gateway.ownership.standby_host import StandbyHost
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.actions import (
    Action,
    CancelAttempt,
    Commit,
    Depart,
    FollowRegister,
    LookInRegister,
    Move,
    Prepare,
    SessionLost,
    Settle,
)
from serving.replication.adoption import Adopt
from serving.replication.kept_copies import KeptCopy
from serving.replication.leases import CopyReport
from serving.replication.messages import Departure, FullState, Prepared, ReplicationDelta
from serving.replication.ownership import Phase, StandbyOwnership
from serving.replication.register import Destination, Ended, EpochRecord, Hold, Owner
from serving.replication.standby import BlockDeaths, MissedDelta, StandbyCopy

logger = logging.getLogger(__name__)

LOST = "another denoiser: its replica was lost"
"""Why a session that was taken over goes on elsewhere."""

FirstCopy = Callable[[str, Callable[[str], None]], Awaitable[Prepared]]
"""Makes the first copy of a new session as the attempt it is given, and says which replicas it tries."""


class AlreadyOpen(ServingError):
    """Another manager has opened the session: the same was asked of both."""


class StandbySession:
    """Carries out what the ownership protocol decides for one session.

    `attempt` names the first copy, where somebody is to know it by that. `renew_now` has the leases on a replica
    renewed at once, and `released` is told when the role is over. `copy` was kept by this manager from before, as
    `kept` says.
    """

    def __init__(
        self,
        host: StandbyHost,
        session_id: str,
        renew_now: Callable[[str], None],
        released: Callable[[StandbySession], None],
        *,
        first: FirstCopy | None = None,
        attempt: str | None = None,
        adopt: Adopt | None = None,
        copy: StandbyCopy | None = None,
        kept: KeptCopy | None = None,
    ) -> None:
        self.session_id = session_id
        self._host = host
        self._renew_now = renew_now
        self._released = released
        self._first = first
        self._adopts = adopt is not None
        self._copy = StandbyCopy() if copy is None else copy
        now = _now()
        names = chain(() if attempt is None else (attempt,), iter(lambda: uuid.uuid4().hex, None))
        self.ownership = StandbyOwnership(
            host.config, host.contacts, host.manager, session_id, now, adopt,
            kept=kept, new_attempt=partial(next, names),
        )  # fmt: skip
        self._tried: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._fed_by: Owner | None = None
        self._feed_lost_at: float | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._description: asyncio.Future[pb.Session] = asyncio.get_running_loop().create_future()
        self._prepared: Prepared | None = None
        self._moved_as: str | None = None
        self._departure: tuple[str, Departure | None] = "", None
        self._deaths = BlockDeaths()
        self._rebuilds_at: int | None = None
        self._wants_room = False
        self.is_released = False
        self.kept: StandbyCopy | None = None
        """What it had of the session when it left it to others, which have nothing yet."""

    def begin(self) -> None:
        """Open the session, or adopt it."""
        self._carry_out(self.ownership.tick(_now()))

    async def opened(self) -> pb.Session:
        """The session, once it has a lease and this copy of it. Raises what its first copy was refused with."""
        return await asyncio.shield(self._description)

    # What comes in

    def tick(self, leaving: Collection[str] = (), *, has_room: bool = False) -> None:
        """Time has passed; `leaving` replicas are being taken away. A first copy may take as long as it likes.

        Where some replica `has_room`, a session that wants it leaves its own.
        """
        owner = self.ownership.owner
        if owner is not None and self._wants_room and has_room:
            leaving = (*leaving, owner.replica)
        if self.ownership.epoch > 0 or self._prepared is not None:
            self._carry_out(self.ownership.leaving(leaving, _now()))

    def reported(self, report: CopyReport, asked_at: float) -> None:
        """The owner's replica has answered a renewal that was sent at `asked_at`.

        An owner that goes on after its feed has broken is ahead of this copy, until that is full again.
        """
        self._carry_out(self.ownership.reported(report, _now()))
        if self._feed_lost_at is not None and asked_at > self._feed_lost_at:
            self._carry_out(self.ownership.fell_behind(self.ownership.epoch, _now()))
        owner = self.ownership.owner
        if owner is not None and (report.attempt, report.epoch) == (owner.attempt, self.ownership.epoch):
            self._wants_room = report.wants_room
            self._feed_from(owner)

    def looked(self, top: EpochRecord | None, managers: Collection[str] | None) -> None:
        """The register was read; None where nobody can say which managers there are."""
        self._carry_out(self.ownership.looked(top, _now(), managers))

    def replica_died(self, replica: str) -> None:
        """A live node reports that a replica's process is dead."""
        at = self._copy.block_in_work if self.is_on(replica) else None
        if (block := self._deaths.one_too_many(replica, at, _now())) is not None:
            reason = f"replicas died while they made block {block} of it, one after the other"
            self._carry_out(self.ownership.end(reason, _now()))
            return
        self._carry_out(self.ownership.died(replica, _now()))

    def is_on(self, replica: str) -> bool:
        """Whether the owner is there."""
        return self.ownership.owner is not None and self.ownership.owner.replica == replica

    def fail(self) -> None:
        """An error that nobody foresaw: the session is left to who adopts it, and what is here of it is kept."""
        self.kept = self._copy if self._copy.is_full else None
        self.release()

    def release(self) -> None:
        """The role is over."""
        if self.is_released:
            return
        self.is_released = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self.kept is None:
            self._copy.close()
        if not self._description.done():
            self._description.set_exception(SessionNotFound("the session ended while it was being opened"))
            self._description.exception()
        self._released(self)

    # What goes out

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Prepare(attempt, doubted):
                    self._spawn(self._prepare(attempt, doubted))
                case Move(attempt, move):
                    self._spawn(self._move(attempt, move))
                case Depart(attempt, move, to):
                    self._spawn(self._depart(attempt, move, to))
                case Settle(hold):
                    self._spawn(self._settle(hold))
                case CancelAttempt(attempt):
                    self._cancel(attempt)
                case Commit():
                    self._spawn(self._commit(action))
                case LookInRegister():
                    self._spawn(self._look())
                case FollowRegister():
                    self.kept = self._copy if self._copy.is_full else None
                    self._host.directory.forget(self.session_id)
                    self._refuse(AlreadyOpen(f"the session {self.session_id} was opened by another manager"))
                case SessionLost(reason):
                    logger.error("session lost", extra={"session": self.session_id, "why": reason})
                    self._host.directory.forget(self.session_id)
                    self.release()

    async def _prepare(self, attempt: str, doubted: str | None) -> None:
        is_first, number = self.ownership.epoch == 0, self._copy.number
        try:
            making = self._first_copy(attempt) if is_first else self._next_copy(attempt, doubted)
            made = await self._made(attempt, making)
        except Exception as error:
            if is_first:
                self._refuse(error)
                return
            self._note("not taken over yet", error)
            self._carry_out(self.ownership.prepare_failed(attempt, _now()))
            return
        if number != self._copy.number:
            self._cancel(attempt)
            self._carry_out(self.ownership.prepare_failed(attempt, _now()))
            return
        self._prepared = made
        self._carry_out(self.ownership.prepared(attempt, made.replica, _now()))

    async def _first_copy(self, attempt: str) -> Prepared:
        assert self._first is not None
        return await self._first(attempt, self._trying(attempt))

    async def _next_copy(self, attempt: str, doubted: str | None) -> Prepared:
        owner, epoch = self.ownership.owner, self.ownership.epoch
        return await prepare(
            self._host.pool, self._host.contacts, attempt, self._copy.spec, resume=self._copy.resume_state(LOST),
            owner=None if owner is None else EpochRecord(epoch, owner), avoid=doubted,
            tried=self._trying(attempt), timeout_s=self.ownership.prepare_timeout_s,
        )  # fmt: skip

    async def _move(self, attempt: str, move: int) -> None:
        """Have the session go on elsewhere from where its owner leaves it. Whatever fails, the owner goes on."""
        owner, epoch = self.ownership.owner, self.ownership.epoch
        assert owner is not None
        yielded, tried = partial(self.ownership.yielded, attempt), self._trying(attempt)
        exact, slots = epoch != self._rebuilds_at, int(self._wants_room or not self._copy.is_suspended)
        try:
            making = moved_copy(self._host, owner, epoch, attempt, move, slots, exact, yielded, tried)
            made = await self._made(attempt, making)
        except Exception as error:
            if not isinstance(error, SlotsFull | ReplicaLost):
                # Its stream could not be opened as it is.
                self._rebuilds_at = epoch
            self._note("not moved yet", error)
            self._carry_out(self.ownership.prepare_failed(attempt, _now()))
            return
        self._moved_as = attempt
        self._carry_out(self.ownership.moved(attempt, made.replica, _now()))

    async def _depart(self, attempt: str, move: int, to: Destination) -> None:
        """Have the owner leave for another server. Whatever fails before it is held, the owner goes on."""
        owner, epoch = self.ownership.owner, self.ownership.epoch
        assert owner is not None
        try:
            caller = self._copy.spec.caller
            left = await departed(self._host, owner, epoch, move, to, self.session_id, caller)
        except Exception as error:
            self._note("has not departed yet", error)
            self._carry_out(self.ownership.prepare_failed(attempt, _now()))
            return
        self._departure = attempt, left
        self._carry_out(self.ownership.departed(attempt, _now()))
        if self.ownership.phase is not Phase.COMMITTING:
            # The departure was given up before it came.
            self._departure = "", None

    async def _settle(self, hold: Hold) -> None:
        """Have the other server open the session, once, and find out whether it has."""
        name, left = self._departure
        departure, self._departure = left if name == hold.transfer else None, ("", None)
        try:
            begun = await has_begun(self._host, hold, self.session_id, departure)
        except Exception as error:
            self._note("the session is held until the other server answers", error)
            self._carry_out(self.ownership.unsettled(_now()))
            return
        self._carry_out(self.ownership.settled(begun, _now()))

    async def _made(self, attempt: str, making: Awaitable[Prepared]) -> Prepared:
        """A copy that is ready; one that is not to be is cancelled wherever it was tried."""
        try:
            made = await making
        except BaseException:
            self._cancel(attempt)
            raise
        self._host.contacts.heard(made.replica, made.reading, _now())
        self._host.contacts.heard_room(made.replica, made.room)
        return made

    def _trying(self, attempt: str) -> Callable[[str], None]:
        """Keeps the replicas that are tried, those too that are tried after the others were told to cancel."""
        return lambda replica: self._tried.setdefault(attempt, set()).add(replica)

    def _cancel(self, attempt: str) -> None:
        for replica in self._tried.pop(attempt, ()):
            self._host.tell(replica, "cancel", attempt)

    async def _commit(self, commit: Commit) -> None:
        before = self.ownership.owner
        try:
            won = await self._host.register.create(self.session_id, commit.epoch, commit.record)
        except RegisterUnavailable as error:
            extra = {"session": self.session_id, "why": str(error)}
            logger.warning("the register does not answer", extra=extra)
            self._carry_out(self.ownership.commit_unreachable(_now()))
            return
        if won and isinstance(commit.record, Ended) and before is not None:
            self._host.tell(before.replica, "drop", before.attempt, commit.epoch)
            if commit.record.moved_to is not None:
                self._host.metrics.failed_over("server", planned=True)
        self._carry_out(self.ownership.committed(commit.epoch, won, _now()))
        if won and isinstance(commit.record, Owner):
            self._took_over(commit.epoch, commit.record, before)

    def _took_over(self, epoch: int, owner: Owner, before: Owner | None) -> None:
        self._first = None  # It holds what the session was opened with, a snapshot perhaps.
        for replica in self._tried.pop(owner.attempt, set()) - {owner.replica}:
            # It was too slow, and may have made a copy all the same.
            self._host.tell(replica, "cancel", owner.attempt)
        # What it has kept of a session that it adopts lacks what the owner has done since.
        self._feed_lost_at = _now() if self._adopts and before is None else None
        self._wants_room = False
        self._host.directory.note(self.session_id, epoch, owner)
        extra = {"session": self.session_id, "replica": owner.replica, "epoch": epoch}
        logger.info("standby of a session", extra=extra)
        if before is not None and owner.attempt != before.attempt:
            self._deaths.moved(before.replica, self._copy.block_in_work, owner.replica, _now())
            self._host.tell(before.replica, "drop", before.attempt, epoch)
            logger.info("session taken over", extra=extra)
            self._host.metrics.failed_over("denoiser", planned=owner.attempt == self._moved_as)
        self._renew_now(owner.replica)
        if owner.replica in self._host.dead:
            self.replica_died(owner.replica)

    async def _look(self) -> None:
        try:
            top = await self._host.register.latest(self.session_id)
        except RegisterUnavailable:
            return
        self.looked(top, await self._host.managers_there())

    # The copy

    def _feed_from(self, owner: Owner) -> None:
        if self._fed_by == owner:
            return
        if self._feeding is not None:
            self._feeding.cancel()
        self._fed_by, self._feeding = owner, self._spawn(self._feed(self.ownership.epoch, owner))

    async def _feed(self, epoch: int, owner: Owner) -> None:
        """Keep the copy up to date, for as long as the owner is the owner.

        Where that fails time and again it is asked for the full state ever more rarely.
        """
        pool, config, arguments = self._host.pool, self._host.config, (owner.attempt, self._host.manager)
        retries = FeedRetries(config.renew_every_s / 2)
        while not self.is_released:
            try:
                async for item in pool.stream(owner.replica, "feed", *arguments, silence_s=config.feed_silence_s):
                    if not self.ownership.is_fed(epoch):
                        # To acknowledge it would be to promise what the next owner has not got.
                        return
                    if item.delta is not None:
                        self._take(owner, item.delta)
                        retries.grown()
                    is_full = self._copy.is_full and self._feed_lost_at is None
                    is_news = item.delta is not None
                    self._carry_out(self.ownership.fed(epoch, is_full, _now(), is_news=is_news))
                most_s = config.lease_s
                await self._look()
            except MissedDelta as missed:
                self._feed_lost_at = _now()
                logger.warning("asking for the full state", extra={"session": self.session_id, "why": str(missed)})
                await asyncio.sleep(retries.missed_wait_s(self._feed_lost_at, config.lease_s))
                continue
            except ReplicaDied:
                self.replica_died(owner.replica)
                return
            except (ReplicaLost, SessionNotFound) as error:
                self._feed_lost_at, most_s = _now(), config.lease_s
                if retries.is_news(error):
                    logger.info("feed lost", extra={"session": self.session_id, "why": str(error)})
                await self._look()
            except Exception as error:
                self._feed_lost_at, most_s = _now(), config.copy_wanted_s
                if retries.is_news(error):
                    self._note("the standby copy cannot be kept", error)
                await self._look()
            await asyncio.sleep(retries.wait_s(most_s))

    def _take(self, owner: Owner, delta: ReplicationDelta) -> None:
        self._copy.apply(delta)
        if isinstance(delta.change, FullState):
            self._feed_lost_at = None
            logger.info("standby copy is full", extra={"session": self.session_id, "replica": owner.replica})
        if self._prepared is not None and not self._description.done():
            self._description.set_result(pb.Session.FromString(self._prepared.description))
        if delta.wants_ack:
            self._host.tell(owner.replica, "acknowledge", owner.attempt, delta.number)

    # Endings

    def _note(self, what: str, error: Exception) -> None:
        """Say why a step is to be tried again, and where nobody foresaw that, from where it comes."""
        bug = None if isinstance(error, ServingError) else error
        logger.warning(what, extra={"session": self.session_id, "why": str(error)}, exc_info=bug)

    def _refuse(self, error: Exception) -> None:
        self._first = None
        if not self._description.done():
            self._description.set_exception(error)
            self._description.exception()
        self.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that ends with the role."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "a step of the ownership protocol failed", extra={"session": self.session_id}, exc_info=error
            )
            self.fail()


def _now() -> float:
    return asyncio.get_running_loop().time()
