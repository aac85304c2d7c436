"""A client of the soak: plays sessions at their pace, steers them, and writes down what it is shown."""

from __future__ import annotations

import asyncio
import io
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import av
import grpc.aio

from benchmarks.soak.ledger import Ledger, Reread
from serving.client.aio import AsyncClient
from serving.client.interactive import InteractiveSession
from serving.errors import SessionError, SessionLost
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue

logger = logging.getLogger(__name__)

FPS = 8
HEIGHT, WIDTH = 32, 48
LEASE_S = 60.0
STALLED_S = 45.0
"""A session that plays and shows nothing for so long is lost, though nobody says so."""
RETRY_S = 1.0
FAR_FRAME = 10_000_000
ACTION_S = 60.0
PROBE_S = 20.0
HOURS = ("noon", "dusk", "night", "dawn")


@dataclass
class Tally:
    """What all clients have found out together."""

    frames: int = 0
    lost: int = 0
    doubled: int = 0
    prompts: int = 0
    prompts_lost: list[str] = field(default_factory=list)
    unreplicated_prompts_lost: list[str] = field(default_factory=list)
    reread: Reread = field(default_factory=Reread)
    sessions: int = 0
    told_lost: list[str] = field(default_factory=list)
    silently_lost: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    films_wrong: list[str] = field(default_factory=list)

    def close(self, ledger: Ledger) -> None:
        """A session is over."""
        self.frames += ledger.next_frame
        self.lost += ledger.lost
        self.doubled += ledger.doubled
        self.prompts += ledger.prompts
        self.gaps += ledger.gaps

    def wrong(self) -> dict[str, object]:
        """What no viewer may find, in words."""
        return {
            "frames lost": self.lost,
            "frames doubled": self.doubled,
            "frames that were other ones at a second look": self.reread.differing,
            "frames out of order at a second look": self.reread.disordered,
            "sessions that stood still": [round(seconds) for _, seconds in self.gaps if seconds > STALLED_S],
            "prompts lost that had a receipt": self.prompts_lost,
            "recordings cut short": self.films_wrong,
        }


class Viewer:
    """Plays one session, and another one where that is lost. `forking` lets one viewer fork at a time."""

    def __init__(
        self, client: AsyncClient, number: int, seed: int, tally: Tally, forking: asyncio.Semaphore
    ) -> None:
        self._client = client
        self._name = f"viewer {number}"
        self._rng = random.Random(f"{seed} {number}")
        self._tally = tally
        self._forking = forking
        self._said = 0
        self._stopping = asyncio.Event()
        self._recording: str | None = None
        self.session_id: str | None = None
        self.ledger = Ledger()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.is_set():
            try:
                session = await self._client.create(
                    cues=[Cue(0, Blend.of(self._prompt()))], seed=self._rng.getrandbits(32), fps=FPS, ahead=1,
                    height=HEIGHT, width=WIDTH, lease_s=LEASE_S,
                )  # fmt: skip
            except SessionError as error:
                self._refused("create", error)
                await asyncio.sleep(RETRY_S)
                continue
            await self._play(session)

    def stop(self) -> None:
        """Delete the session, and end."""
        self._stopping.set()

    async def settle(self, since: float) -> None:
        """Wait until the session plays (or is paused), and its standby has it."""
        while not await self._is_settled(since):
            await asyncio.sleep(0.5)

    async def _is_settled(self, since: float) -> bool:
        """A cue is said to find that out."""
        if self.session_id is None:
            return False
        ledger = self.ledger
        if ledger.last_at is not None and not any(at >= since for at, _ in ledger.gaps[-3:]):
            return False
        try:
            async with asyncio.timeout(PROBE_S):
                receipt = await self._client.schedule(self.session_id, "a probe", FAR_FRAME)
        except (SessionError, TimeoutError) as error:
            self._refused("probe", error)
            return False
        return receipt.replicated

    # A session

    async def _play(self, session: pb.Session) -> None:
        self._tally.sessions += 1
        self.ledger, self._recording = Ledger(), None
        try:
            async with self._client.control(session, from_frame=0) as controller:
                await controller.start()
                self.session_id = session.id
                self.ledger.expect(_now())
                await self._until_first(self._watch(controller), self._act(controller), self._stopping.wait())
            await self._check_prompts(session.id)
        except SessionLost as lost:
            self._tally.told_lost.append(session.id)
            logger.info("told that %s is lost: %s", session.id, lost)
        except (SessionError, TimeoutError) as error:
            self._tally.silently_lost.append(f"{session.id}: {type(error).__name__}: {error}")
            logger.error("lost %s: %r", session.id, error)
        finally:
            self.session_id = None
            self._tally.close(self.ledger)
        with suppress(SessionError):
            await self._client.delete(session.id)

    async def _until_first(self, *work: Any) -> None:
        """Until one of them ends. Raises what it raises."""
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, controller: InteractiveSession) -> None:
        """Write down what comes. Raises SessionError where the session is lost, TimeoutError where it stalls."""
        while True:
            event = await self._next(controller)
            match event.WhichOneof("event"):
                case "chunk":
                    self.ledger.show(event.chunk, _now())
                case "gap":
                    self.ledger.skip(event.gap)

    async def _next(self, controller: InteractiveSession) -> pb.Event:
        reading = asyncio.ensure_future(anext(controller))
        try:
            while not (await asyncio.wait({reading}, timeout=5))[0]:
                last_at = self.ledger.last_at
                if last_at is not None and _now() - last_at > STALLED_S:
                    raise TimeoutError(f"nothing came for {STALLED_S:g} s after frame {self.ledger.next_frame}")
            return reading.result()
        except StopAsyncIteration:
            raise SessionError("its stream ended") from None
        finally:
            reading.cancel()

    # What a client does

    async def _act(self, controller: InteractiveSession) -> None:
        actions: dict[str, tuple[int, Callable[[InteractiveSession], Awaitable[object]]]] = {
            "prompt": (6, self._say),
            "pause": (2, self._pause),
            "fork": (1, self._fork),
            "recording": (2, self._record),
            "reread": (2, self._read_again),
        }
        names, weights = list(actions), [weight for weight, _ in actions.values()]
        while True:
            await asyncio.sleep(self._rng.uniform(1, 4))
            (name,) = self._rng.choices(names, weights)
            try:
                async with asyncio.timeout(ACTION_S):
                    await actions[name][1](controller)
                self._tally.done[name] += 1
            except SessionLost:
                raise
            except (SessionError, TimeoutError) as error:
                self._refused(name, error)

    async def _say(self, controller: InteractiveSession) -> None:
        text, ledger = self._prompt(), self.ledger
        later = self._rng.choice((None, None, 24, 60))
        frame = None if later is None else ledger.next_frame + later
        ledger.ask(text)
        ledger.accept(text, await controller.schedule(text, frame))

    async def _pause(self, controller: InteractiveSession) -> None:
        self.ledger.halt(_now())
        try:
            await controller.pause()
            await asyncio.sleep(self._rng.uniform(0.5, 4))
        finally:
            await self._resume(controller)

    async def _resume(self, controller: InteractiveSession) -> None:
        """Insist on it: a session that stays paused would look as if it were frozen."""
        while True:
            try:
                await controller.resume()
                break
            except SessionLost:
                raise
            except SessionError as error:
                self._refused("resume", error)
                await asyncio.sleep(RETRY_S)
        self.ledger.expect(_now())

    async def _fork(self, controller: InteractiveSession) -> None:
        async with self._forking:
            fork = await self._client.fork(controller.session.id)
            try:
                if fork.state == pb.SESSION_STATE_PAUSED:
                    await self._client.resume(fork.id)
                end = fork.next_frame + 24
                await self._compared(fork.id, fork.next_frame, end, Ledger())
            finally:
                with suppress(SessionError):
                    await self._client.delete(fork.id)

    async def _record(self, controller: InteractiveSession) -> None:
        if self._recording is None:
            self._recording = (await self._client.start_recording(controller.session.id)).name
            return
        self._recording = None
        film = await self._client.stop_recording(controller.session.id)
        if film.finished:
            data = b"".join([piece async for piece in self._client.read_recording(film.name)])
            frames = await asyncio.to_thread(decodable_frames, data)
            if (frames, len(data)) != (film.frames, film.bytes):
                found = f"{frames} frames of {film.frames}, {len(data)} bytes of {film.bytes}"
                self._tally.films_wrong.append(f"{film.name}: {found}")
            await self._client.delete_recording(film.name)

    async def _read_again(self, controller: InteractiveSession) -> None:
        """What is kept of the session is asked for once more, and must be what was shown."""
        session = await self._client.get(controller.session.id)
        end = min(session.current_start_frame, self.ledger.next_frame)
        first = max(session.oldest_frame, end - 60)
        if first < end:
            await self._compared(session.id, first, end, self.ledger)

    async def _compared(self, session_id: str, first: int, end: int, ledger: Ledger) -> None:
        chunks = []
        async with _raw_stream(self._client, session_id, first) as events, aclosing(events):
            async for event in events:
                if event.HasField("chunk"):
                    chunks.append(event.chunk)
                    if event.chunk.first_frame + len(event.chunk.units) >= end:
                        break
        self._tally.reread += ledger.compare(chunks)

    async def _check_prompts(self, session_id: str) -> None:
        """Every prompt that got a receipt has applied, or is pending."""
        session = await self._client.get(session_id)
        applied = [cue.cue async for cue in self._client.applied_cues(session_id)]
        known = [(cue.frame, part.text) for cue in (*applied, *session.pending) for part in cue.prompts]
        self._tally.prompts_lost += self.ledger.lost_prompts(known, replicated=True)
        self._tally.unreplicated_prompts_lost += self.ledger.lost_prompts(known, replicated=False)

    def _prompt(self) -> str:
        """A text that nobody else says."""
        self._said += 1
        hour = self._rng.choice(HOURS)
        return f"a red balloon hovering over rolling hills at {hour}, {self._name} prompt {self._said}"

    def _refused(self, name: str, error: Exception) -> None:
        self._tally.refused[f"{name}: {type(error).__name__}"] += 1
        logger.info("%s %s: %s: %r", self._name, self.session_id, name, error)


def decodable_frames(film: bytes) -> int:
    """How many pictures a player can show of a film."""
    try:
        with av.open(io.BytesIO(film), "r") as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError):
        return 0


@asynccontextmanager
async def _raw_stream(client: AsyncClient, session_id: str, first: int) -> AsyncIterator[Any]:
    """What the server sends over one call, with nothing taken out of it. Raises SessionError."""
    call = client.stub.Watch(pb.WatchRequest(session_id=session_id, from_frame=first), metadata=client.metadata)

    async def events() -> AsyncIterator[pb.Event]:
        async for event in call:
            yield event

    try:
        yield events()
    except grpc.aio.AioRpcError as error:
        raise SessionError(f"the stream of a second look broke: {error.details()}") from error
    finally:
        call.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()
