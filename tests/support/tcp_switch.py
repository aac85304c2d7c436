"""An address that leads to one server, and later to another, as a Service of Kubernetes does in an upgrade."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress


class TcpSwitch:
    """Passes connections to `port` of 127.0.0.1 on to `target`, another port; those that are open stay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0

    async def run(self, started: threading.Event, ended: asyncio.Event) -> None:
        """Take connections until that is ended."""
        async with await asyncio.start_server(self._carry, "127.0.0.1") as server:
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await ended.wait()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self.target)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, there[1]))
                both.create_task(_pass_on(there[0], writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer), suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@contextmanager
def switched(target: int) -> Iterator[TcpSwitch]:
    """A switch, for as long as the block lasts."""
    switch, started, loop, ended = TcpSwitch(target), threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(switch.run(started, ended),))
    thread.start()
    started.wait()
    try:
        yield switch
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
