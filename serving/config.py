"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.errors import ConfigError
from kernels.dispatch import KernelBackends, backends_for, parse_backends
from serving.auth import Tokens
from serving.media.encoder import EncoderChoice
from serving.replication.leases import LeaseConfig

Stages = Literal["shared", "separate"]
ENCODERS = get_args(EncoderChoice)
KNOWN = {"stages": get_args(Stages), "codec": ("own", "tiny"), "encoder": ENCODERS}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """What is refused. `sessions_per_token` counts over all replicas, `pixels` are of one picture."""

    sessions_per_token: int = 8
    pixels: int = 1280 * 720
    stream_seconds: float = 600.0
    recording_frames: int = 16 * 60 * 60
    snapshot_bytes: int = 64 << 20
    recovery_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value > 0, f"limits.{name} is {value}; it must be positive")


@dataclass(frozen=True)
class ServerConfig:
    """A server: its model, its replicas and what each of them holds.

    `stages` "shared" has text encoder, denoiser and video decoder in one process; "separate" gives each a
    deployment of its own. `slots` are sessions of one denoiser replica. `leases` says how long a replica may go on
    with a session while its manager says nothing, and so when it counts as lost. Ports are of this machine.
    `kernels` is what `kernels.dispatch` reads. `text_device` is the text encoder's, if that is another than
    `device`. Pictures of `sizes`, height and width, are warmed up beside the model's own; on a GPU any other size
    runs without recorded graphs, and slower. `cache_bytes` is what the sessions of a replica may keep; None
    measures what a graphics card has left. `encoder` "auto" is the graphics card's, where the device is one that
    encodes, else libx264.
    """

    model: str = "pocket"
    codec: Literal["own", "tiny"] = "own"
    device: str = "cpu"
    text_device: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    dtype: str = "float32"
    stages: Stages = "shared"
    slots: int = 2
    batch: int = 1
    threads: int = 1
    denoisers: int = 1
    decoders: int = 1
    text_encoders: int = 1
    managers: int = 1
    leases: LeaseConfig = field(default_factory=LeaseConfig)
    lease_s: float = 60.0
    host: str = "127.0.0.1"
    grpc_port: int = 9000
    http_port: int = 8000
    models_dir: str | None = None
    recordings: str = "recordings"
    encoder: EncoderChoice = "auto"
    kernels: str = "auto"
    cache_bytes: int | None = None
    tokens: Tokens = field(default_factory=Tokens)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("slots", "batch", "threads", "denoisers", "decoders", "text_encoders", "managers"):
            value = getattr(self, name)
            require(1 <= value <= 1024, f"{name} is {value}; it must be within 1..1024")
        for name in ("grpc_port", "http_port"):
            value = getattr(self, name)
            require(1 <= value <= 65535, f"{name} is {value}; it must be within 1..65535")
        for name, known in {**KNOWN, "dtype": tuple(DTYPES)}.items():
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; known: {', '.join(known)}")
        for height, width in self.sizes:
            StreamConfig(height=height, width=width)
            problem = f"sizes has {height}x{width}, more than the {self.limits.pixels} pixels that are allowed"
            require(height * width <= self.limits.pixels, problem)
        problem = f"cache_bytes is {self.cache_bytes}; it must be positive"
        require(self.cache_bytes is None or self.cache_bytes > 0, problem)
        require(1 <= self.lease_s <= 3600, f"lease_s is {self.lease_s}; it must be within 1..3600")
        try:
            parse_backends(self.kernels)
        except ValueError as error:
            raise ConfigError(f"kernels {self.kernels!r}: {error}") from error

    @property
    def backends(self) -> KernelBackends:
        """The kernels of a replica on a machine like this one. Raises ConfigError if they cannot run here."""
        try:
            return backends_for(torch.device(self.device), DTYPES[self.dtype], parse_backends(self.kernels))
        except ValueError as error:
            raise ConfigError(f"kernels {self.kernels!r}: {error}") from error
