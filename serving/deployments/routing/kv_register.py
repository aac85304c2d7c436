"""The register of owners in Ray's internal key-value store, which all nodes of a cluster share.

A record is one key, `SESSION:EPOCH` with the epoch in ten digits, so that keys sort as epochs do. The store has no
transactions; the order of writes stands in for them. Epochs are created upward and forgotten upward, the end last:
while epoch 1 is there, nothing of the session has been forgotten, and a listing shows its true latest epoch.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)
from typing_extensions import override

from serving.errors import RegisterUnavailable
from serving.replication.caller_slots import CallerSlots, KeyValues
from serving.replication.register import (
    KEEP_ENDED_S,
    Destination,
    Ended,
    EpochRecord,
    Owner,
    Record,
    Register,
    decode_destination,
    decode_record,
    encode_destination,
    encode_record,
    is_there,
)

TIMEOUT_S = 2.0
SLOTS_TIMEOUT_S = 10.0
"""For a caller's slots, each of which is asked after; many may be asked for at once."""
THREADS = 4

_T = TypeVar("_T")


NAMESPACE = "longtake"
CLUSTER, DESTINATION = "cluster", "destination"


def callers_of(namespace: str) -> str:
    """The namespace of callers' slots beside that of sessions."""
    return f"{namespace}-callers"


def server_of(namespace: str) -> str:
    """The namespace of what is said of the server as a whole."""
    return f"{namespace}-server"


def forget_all(namespace: str = NAMESPACE) -> None:
    """Forget all sessions: for when there is no server in the cluster. Raises RayError where the store is away."""
    for room in (namespace, callers_of(namespace), server_of(namespace)):
        for key in _internal_kv_list("", namespace=room):
            _internal_kv_del(key, namespace=room)


class KvRegister(Register):
    """A Register for any process that is connected to the cluster, actors included.

    The store's client blocks for as long as its server is away, and then it goes on: a call that was given up here
    may still write. Calls of `create` may be repeated for that reason, and an end is never followed by anything.
    """

    def __init__(
        self, namespace: str = NAMESPACE, timeout_s: float = TIMEOUT_S, keep_s: float = KEEP_ENDED_S
    ) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._keep_s = keep_s
        self._seen_over: dict[str, float] = {}
        # Bounded, and apart from other work: calls that hang fill these threads, not those of the event loop.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="register")
        self._server = InternalKeys(server_of(namespace))
        slots = InternalKeys(callers_of(namespace))
        self._slots = CallerSlots(slots, lambda session: is_there(self._latest(session)))

    @override
    async def cluster(self) -> str:
        return await self._call(self._name_cluster)

    @override
    async def create(self, session_id: str, epoch: int, record: Record) -> bool:
        return await self._call(lambda: self._create(session_id, epoch, record))

    @override
    async def latest(self, session_id: str) -> EpochRecord | None:
        return await self._call(lambda: self._latest(session_id))

    @override
    async def first(self, session_id: str) -> Record | None:
        return await self._call(lambda: self._get(session_id, 1))

    @override
    async def open_sessions(self) -> dict[str, Owner]:
        return await self._call(self._open_sessions, SLOTS_TIMEOUT_S)

    @override
    async def evacuate_to(self, destination: Destination | None) -> None:
        await self._call(lambda: self._server.put(DESTINATION, encode_destination(destination)))

    @override
    async def destination(self) -> Destination | None:
        data = await self._call(lambda: self._server.get(DESTINATION))
        return None if data is None else decode_destination(data)

    @override
    async def reserve(self, caller: str, session_id: str, most: int) -> bool:
        return await self._call(lambda: self._slots.reserve(caller, session_id, most), SLOTS_TIMEOUT_S)

    @override
    async def sessions_of(self, caller: str) -> list[str]:
        return await self._call(lambda: self._slots.sessions(caller), SLOTS_TIMEOUT_S)

    @override
    async def release(self, caller: str, session_id: str) -> None:
        await self._call(lambda: self._slots.release(caller, session_id), SLOTS_TIMEOUT_S)

    @override
    async def forget_ended(self) -> None:
        await self._call(self._forget_ended)

    async def _call(self, call: Callable[[], _T], timeout_s: float | None = None) -> _T:
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (RayError, TimeoutError) as error:
            raise RegisterUnavailable(f"the register of sessions does not answer: {error!r}; try again") from error

    def _create(self, session_id: str, epoch: int, record: Record) -> bool:
        key, value = _key(session_id, epoch), encode_record(record)
        # True means that the key was there already, perhaps by this very call: the client repeats what it sends.
        if _internal_kv_put(key, value, overwrite=False, namespace=self._namespace):
            return self._get(session_id, epoch) == record
        # In this order: an end at this epoch is forgotten after the epoch before it, so if that one is still
        # there, there was no end when the key was written.
        if epoch > 1 and not isinstance(self._get(session_id, epoch - 1), Owner):
            _internal_kv_del(key, namespace=self._namespace)
            return False
        return True

    def _latest(self, session_id: str) -> EpochRecord | None:
        return self._last_of(session_id, self._epochs(f"{session_id}:").get(session_id, []))

    def _last_of(self, session_id: str, epochs: list[int]) -> EpochRecord | None:
        """Of those that were there as they were listed; None for a session that is half forgotten."""
        if not epochs or epochs[0] != 1:
            return None
        record = self._get(session_id, epochs[-1])
        return None if record is None else EpochRecord(epochs[-1], record)

    def _open_sessions(self) -> dict[str, Owner]:
        latest = {session: self._last_of(session, epochs) for session, epochs in self._epochs("").items()}
        tops = {session: top.record for session, top in latest.items() if top is not None}
        return {session: record for session, record in tops.items() if isinstance(record, Owner)}

    def _name_cluster(self) -> str:
        self._server.create(CLUSTER, str(uuid.uuid4()).encode())
        name = self._server.get(CLUSTER)
        if name is None:
            raise RegisterUnavailable("the server's name was forgotten as it was read")
        return name.decode()

    def _forget_ended(self) -> None:
        sessions = self._epochs("")
        over = [session for session, epochs in sessions.items() if self._is_over(session, epochs)]
        now = time.monotonic()
        self._seen_over = {session: self._seen_over.get(session, now) for session in over}
        for session, since in self._seen_over.items():
            if now - since >= self._keep_s:
                for epoch in sessions[session]:
                    _internal_kv_del(_key(session, epoch), namespace=self._namespace)

    def _is_over(self, session_id: str, epochs: list[int]) -> bool:
        """Ended, or half forgotten by a process that died."""
        return epochs[0] != 1 or isinstance(self._get(session_id, epochs[-1]), Ended | None)

    def _epochs(self, prefix: str) -> dict[str, list[int]]:
        """Epochs by session, in order."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for key in sorted(_internal_kv_list(prefix, namespace=self._namespace)):
            session_id, _, epoch = key.decode().rpartition(":")
            found[session_id].append(int(epoch))
        return found

    def _get(self, session_id: str, epoch: int) -> Record | None:
        value = _internal_kv_get(_key(session_id, epoch), namespace=self._namespace)
        return None if value is None else decode_record(value)


class InternalKeys(KeyValues):
    """The store as `CallerSlots` needs it."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    @override
    def create(self, key: str, value: bytes) -> bool:
        return not _internal_kv_put(key, value, overwrite=False, namespace=self._namespace)

    @override
    def put(self, key: str, value: bytes) -> None:
        _internal_kv_put(key, value, overwrite=True, namespace=self._namespace)

    @override
    def get(self, key: str) -> bytes | None:
        value: bytes | None = _internal_kv_get(key, namespace=self._namespace)
        return value

    @override
    def delete(self, key: str) -> None:
        _internal_kv_del(key, namespace=self._namespace)

    @override
    def keys(self, prefix: str) -> list[str]:
        return [key.decode() for key in _internal_kv_list(prefix, namespace=self._namespace)]


def _key(session_id: str, epoch: int) -> str:
    return f"{session_id}:{epoch:010d}"
