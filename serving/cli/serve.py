"""`longtake serve`: a server on this machine, until it is interrupted."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

import torch

from serving.auth import Tokens
from serving.config import DTYPES, ENCODERS, Limits, ServerConfig
from serving.weights.loader import DEFAULT_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake serve`."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"see `longtake models` (default: {DEFAULT_MODEL})")
    parser.add_argument("--codec", choices=("own", "tiny"), default="own", help="tiny: the tiny autoencoder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="else cuda where there is one")
    parser.add_argument("--text-device", choices=("cpu", "cuda"), help="for the text encoder; else --device")
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=[], metavar="HxW",
        help="pictures to warm up for beside the model's own; others run without graphs on a GPU",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="else bfloat16 on cuda and float32 on the CPU")
    parser.add_argument("--slots", type=int, default=2, help="sessions of one denoiser (default: 2)")
    parser.add_argument(
        "--cache-bytes", type=int, metavar="N", help="what sessions may keep; by default what the GPU has left"
    )
    parser.add_argument("--kernels", default="auto", help="auto, a choice, or op=choice,... (kernels/dispatch.py)")
    parser.add_argument(
        "--stages", choices=("shared", "separate"), default="shared", help="in one process, or each"
    )
    parser.add_argument("--batch", type=int, default=1, help="streams in one pass of a denoiser (default: 1)")
    parser.add_argument("--denoisers", type=int, default=1, help="replicas (default: 1)")
    parser.add_argument("--decoders", type=int, default=1, help="replicas, where stages are separate (default: 1)")
    parser.add_argument("--text-encoders", type=int, default=1, help="the same of text encoders (default: 1)")
    parser.add_argument("--managers", type=int, default=1, help="replicas that carry streams (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each replica on the CPU (default: 1)")
    parser.add_argument("--encoder", choices=ENCODERS, default="auto", help="auto: the GPU's where it encodes")
    parser.add_argument("--lease", type=float, default=60.0, help="seconds a session lives with nobody there")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=9000, help="of gRPC (default: 9000)")
    parser.add_argument("--http-port", type=int, default=8000, help="of the browser page (default: 8000)")
    parser.add_argument("--tokens", type=Path, help="a file of lines `caller token`; without it all are let in")
    parser.add_argument("--sessions-per-token", type=int, default=8, help="at a time (default: 8)")
    parser.add_argument("--recordings", type=Path, default=Path("recordings"), help="folder for recordings")
    parser.add_argument("--models-dir", type=Path, help="where `longtake download` put the weights")


def _size(text: str) -> tuple[int, int]:
    """Height and width. Raises ValueError, which argparse reports."""
    height, width = text.split("x")
    return int(height), int(width)


def read_config(options: argparse.Namespace) -> ServerConfig:
    """What the options ask for. Raises ConfigError."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return ServerConfig(
        model=options.model,
        codec=options.codec,
        device=device,
        text_device=options.text_device,
        sizes=tuple(options.sizes),
        dtype=options.dtype or ("bfloat16" if device == "cuda" else "float32"),
        kernels=options.kernels,
        cache_bytes=options.cache_bytes,
        stages=options.stages,
        slots=options.slots,
        threads=options.threads,
        batch=options.batch,
        denoisers=options.denoisers,
        decoders=options.decoders,
        text_encoders=options.text_encoders,
        managers=options.managers,
        encoder=options.encoder,
        lease_s=options.lease,
        host=options.host,
        grpc_port=options.port,
        http_port=options.http_port,
        models_dir=None if options.models_dir is None else str(options.models_dir),
        recordings=str(options.recordings.resolve()),
        limits=Limits(sessions_per_token=options.sessions_per_token),
        tokens=Tokens() if options.tokens is None else Tokens.of_file(options.tokens),
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    # Ray takes a second to import; other commands do without it.
    from serving.deployments import local_cluster

    config = read_config(options)
    logging.getLogger("ray").setLevel(logging.WARNING)
    print(f"starting {config.model} on {config.device}; kernels: {_kernels(config)}", file=sys.stderr, flush=True)
    stopped = threading.Event()
    _stop_on_signals(stopped)
    try:
        running = local_cluster.start(config)
        # Ray has put a handler of its own in place, which aborts.
        _stop_on_signals(stopped)
        print(f"gRPC     {config.host}:{config.grpc_port}", file=sys.stderr)
        print(f"page     http://{config.host}:{config.http_port}/", file=sys.stderr)
        print(f"metrics  {running.metrics}", file=sys.stderr)
        print(f"logs     {running.logs}", file=sys.stderr, flush=True)
        stopped.wait()
        print("stopping ...", file=sys.stderr, flush=True)
    finally:
        local_cluster.stop()
    return 0


def _kernels(config: ServerConfig) -> str:
    """What the replicas choose, or what they are asked for where only other machines have the device."""
    return str(config.backends) if config.device == "cpu" or torch.cuda.is_available() else config.kernels


def _stop_on_signals(stopped: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
