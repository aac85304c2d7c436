"""`longtake evacuate`: the sessions of a running server go on on another one, such as its next release."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from engines.config.validation import require
from serving.auth import OperatorToken
from serving.cli.terminal import say
from serving.client.connections import require_private
from serving.client.operator import OperatorCalls
from serving.errors import ReplicaLost
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.requests import message

ASK_EVERY_S = 1.0
UNREACHED_S = 30.0
"""How long a server that does not answer is asked again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which servers, and how clients come from the one to the other."""
    parser.add_argument("--from", dest="old", required=True, metavar="HOST:PORT", help="the server that is left")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="HOST:PORT", help="the server that takes them, as the first one reaches it")
    where.add_argument("--stop", action="store_true", help="let those stay that are still there")
    parser.add_argument(
        "--gone",
        action="store_true",
        help="with --stop: the second server is gone for good, so wait for no answer",
    )
    public = parser.add_mutually_exclusive_group()
    public.add_argument("--public", metavar="HOST:PORT", help="where clients reach it (default: as --to)")
    public.add_argument(
        "--same-address",
        action="store_true",
        help="clients reach it where they reached the first, by connecting anew",
    )
    parser.add_argument(
        "--page",
        metavar="URL",
        default="",
        help="where browsers reach its page (default: where they reached the first's)",
    )
    parser.add_argument(
        "--operator-token",
        type=Path,
        required=True,
        metavar="FILE",
        help="with the token of both servers' operators",
    )
    parser.add_argument("--tls", action="store_true", help="for a gateway in front of the first server")
    parser.add_argument(
        "--insecure", action="store_true", help="send the token in the clear, though it leaves this machine"
    )


def run(options: argparse.Namespace) -> int:
    """Follow the evacuation to its end. It goes on where this command is ended before."""
    token = OperatorToken(options.operator_token).read()
    assert token is not None
    require_private(options.old, tls=options.tls, insecure=options.insecure)
    require(bool(options.to) or not (options.public or options.same_address), "--public goes with --to")
    require(bool(options.to) or not options.page, "--page goes with --to")
    require(options.stop or not options.gone, "--gone goes with --stop")
    public = "" if options.same_address else options.public or options.to or ""
    request = message(
        pb.EvacuateServerRequest, to=options.to or "", public=public, gone=options.gone, page=options.page
    )
    asyncio.run(_evacuate(OperatorCalls(options.old, token, tls=options.tls), request))
    return 0


async def _evacuate(server: OperatorCalls, request: pb.EvacuateServerRequest) -> None:
    said, heard_at, now = "", asyncio.get_running_loop().time(), asyncio.get_running_loop().time
    while True:
        try:
            left = await server.evacuate(request)
        except ReplicaLost:
            if not said or now() - heard_at > UNREACHED_S:
                raise
            await asyncio.sleep(ASK_EVERY_S)
            continue
        heard_at = now()
        if (line := _line(left, request)) != said:
            said = line
            say(line)
        if not (left.sessions and request.to):
            return
        await asyncio.sleep(ASK_EVERY_S)


def _line(left: pb.EvacuateServerResponse, request: pb.EvacuateServerRequest) -> str:
    if not request.to:
        return f"{left.sessions} sessions stay; {left.held} of them wait for the other server's answer"
    return f"{left.sessions} sessions left, {left.held} of them on their way"
