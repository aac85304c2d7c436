"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
import re

from engines.errors import ConfigError
from engines.loading.lora import LoRAFile
from serving.auth import TOKEN_VARIABLE
from serving.client.aio import SERVER, AsyncClient
from serving.timeline.timeline import MAX_SECONDS


def seconds(text: str) -> float:
    """An option that says how long."""
    given = float(text)
    if not 0 < given <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MAX_SECONDS} s, which is a day")
    return given


def size(text: str) -> tuple[int, int]:
    """An option that says height and width in pixels."""
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HEIGHTxWIDTH, such as 480x832")
    return int(match[1]), int(match[2])


def add_lora_argument(parser: argparse.ArgumentParser) -> None:
    """Files to merge into a model."""
    parser.add_argument(
        "--lora", type=_lora, action="append", metavar="FILE[:WEIGHT]",
        help="a LoRA to merge into the model, or a folder of PEFT's; may be given several times (weight: 1)",
    )  # fmt: skip


def _lora(text: str) -> LoRAFile:
    try:
        return LoRAFile.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and what it is to be told."""
    parser.add_argument(
        "--server", default=SERVER, metavar="HOST:PORT", help=f"where it listens (default: {SERVER})"
    )
    parser.add_argument("--token", help=f"where the server asks for one; else ${TOKEN_VARIABLE}")
    parser.add_argument("--tls", action="store_true", help="for a gateway in front of the server")
    parser.add_argument(
        "--insecure", action="store_true", help="send the token in the clear, though it leaves this machine"
    )


def client_of(options: argparse.Namespace) -> AsyncClient:
    """Calls the server that the options name."""
    token = options.token or os.environ.get(TOKEN_VARIABLE)
    return AsyncClient(options.server, token=token, tls=options.tls, insecure=options.insecure)
