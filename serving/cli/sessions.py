"""`longtake sessions`: what a running server is doing, followed and ended."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing

from serving.cli.options import add_server_arguments, client_of
from serving.cli.terminal import print_table, say
from serving.client.aio import AsyncClient
from serving.errors import SessionNotFound
from serving.pb.longtake.v1 import sessions_pb2 as pb

PROMPT_CHARACTERS = 60


def add_commands(parser: argparse.ArgumentParser) -> None:
    """`list`, `watch` and `stop`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the caller's sessions, the oldest first")
    listing.set_defaults(run=_list)
    watching = commands.add_parser("watch", help="print what happens in a session, until it ends")
    watching.add_argument("session", help="its id, or how that begins")
    watching.set_defaults(run=_watch)
    stopping = commands.add_parser("stop", help="end sessions")
    stopping.add_argument("session", nargs="+", help="an id, or how that begins")
    stopping.set_defaults(run=_stop)
    for command in (listing, watching, stopping):
        add_server_arguments(command)


def _list(options: argparse.Namespace) -> int:
    async def listed() -> list[pb.Session]:
        async with client_of(options) as client:
            return await client.list()

    rows = [_row(session) for session in asyncio.run(listed())]
    print_table(("session", "state", "frame", "model", "size", "fps", "viewers", "prompt"), rows)
    return 0


def _row(session: pb.Session) -> tuple[str, ...]:
    options = session.options
    return (
        session.id,
        _state(session),
        str(session.current_start_frame),
        options.model,
        f"{options.height}x{options.width}",
        _pace(session),
        str(session.viewers),
        _cut(session.prompt),
    )


def _pace(session: pb.Session) -> str:
    fps = session.options.fps
    return f"{session.held_fps:.1f} of {fps}" if session.held_fps else str(fps or "unpaced")


def _state(session: pb.Session) -> str:
    known = pb.SessionState.DESCRIPTOR.values_by_number.get(session.state)
    state = f"state {session.state}" if known is None else known.name.removeprefix("SESSION_STATE_").lower()
    reason = pb.WaitReason.DESCRIPTOR.values_by_number.get(session.waiting)
    waiting = str(session.waiting) if reason is None else reason.name.removeprefix("WAIT_REASON_").lower()
    return f"{state} (waits: {waiting})" if session.waiting else state


def _cut(prompt: str) -> str:
    return prompt if len(prompt) <= PROMPT_CHARACTERS else f"{prompt[:PROMPT_CHARACTERS]}..."


def _watch(options: argparse.Namespace) -> int:
    async def watched() -> None:
        async with client_of(options) as client:
            session_id = await _found(client, options.session)
            async with aclosing(client.watch(session_id)) as events:
                async for event in events:
                    if line := describe(event):
                        say(line)

    asyncio.run(watched())
    return 0


def _stop(options: argparse.Namespace) -> int:
    async def stopped() -> None:
        async with client_of(options) as client:
            for name in options.session:
                session_id = await _found(client, name)
                await client.delete(session_id)
                say(session_id)

    asyncio.run(stopped())
    return 0


async def _found(client: AsyncClient, name: str) -> str:
    """The id of the one session whose id begins with `name`. Raises SessionNotFound if there is no such one."""
    ids = [session.id for session in await client.list() if session.id.startswith(name)]
    if len(ids) != 1:
        raise SessionNotFound(f"{name!r} begins {len(ids)} ids of sessions; `longtake sessions list` says which")
    return ids[0]


def applied_line(applied: pb.AppliedCue) -> str:
    """A cue that has come into force, and what of it was not read."""
    prompt = " + ".join(part.text for part in applied.cue.prompts)
    cut = f" (too long: its last {applied.cut_tokens} tokens are not read)" if applied.cut_tokens else ""
    size = applied.picture_size
    opens = f" (opens anew, with pictures of {size.height}x{size.width})" if size.height else ""
    return f"frame {applied.frame}: {prompt}{cut}{opens}"


def describe(event: pb.Event) -> str:
    """An event in a line; empty for one that says nothing new to a reader."""
    match event.WhichOneof("event"):
        case "chunk":
            chunk = event.chunk
            last, size = chunk.first_frame + len(chunk.units) - 1, sum(len(unit.data) for unit in chunk.units)
            return f"block {chunk.block}: frames {chunk.first_frame} to {last}, {size} bytes"
        case "state":
            return f"{_state(event.state)}: next frame {event.state.next_frame}"
        case "end":
            return f"end of the stream: {event.end.message}"
        case "applied":
            return applied_line(event.applied)
        case "resumed":
            return f"went on elsewhere with frame {event.resumed.frame}: {event.resumed.reason}"
        case "slowed":
            return f"{event.slowed.held_fps:.1f} frames/s: {event.slowed.reason}"
        case "gap":
            return f"{event.gap.frames} frames from {event.gap.first_frame} on were not sent"
        case "recording":
            ended = event.recording
            return ended.error.message or f"the recording {ended.name} has ended with {ended.frames} frames"
        case "error":
            return f"error: {event.error.message}"
    return ""
