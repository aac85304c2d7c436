"""`longtake recordings`: the films that a running server has kept, listed, downloaded and deleted."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import aclosing
from pathlib import Path

from serving.cli.options import add_server_arguments, client_of
from serving.cli.terminal import print_table, say, tell
from serving.client.aio import AsyncClient
from serving.errors import FilmError
from serving.media.whole_file import whole_file
from serving.pb.longtake.v1 import sessions_pb2 as pb

HEAD = ("name", "session", "first frame", "frames", "bytes", "finished")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """`list`, `download` and `delete`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the caller's recordings, the oldest first")
    listing.set_defaults(run=_list)
    download = commands.add_parser("download", help="copy a recording to this machine")
    download.add_argument("name")
    download.add_argument("-o", "--output", type=Path, help="the file (default: NAME.mp4 here)")
    download.set_defaults(run=_download)
    delete = commands.add_parser("delete", help="remove recordings from the server")
    delete.add_argument("name", nargs="+")
    delete.set_defaults(run=_delete)
    for command in (listing, download, delete):
        add_server_arguments(command)


def _list(options: argparse.Namespace) -> int:
    async def listed() -> list[pb.Recording]:
        async with client_of(options) as client:
            return [recording async for recording in client.recordings()]

    print_table(HEAD, [_row(recording) for recording in asyncio.run(listed())])
    return 0


def _row(recording: pb.Recording) -> tuple[str, ...]:
    finished = recording.finish_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
    counts = (recording.first_frame, recording.frames, recording.bytes)
    return (recording.name, recording.session_id, *map(str, counts), finished)


def _download(options: argparse.Namespace) -> int:
    path: Path = options.output or Path(f"{options.name}.mp4")

    async def downloaded() -> int:
        async with client_of(options) as client:
            return await _copy(client, options.name, path)

    tell(f"{path}: {asyncio.run(downloaded())} bytes")
    return 0


async def _copy(client: AsyncClient, name: str, path: Path) -> int:
    """Write it beside, and give it its name once it is whole; returns the bytes. Raises FilmError."""
    try:
        with whole_file(path) as place, place.open("wb") as file:
            async with aclosing(client.read_recording(name)) as pieces:
                async for piece in pieces:
                    file.write(piece)
    except OSError as error:
        raise FilmError(f"{path} cannot be written: {error.strerror}") from error
    return path.stat().st_size


def _delete(options: argparse.Namespace) -> int:
    async def deleted() -> None:
        async with client_of(options) as client:
            for name in options.name:
                await client.delete_recording(name)
                say(name)

    asyncio.run(deleted())
    return 0
