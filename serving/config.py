"""How a server is set up."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from kernels.dispatch import KernelBackends, backends_for, parse_backends
from serving.encoder import EncoderChoice

Stages = Literal["shared", "separate"]
ENCODERS = get_args(EncoderChoice)
KNOWN = {"stages": get_args(Stages), "codec": ("own", "tiny"), "encoder": ENCODERS}

_CALLER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ConfigError(problem)


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
            _require(value > 0, f"limits.{name} is {value}; it must be positive")


@dataclass(frozen=True)
class Tokens:
    """Who may come in: SHA-256 digests of tokens by caller. None at all lets everybody in, as one caller.

    A caller's name is up to 64 letters, digits, dots, dashes and underscores: a folder of recordings has it.
    """

    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for caller in self.digests:
            problem = f"{caller[:80]!r} is no name of a caller: at most 64 letters, digits and ._- make one"
            _require(_CALLER.fullmatch(caller) is not None, problem)

    @classmethod
    def of_file(cls, path: Path) -> Tokens:
        """Lines of `caller token`. Raises ConfigError for a line that is not."""
        digests: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            parts = line.split()
            place = f"{path}, line {number}"
            _require(len(parts) == 2, f"{place}: a line is a caller's name and a token")
            caller, digest = parts[0], hashlib.sha256(parts[1].encode()).hexdigest()
            _require(caller not in digests, f"{place}: {caller} is there already; a caller has one token")
            _require(digest not in digests.values(), f"{place}: the token of {caller} is somebody else's already")
            digests[caller] = digest
        _require(bool(digests), f"{path} has no token, which would let everybody in; leave the file out for that")
        return cls(digests)

    def caller(self, token: str | None) -> str | None:
        """Who has the token; None for nobody."""
        if not self.digests:
            return ""
        digest = hashlib.sha256((token or "").encode()).hexdigest()
        found = [caller for caller, known in self.digests.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


@dataclass(frozen=True)
class ServerConfig:
    """A server: its model, its replicas and what each of them holds.

    `stages` "shared" has text encoder, denoiser and video decoder in one process; "separate" gives each a
    deployment of its own. `slots` are sessions of one denoiser replica. `silence_s` is how long a replica may say
    nothing before it counts as lost. Ports are of this machine. `kernels` is what `kernels.dispatch` reads.
    `text_device` is the text encoder's, if that is another than `device`. Pictures of `sizes`, height and width,
    are warmed up beside the model's own; on a GPU any other size runs without recorded graphs, and slower.
    `cache_bytes` is what the sessions of a replica may keep; None measures what a graphics card has left.
    `encoder` "auto" is the graphics card's, where the device is one that encodes, else libx264.
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
    silence_s: float = 4.0
    lease_s: float = 60.0
    host: str = "127.0.0.1"
    grpc_port: int = 9000
    http_port: int = 8000
    models_dir: str | None = None
    recordings: str = "recordings"
    encoder: EncoderChoice = "auto"
    kernels: str = "auto"
    cache_bytes: int | None = None
    tokens: Tokens = Tokens()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("slots", "batch", "threads", "denoisers", "decoders", "text_encoders", "managers"):
            value = getattr(self, name)
            _require(1 <= value <= 1024, f"{name} is {value}; it must be within 1..1024")
        for name in ("grpc_port", "http_port"):
            value = getattr(self, name)
            _require(1 <= value <= 65535, f"{name} is {value}; it must be within 1..65535")
        for name, known in {**KNOWN, "dtype": tuple(DTYPES)}.items():
            value = getattr(self, name)
            _require(value in known, f"{name} is {value!r}; known: {', '.join(known)}")
        for height, width in self.sizes:
            StreamConfig(height=height, width=width)
            problem = f"sizes has {height}x{width}, more than the {self.limits.pixels} pixels that are allowed"
            _require(height * width <= self.limits.pixels, problem)
        problem = f"cache_bytes is {self.cache_bytes}; it must be positive"
        _require(self.cache_bytes is None or self.cache_bytes > 0, problem)
        _require(0.5 <= self.silence_s <= 60, f"silence_s is {self.silence_s}; it must be within 0.5..60")
        _require(1 <= self.lease_s <= 3600, f"lease_s is {self.lease_s}; it must be within 1..3600")
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
