"""The register of owners: which copy of a session is the one, epoch by epoch.

Every change of owner is the creation of the session's next epoch, which succeeds for one of all who try. Epochs
begin with 1 and have no holes, and a session that has ended gets no further one. Once it is forgotten its id can
begin with 1 again, as any new one can, and with no other: no copy that was kept goes on.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from serving.replication.caller_slots import CallerSlots, MemoryKeys

KEEP_ENDED_S = 60.0
"""How long after its end a session can still be told from one that never was."""


@dataclass(frozen=True)
class Destination:
    """Another server, that sessions go to: `cluster` at `address`.

    Clients are told `public`, and browsers `page`; where that is empty the address that they know leads there.
    """

    address: str
    cluster: str
    public: str
    page: str = ""


@dataclass(frozen=True)
class Hold:
    """A session is being handed to another server, which may have it by now. `transfer` names this one try."""

    destination: Destination
    transfer: str


class StandbyEpoch(NamedTuple):
    """A manager that was the standby of a session, and had a full copy of it, at an epoch."""

    manager: str
    epoch: int


@dataclass(frozen=True)
class Owner:
    """The copy of a session that may be granted a lease, and the manager that grants it.

    `replica` and `standby` name processes and are never used again; `attempt` names one try to open the session.
    While it is `held` it is granted none. Of one that `is_gone` no lease is left, and its standby had no copy, or
    an old one: another manager that has one goes on from that. `standbys` are those before that may have kept
    theirs, since the session was opened from a copy last.
    """

    replica: str
    attempt: str
    standby: str
    held: Hold | None = None
    is_gone: bool = False
    standbys: tuple[StandbyEpoch, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The session is over: deleted, `lost` with the last copy of its state, or `moved_to` another server."""

    reason: str = "deleted"
    lost: bool = False
    moved_to: Destination | None = None


Record = Owner | Ended


class EpochRecord(NamedTuple):
    """A session's latest epoch."""

    epoch: int
    record: Record


class Register(Protocol):
    """What all servers of a cluster agree on. Methods raise RegisterUnavailable where it cannot be reached."""

    async def cluster(self) -> str:
        """A UUID of the cluster: of all servers that agree on the same."""

    async def create(self, session_id: str, epoch: int, record: Record) -> bool:
        """Whether `record` is the one of `epoch`, which is created if it is absent and the session's next.

        What was created by a call that seemed to fail is found again by the same call, so a caller who does not
        know what became of its record asks until it is told.
        """

    async def latest(self, session_id: str) -> EpochRecord | None:
        """The highest epoch; None for a session that never was, or that ended more than KEEP_ENDED_S ago."""

    async def first(self, session_id: str) -> Record | None:
        """The record of the session's first epoch, for as long as `latest` knows the session."""

    async def open_sessions(self) -> dict[str, Owner]:
        """The owners of all sessions, by id."""

    async def evacuate_to(self, destination: Destination | None) -> None:
        """All sessions are to go there from now on; None has those stay that are here."""

    async def destination(self) -> Destination | None:
        """Where all sessions are to go."""

    async def reserve(self, caller: str, session_id: str, most: int) -> bool:
        """Whether a session that is to be opened is one of the caller's `most`; it counts until it is over.

        A session that is asked for again has its place already.
        """

    async def sessions_of(self, caller: str) -> list[str]:
        """The sessions for which a caller has a place, those too that are being opened."""

    async def release(self, caller: str, session_id: str) -> None:
        """A session for which there was a place has not been opened."""

    async def forget_ended(self) -> None:
        """Forget sessions that this process has known to be over for KEEP_ENDED_S. Anybody may do so, any time."""


class MemoryRegister(Register):
    """The register of a server that is one process."""

    def __init__(self, keep_s: float = KEEP_ENDED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._records: dict[str, list[Record]] = {}
        self._ended_at: dict[str, float] = {}
        self._slots = CallerSlots(MemoryKeys(), lambda session: is_there(self._latest(session)))
        self._cluster = str(uuid.uuid4())
        self._destination: Destination | None = None

    @override
    async def cluster(self) -> str:
        return self._cluster

    @override
    async def create(self, session_id: str, epoch: int, record: Record) -> bool:
        records = self._records.get(session_id, [])
        if epoch <= len(records):
            return records[epoch - 1] == record
        if epoch != len(records) + 1 or session_id in self._ended_at:
            return False
        self._records[session_id] = [*records, record]
        if isinstance(record, Ended):
            self._ended_at[session_id] = self._clock()
        return True

    @override
    async def latest(self, session_id: str) -> EpochRecord | None:
        return self._latest(session_id)

    @override
    async def first(self, session_id: str) -> Record | None:
        return self._records.get(session_id, [None])[0]

    @override
    async def open_sessions(self) -> dict[str, Owner]:
        last = {session: records[-1] for session, records in self._records.items()}
        return {session: record for session, record in last.items() if isinstance(record, Owner)}

    @override
    async def evacuate_to(self, destination: Destination | None) -> None:
        self._destination = destination

    @override
    async def destination(self) -> Destination | None:
        return self._destination

    @override
    async def reserve(self, caller: str, session_id: str, most: int) -> bool:
        return self._slots.reserve(caller, session_id, most)

    @override
    async def sessions_of(self, caller: str) -> list[str]:
        return self._slots.sessions(caller)

    @override
    async def release(self, caller: str, session_id: str) -> None:
        self._slots.release(caller, session_id)

    def _latest(self, session_id: str) -> EpochRecord | None:
        records = self._records.get(session_id)
        return EpochRecord(len(records), records[-1]) if records else None

    @override
    async def forget_ended(self) -> None:
        over = [session for session, at in self._ended_at.items() if self._clock() - at >= self._keep_s]
        for session in over:
            del self._records[session], self._ended_at[session]


def is_there(top: EpochRecord | None) -> bool | None:
    """Whether a session with this latest epoch is open; None for one that the register does not know."""
    return None if top is None else isinstance(top.record, Owner)


async def end_session(register: Register, session_id: str, reason: str) -> None:
    """Make sure that no copy of the session is ever granted a lease again."""
    while (top := await register.latest(session_id)) is not None and isinstance(top.record, Owner):
        if await register.create(session_id, top.epoch + 1, Ended(reason)):
            return


def encode_record(record: Record) -> bytes:
    """A record as registers outside this process keep it; equal records are equal bytes."""
    return json.dumps(asdict(record), sort_keys=True).encode()


def decode_record(data: bytes) -> Record:
    """What `encode_record` encoded."""
    fields = json.loads(data)
    if "reason" not in fields:
        standbys = tuple(StandbyEpoch(*standby) for standby in fields["standbys"])
        return Owner(**fields | {"held": _hold(fields["held"]), "standbys": standbys})
    return Ended(**fields | {"moved_to": _destination(fields["moved_to"])})


def encode_destination(destination: Destination | None) -> bytes:
    """As registers outside this process keep it."""
    return json.dumps(None if destination is None else asdict(destination)).encode()


def decode_destination(data: bytes) -> Destination | None:
    """What `encode_destination` encoded."""
    return _destination(json.loads(data))


def _destination(fields: dict[str, str] | None) -> Destination | None:
    return None if fields is None else Destination(**fields)


def _hold(fields: dict[str, Any] | None) -> Hold | None:
    return None if fields is None else Hold(Destination(**fields["destination"]), fields["transfer"])
