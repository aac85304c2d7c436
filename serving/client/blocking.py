"""A client of the server for programs without an event loop: the asyncio client, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from serving.client.aio import PATIENCE_S, SERVER, AsyncClient
from serving.client.interactive import InteractiveSession, PictureFormat, Reports
from serving.media.clips.picture_scaler import Fit
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue, Restyling, Transition

T = TypeVar("T")


class LoopThread:
    """An event loop that runs beside the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="longtake-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, or raises; it is cancelled if the wait for it is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items, each waited for; those of a generator that is left early are closed."""
        try:
            while True:
                try:
                    yield self.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            if isinstance(items, AsyncGenerator):
                self.run(items.aclose())

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


class SteeredSession:
    """One session that is steered; iterated over for its events. As InteractiveSession, and waits for answers."""

    def __init__(self, controller: InteractiveSession, thread: LoopThread) -> None:
        self._controller, self._thread = controller, thread

    @property
    def session(self) -> pb.Session:
        """How it stood when its state last changed."""
        return self._controller.session

    def __iter__(self) -> Iterator[pb.Event]:
        return self._thread.iterate(self._controller)

    def schedule(
        self,
        prompt: str | Blend,
        frame: int | None = None,
        transition: Transition | None = None,
        restyling: Restyling | None = None,
    ) -> pb.Receipt:
        """Schedule a cue at `frame`, over one that is there already; None is now."""
        return self._thread.run(self._controller.schedule(prompt, frame, transition, restyling))

    def remove(self, frame: int) -> pb.Receipt:
        """Take the pending cue at `frame` away."""
        return self._thread.run(self._controller.remove(frame))

    def move(self, frame: int, to_frame: int) -> pb.Receipt:
        """Move the pending cue at `frame`."""
        return self._thread.run(self._controller.move(frame, to_frame))

    def start(self) -> pb.Receipt:
        """Start generation; a cue must be at frame 0."""
        return self._thread.run(self._controller.start())

    def pause(self, frame: int | None = None) -> pb.Receipt:
        """Stop at `frame`, the last that was seen; None is the one that was reported or is played now."""
        return self._thread.run(self._controller.pause(frame))

    def resume(self) -> pb.Receipt:
        """Go on where `pause` stopped."""
        return self._thread.run(self._controller.resume())

    def reset(self) -> pb.Receipt:
        """Go back to an empty timeline and frame 0."""
        return self._thread.run(self._controller.reset())

    def cut(self) -> pb.Receipt:
        """Open a restyled video anew with the next pictures."""
        return self._thread.run(self._controller.cut())

    def restyle(self, restyling: Restyling) -> pb.Receipt:
        """Restyle the next pictures otherwise, under the prompt in force."""
        return self._thread.run(self._controller.restyle(restyling))

    def send_picture(self, data: bytes, format: PictureFormat, time_us: int | None = None) -> int:
        """Send a picture to be restyled, and return its id."""
        return self._thread.run(self._controller.send_picture(data, format, time_us))

    def end_input(self) -> None:
        """Say that no more pictures come for now."""
        self._thread.run(self._controller.end_input())

    def shown(self, frame: int) -> None:
        """Report the last frame that was shown, where `reports` is "none"."""
        self._thread.run(self._controller.shown(frame))


class Client:
    """Calls one server. As AsyncClient, method by method, and waits for answers."""

    def __init__(
        self, server: str = SERVER, *, token: str | None = None, tls: bool = False, insecure: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self._thread = LoopThread()
        made = _made(server, token=token, tls=tls, insecure=insecure, patience_s=patience_s)
        try:
            self._client = self._thread.run(made)
        except BaseException:
            self._thread.stop()
            raise

    def close(self) -> None:
        """End every stream, and the connection."""
        self._thread.run(self._client.close())
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def describe_server(self) -> pb.DescribeServerResponse:
        """What the server generates: its model, picture sizes and limits."""
        return self._thread.run(self._client.describe_server())

    def server_info(self) -> pb.GetServerInfoResponse:
        """Which server this is: its release, its cluster, and what it takes over from another one."""
        return self._thread.run(self._client.server_info())

    def create(
        self,
        *,
        model: str = "",
        seed: int | None = None,
        height: int = 0,
        width: int = 0,
        fps: int | None = None,
        ahead: int | None = None,
        lease_s: float | None = None,
        restyles: bool = False,
        fit: Fit | None = None,
        noise_scale: float | None = None,
        cues: Iterable[Cue] = (),
    ) -> pb.Session:
        """Open a session. What is not said is left to the server.

        Raises SlotsFull if it has no place left; `retry_after_s` of it says when there may be one.
        """
        creation = self._client.create(
            model=model,
            seed=seed,
            height=height,
            width=width,
            fps=fps,
            ahead=ahead,
            lease_s=lease_s,
            restyles=restyles,
            fit=fit,
            noise_scale=noise_scale,
            cues=cues,
        )
        return self._thread.run(creation)

    def get(self, session_id: str) -> pb.Session:
        """How a session stands."""
        return self._thread.run(self._client.get(session_id))

    def list(self) -> list[pb.Session]:
        """The caller's sessions, the oldest first, without their cues."""
        return self._thread.run(self._client.list())

    def applied_cues(self, session_id: str) -> Iterator[pb.AppliedCue]:
        """The cues that have applied in this take, in order, asked for a page at a time."""
        return self._thread.iterate(self._client.applied_cues(session_id))

    def pending_cues(self, session_id: str) -> Iterator[pb.Cue]:
        """The cues that have not applied yet, by frame, asked for a page at a time."""
        return self._thread.iterate(self._client.pending_cues(session_id))

    def delete(self, session_id: str) -> None:
        """End a session."""
        self._thread.run(self._client.delete(session_id))

    def fork(self, session_id: str, frame: int | None = None) -> pb.Session:
        """Open a session with the same past, up to the block that contains `frame`; None is the present block."""
        return self._thread.run(self._client.fork(session_id, frame))

    def snapshot(self, session_id: str) -> bytes:
        """The bytes from which `restore` goes on."""
        return self._thread.run(self._client.snapshot(session_id))

    def restore(self, snapshot: bytes) -> pb.Session:
        """Open a session that goes on where a snapshot was taken."""
        return self._thread.run(self._client.restore(snapshot))

    def start_recording(self, session_id: str) -> pb.Recording:
        """Begin to write an MP4 file on the server, with the next chunk."""
        return self._thread.run(self._client.start_recording(session_id))

    def stop_recording(self, session_id: str) -> pb.Recording:
        """Finish the file."""
        return self._thread.run(self._client.stop_recording(session_id))

    def recordings(self) -> Iterator[pb.Recording]:
        """The caller's finished recordings, the oldest first, asked for a page at a time."""
        return self._thread.iterate(self._client.recordings())

    def delete_recording(self, name: str) -> None:
        """Remove a finished recording."""
        self._thread.run(self._client.delete_recording(name))

    def read_recording(self, name: str) -> Iterator[bytes]:
        """The bytes of a finished recording, piece by piece."""
        return self._thread.iterate(self._client.read_recording(name))

    def watch(self, session_id: str, from_frame: int | None = None) -> Iterator[pb.Event]:
        """A session's events, from the chunk that contains `from_frame` on; None is from now on."""
        return self._thread.iterate(self._client.watch(session_id, from_frame))

    @contextmanager
    def control(
        self, session: pb.Session, from_frame: int | None = None, reports: Reports | None = None
    ) -> Iterator[SteeredSession]:
        """Take `session` over, to steer it: `with client.control(session) as steered`."""
        controller = self._thread.run(_entered(self._client, session, from_frame, reports))
        try:
            yield SteeredSession(controller, self._thread)
        finally:
            self._thread.run(controller.close())


async def _made(server: str, **options: Any) -> AsyncClient:
    return AsyncClient(server, **options)


async def _entered(
    client: AsyncClient, session: pb.Session, from_frame: int | None, reports: Reports | None
) -> InteractiveSession:
    return await client.control(session, from_frame, reports).__aenter__()
