"""The feed of a session's standby: the full state first, then what changes, numbered."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from engines.streaming.replica_log import ReplicaLog, SnapshotDelta
from serving.errors import LimitReached, ServingError
from serving.media.chunk import Chunk
from serving.replication.messages import BlockPictures, FeedItem, FullState, ReplicationDelta
from serving.session.record_delta import RecordDelta
from serving.session.recording_mark import RecordingMark
from serving.session.types import SessionRecord

MAX_WAITING_BYTES = 64 << 20
"""Of blocks that the standby has not taken; one that lets more pile up has to ask for the full state again."""


class Logic(NamedTuple):
    """How a session's logic stands, and what goes with it."""

    record: SessionRecord
    making: int | None
    recording: RecordingMark


class _Block(NamedTuple):
    chunks: tuple[Chunk, ...] = ()
    pictures: tuple[BlockPictures, ...] = ()
    update: SnapshotDelta | None = None
    nbytes: int = 0
    since: float = 0.0


class StandbyFeed:
    """Sends one standby what it lacks; `source` says what is new in the stream.

    How the logic stands is looked up when a delta leaves, so that a slow standby is sent the newest and not each
    step. Numbers begin above those of any earlier feed: what is acknowledged late of one says nothing of this one.
    """

    def __init__(self, source: ReplicaLog, full: FullState, logic: Callable[[], Logic]) -> None:
        self.source = source
        self._full: FullState | None = full
        self._sent = full.record
        self._logic = logic
        self._blocks: deque[_Block] = deque()
        self._nbytes = 0
        self._has_changed = False
        self._wants_ack = False
        self._next_number = time.monotonic_ns()
        self._acknowledged = -1
        self._more = asyncio.Event()
        self._acks = asyncio.Event()
        self._failure: ServingError | None = None
        self._finished = False

    def put_stream(
        self, chunks: tuple[Chunk, ...], update: SnapshotDelta | None, pictures: tuple[BlockPictures, ...] = ()
    ) -> None:
        """Send, with the full state, all that there is of the stream, which is bounded by what a session keeps."""
        self._put(_Block(chunks, pictures, update))

    def put_block(
        self, chunk: Chunk | None, update: SnapshotDelta | None, pictures: BlockPictures | None = None
    ) -> None:
        """Send a block that was delivered, if one was, and the `pictures` with which one has begun."""
        tensors = () if update is None else update.new.values()
        began = () if pictures is None else (pictures,)
        nbytes = sum(sum(map(len, block.data)) for block in began) + sum(len(tensor.data) for tensor in tensors)
        chunks = () if chunk is None else (chunk,)
        self._put(_Block(chunks, began, update, nbytes + sum(one.nbytes for one in chunks)))

    def restart(self, source: ReplicaLog) -> None:
        """The session was reset: what waits is of the take before."""
        self.source = source
        self._blocks.clear()
        self._nbytes = 0
        self.put_change()

    def put_change(self) -> None:
        """Send how the logic stands."""
        self._has_changed = True
        self._more.set()

    def lag_s(self, now: float) -> float:
        """For how many seconds the oldest block has waited that the standby has not taken."""
        return now - self._blocks[0].since if self._blocks else 0.0

    async def replicated(self, timeout_s: float) -> bool:
        """Whether the standby has, within `timeout_s`, what has changed until now."""
        number = self._next_number + max(len(self._blocks), 1) - 1
        self._wants_ack = True
        self.put_change()
        try:
            async with asyncio.timeout(timeout_s):
                while self._acknowledged < number and not self._finished:
                    self._acks.clear()
                    await self._acks.wait()
        except TimeoutError:
            return False
        return self._acknowledged >= number

    def acknowledge(self, number: int) -> None:
        """The standby has every delta up to `number`."""
        self._acknowledged = max(self._acknowledged, number)
        self._acks.set()

    def finish(self, failure: ServingError | None = None) -> None:
        """End the iteration once everything has been taken; with `failure`, by raising it."""
        if not self._finished:
            self._finished, self._failure = True, failure
        self._more.set()
        self._acks.set()

    async def items(self, beat_s: float) -> AsyncIterator[FeedItem]:
        """What the standby lacks; a heartbeat where that is nothing for `beat_s`."""
        while True:
            if self._blocks or self._has_changed:
                yield FeedItem(self._next())
                continue
            if self._finished:
                break
            self._more.clear()
            try:
                async with asyncio.timeout(beat_s):
                    await self._more.wait()
            except TimeoutError:
                yield FeedItem()
        if self._failure is not None:
            raise self._failure

    def _put(self, block: _Block) -> None:
        if self._finished:
            return
        self._blocks.append(block._replace(since=asyncio.get_running_loop().time()))
        self._nbytes += block.nbytes
        if self._nbytes > MAX_WAITING_BYTES:
            self._blocks.clear()
            self.finish(LimitReached(f"{self._nbytes} bytes waited for the standby, which was too slow for them"))
        self._more.set()

    def _next(self) -> ReplicationDelta:
        block = self._blocks.popleft() if self._blocks else _Block()
        self._nbytes -= block.nbytes
        record, making, recording = self._logic()
        full, self._full = self._full, None
        change = RecordDelta.between(self._sent, record) if full is None else full
        self._sent = record if full is None else full.record
        # Blocks that still wait are followed by the logic that goes with them.
        is_last = not self._blocks
        delta = ReplicationDelta(
            self._next_number, change, block.update, block.chunks, making, recording,
            wants_ack=self._wants_ack and is_last and full is None, pictures=block.pictures,
        )  # fmt: skip
        self._next_number += 1
        if is_last:
            # The full state is from when the standby came; what has changed since follows it.
            self._has_changed = full is not None and (self._wants_ack or record != full.record)
            self._wants_ack = self._wants_ack and full is not None
        return delta
