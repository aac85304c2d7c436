"""How a server is set up: by the flags of `longtake serve`, by variables LONGTAKE_*, and by a TOML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic.dataclasses
import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import NoDecode

from engines.config.presets import PRESETS
from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.config.video_stream import LoopSetting, VideoStreamConfig
from engines.errors import ConfigError
from engines.loading.lora import LoRAFile
from kernels.dispatch import KernelBackends, backends_for, parse_backends
from serving.auth import OperatorToken, Tokens
from serving.hosts import host_of_target, is_host_and_port, is_loopback
from serving.media.encoder import EncoderChoice
from serving.origins import Origins
from serving.replication.leases import LeaseConfig

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16"]
Stages = Literal["shared", "separate"]
TextWeights = Literal["plain", "int8"]
DecoderConvs = Literal["plain", "int8"]
DenoiserEngine = Literal["torch", "onnx", "tensorrt"]
StageEngine = Literal["auto", "torch", "onnx", "tensorrt"]
Preset = Literal["auto", "none", "24gb", "16gb"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Count = Annotated[int, Field(ge=1, le=1024)]
Port = Annotated[int, Field(ge=1, le=65535)]

MOST_SNAPSHOT_BYTES = 128 << 20
"""A session goes to another server in one message of twice as many, with what viewers may still ask for."""


class Listener(NamedTuple):
    """One of the server's own ports: what it is for, the setting that says it, and where it listens."""

    name: str
    setting: str
    host: str
    port: int


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Limits:
    """What is refused. `sessions_per_token` counts over all replicas, `pixels` are of one picture.

    Of one caller `requests_per_second` are taken, over all managers, `requests_at_once` after some quiet; a page
    of 1000 cues counts as ten more, what a viewer reports as shown not at all. A session is taken over by
    controllers `attaches_per_second`.
    A session that no replica has is lost after `recovery_seconds`; where its standby is there, and a replica is
    being started, its viewers wait for `restart_seconds`. `replay_seconds` is how long the past of a session is
    generated again for a fork, or rebuilt from a snapshot. A recording is not begun where those of its caller have
    `recording_bytes` together, each counted as a MiB at least.
    """

    sessions_per_token: int = 8
    pixels: int = 1280 * 720
    stream_seconds: float = 600.0
    recording_frames: int = 16 * 60 * 60
    recording_bytes: int = 100 << 30
    snapshot_bytes: int = 64 << 20
    recovery_seconds: float = 20.0
    restart_seconds: float = 180.0
    replay_seconds: float = 20.0
    viewers_per_session: int = 1000
    requests_per_second: float = 200.0
    requests_at_once: int = 4000
    attaches_per_second: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value > 0, f"limits.{name} is {value:g}; it must be positive")
        problem = (
            f"limits.snapshot_bytes is {self.snapshot_bytes}; a message of gRPC carries snapshots of "
            f"{MOST_SNAPSHOT_BYTES} bytes"
        )
        require(self.snapshot_bytes <= MOST_SNAPSHOT_BYTES, problem)
        problem = f"limits.replay_seconds is {self.replay_seconds:g}; a request is not waited for longer than 45 s"
        require(self.replay_seconds <= 45, problem)


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)):
        raise ConfigError(f"{value!r} is not of the form HEIGHTxWIDTH, such as 480x832")
    return int(match[1]), int(match[2])


def _listed(value: Any) -> Any:
    return [entry for entry in value.split(",") if entry] if isinstance(value, str) else value


def _tokens(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    try:
        return Tokens.of_file(Path(value))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the tokens file {str(value)!r} cannot be read: {error}") from error


def _operator_token(value: Path) -> Path:
    OperatorToken(value).read()
    # Replicas have a working directory of their own. Not resolved, as with tokens.
    return value.absolute()


def _kernels(value: str) -> str:
    try:
        parse_backends(value)
    except ValueError as error:
        raise ConfigError(f"kernels {value!r}: {error}") from error
    return value


def _any_device() -> Device:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype_of(given: dict[str, Any]) -> DType:
    return "bfloat16" if given.get("device") == "cuda" else "float32"


def _model(value: str) -> str:
    # Replicas have a working directory of their own.
    return str(Path(value).resolve()) if value not in PRESETS and Path(value).is_dir() else value


def _lora(value: str) -> str:
    file = LoRAFile.parse(value)
    # Replicas have a working directory of their own.
    return str(LoRAFile(file.path.resolve(), file.weight))


def _address(value: str) -> str:
    if "://" in value:
        raise ConfigError(f"address is {value!r}, a Ray client's; say HOST:PORT or auto on a node of the cluster")
    if value in ("", "local"):
        raise ConfigError(f"address is {value!r}, which is no cluster that is there; leave it out for a new one")
    return value


def _public_address(value: str) -> str:
    require(is_host_and_port(value), f"public_address is {value[:80]!r}, which is not of the form HOST:PORT")
    return value


_LISTED = {"type": "array", "items": {"type": "string"}}
_NUMBERS = {"type": "array", "items": {"type": "integer"}}

Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Sizes = Annotated[tuple[Size, ...], BeforeValidator(_listed), NoDecode, WithJsonSchema(_LISTED)]
Steps = Annotated[tuple[int, ...], BeforeValidator(_listed), NoDecode, WithJsonSchema(_NUMBERS)]
Listed = Annotated[tuple[str, ...], BeforeValidator(_listed), NoDecode]
LoRAs = Annotated[tuple[Annotated[str, AfterValidator(_lora)], ...], BeforeValidator(_listed), NoDecode]


class ServerConfig(BaseModel):
    """A server: its model, its replicas and what each of them holds.

    Raises pydantic's ValidationError, a ValueError, for settings that cannot be: `problem_of` says it in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model: Annotated[str, AfterValidator(_model)] = Field(
        "pocket", description="see `longtake models`; or the folder of a quantized one"
    )
    preset: Preset = Field(
        "auto", description="of a small graphics card: 8 bits, tiny decoder, text on the CPU; auto: by its memory"
    )
    codec: Literal["own", "tiny"] = Field("own", description="tiny: the tiny autoencoder")
    models_dir: Path | None = Field(None, description="where `longtake download` put the weights")
    lora: LoRAs = Field((), description="FILE[:WEIGHT],... to merge into the model, or folders of PEFT's")
    device: Device = Field(default_factory=_any_device, description="cuda where there is one, else cpu")
    text_device: Device | None = Field(None, description="of the text encoder, if that is another")
    text_weights: TextWeights = Field("plain", description="int8: half of the text encoder's memory")
    dtype: DType = Field(default_factory=_dtype_of, description="bfloat16 on cuda, float32 on the CPU")
    kernels: Annotated[str, BeforeValidator(_kernels)] = Field(
        "auto", description="auto, a choice, or op=choice,... (kernels/dispatch.py)"
    )
    decoder_engine: StageEngine = Field(
        "auto",
        description="what decodes; onnx, tensorrt: what `longtake plan` made; auto: tensorrt's, with --sizes",
    )
    decoder_convs: DecoderConvs = Field("plain", description="int8: of what `longtake plan --int8-convs` made")
    text_engine: StageEngine = Field("auto", description="the engine of what encodes prompts")
    denoiser_engine: DenoiserEngine = Field(
        "torch", description="of passes, from prompts alone; onnx: on a CPU; tensorrt: of full windows, on a GPU"
    )
    threads: Count = Field(1, description="of torch in each replica on the CPU")
    encoder: EncoderChoice = Field("auto", description="auto: the graphics card's, where it encodes, else libx264")

    stages: Stages = Field(
        "shared", description="shared: text encoder, denoiser and decoder in one process; separate: each its own"
    )
    denoisers: Count = Field(1, description="replicas")
    decoders: Count = Field(1, description="replicas, where stages are separate")
    text_encoders: Count = Field(1, description="replicas, where stages are separate")
    managers: Count = Field(1, description="replicas that carry streams")
    decoder_slots: Count | None = Field(
        None, description="sessions of one video decoder; else twice those of all denoisers, as one moves"
    )
    slots: Count = Field(2, description="sessions of one denoiser")
    suspend_after: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0, description="seconds after which a paused session gives its slot back until it is resumed; 0: never"
    )
    batch: Count = Field(1, description="streams in one pass of a denoiser")
    graphs: bool = Field(True, description="replay passes on a GPU from CUDA graphs, where kernels permit it")
    video_loop: LoopSetting = Field(
        "auto", description="of restyled videos: plain, or batch (later, and more of them); auto: as there is time"
    )
    video_steps: Steps = Field(
        (),
        description="T,T,... of restyled videos, such as 700,500: the first follows the noise; else the model's",
    )
    sizes: Sizes = Field(
        (),
        description="HEIGHTxWIDTH,... beside the model's own, and no others; else any, on a GPU without graphs",
    )
    cache_bytes: Annotated[int, Field(gt=0)] | None = Field(
        None, description="what the sessions of a replica may keep; else what a graphics card has left"
    )

    address: Annotated[str, AfterValidator(_address)] | None = Field(
        None, description="of a Ray cluster that is there, as ray.init takes it; else a new one on this machine"
    )
    host: str = Field("127.0.0.1", description="0.0.0.0 lets other machines in", min_length=1)
    grpc_port: Port = Field(9000, description="of the session API")
    http_port: Port = Field(8000, description="of the browser page")
    metrics_port: Port = Field(8002, description="of metrics for Prometheus; Ray opens it on every interface")
    tokens: Annotated[Tokens, BeforeValidator(_tokens), NoDecode, WithJsonSchema({"type": "string"})] = Field(
        Tokens(), description="a file of lines `caller token`; without it all are let in"
    )
    operator_token: Annotated[Path, AfterValidator(_operator_token)] | None = Field(
        None, description="a file with one token, of those who may evacuate the server; else nobody may"
    )
    public_address: Annotated[str, AfterValidator(_public_address)] | None = Field(
        None, description="HOST:PORT that clients know: once another server answers there all sessions go to it"
    )
    insecure: bool = Field(
        False, description="let other machines in without tokens, and the operators' token out in the clear"
    )
    allowed_origins: Listed = Field(
        (), description="ORIGIN,... of pages that may call the server beside its own, such as https://example.org"
    )
    lease_s: float = Field(60.0, description="seconds a session lives with nobody there", ge=1, le=3600)
    leases: LeaseConfig = Field(LeaseConfig(), description="of replicas: how long one goes on unheard of")
    recordings: Path = Field(Path("recordings"), description="folder for recordings")
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for height, width in self.sizes:
            StreamConfig(height=height, width=width)
            problem = f"sizes has {height}x{width}, more than the {self.limits.pixels} pixels that are allowed"
            require(height * width <= self.limits.pixels, problem)
        if self.video_steps:
            VideoStreamConfig(steps=self.video_steps)
        ports = [listener.port for listener in self.listeners]
        require(len(set(ports)) == len(ports), f"two ports are the same: {', '.join(map(str, ports))}")
        problem = f"{self.host} lets other machines in, and there are no tokens: give tokens, or say insecure"
        require(self.insecure or bool(self.tokens.digests) or is_loopback(self.host), problem)
        problem = (
            f"public_address is {self.public_address}, and there is no operator_token, for which the server that "
            "answers there next would ask"
        )
        require(self.public_address is None or self.operator_token is not None, problem)
        stays = self.public_address is None or is_loopback(host_of_target(self.public_address))
        problem = (
            f"public_address is {self.public_address}, where the operators' token would go in the clear; say "
            "insecure where nobody else can read it on its way"
        )
        require(self.insecure or stays, problem)
        _ = self.origins
        return self

    @property
    def other_sizes(self) -> bool:
        """Whether sessions may be of sizes that are not warmed up: none are declared, and no plans asked for."""
        by_plans = self.decoder_engine in ("onnx", "tensorrt") or self.denoiser_engine != "torch"
        return not self.sizes and not by_plans

    def served_sizes(self, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Height and width of the pictures that are warmed up, the model's own first."""
        return tuple(dict.fromkeys((own, *self.sizes)))

    @property
    def gpus(self) -> int:
        """How many replicas have a graphics card each."""
        on_card = self.denoisers if self.device == "cuda" else 0
        if self.stages == "separate":
            on_card += self.decoders if self.device == "cuda" else 0
            on_card += self.text_encoders if (self.text_device or self.device) == "cuda" else 0
        return on_card

    @property
    def origins(self) -> Origins:
        """Pages that may call. Raises ConfigError for what is no origin."""
        is_open_here = is_loopback(self.host) and not self.tokens.digests
        return Origins(self.allowed_origins, local_names_only=is_open_here)

    @property
    def lora_files(self) -> tuple[LoRAFile, ...]:
        """`lora` as files with their weights."""
        return tuple(map(LoRAFile.parse, self.lora))

    @property
    def backends(self) -> KernelBackends:
        """The kernels of a replica on a machine like this one. Raises ConfigError if they cannot run here."""
        try:
            return backends_for(torch.device(self.device), DTYPES[self.dtype], parse_backends(self.kernels))
        except ValueError as error:
            raise ConfigError(f"kernels {self.kernels!r}: {error}") from error

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The ports that clients call. Ray's own come on top: they ask for a token."""
        return (
            Listener("gRPC", "grpc_port", self.host, self.grpc_port),
            Listener("page", "http_port", self.host, self.http_port),
            Listener("metrics", "metrics_port", "0.0.0.0", self.metrics_port),
        )


def problem_of(error: ValidationError) -> str:
    """What is wrong with a config, in one sentence that names settings and values."""
    problems = []
    for found in error.errors():
        if found["type"] == "default_factory_not_called":
            continue
        name, message = ".".join(str(part) for part in found["loc"]), found["msg"]
        if found["type"] == "value_error":
            problems.append(message.removeprefix("Value error, "))
        elif found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            problems.append(f"there is no setting {name}")
        else:
            problems.append(f"{name} is {found['input']!r}: {message[:1].lower()}{message[1:]}")
    return "; ".join(problems)
