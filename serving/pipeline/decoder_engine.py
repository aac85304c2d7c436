"""What decodes: PyTorch, or plans of the codec's decoder on another engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from engines.bindings.decoder import GraphDecoder
from engines.bindings.plan_runtime import load_plan
from engines.bindings.stage_session import StageSession
from engines.config.model import ModelConfig
from engines.config.validation import require
from engines.errors import PlanError
from engines.loading.model import Autoencoder
from engines.loading.stage_graphs import SOURCE_DTYPES, decoder_calls
from engines.plans.builder import CPU
from engines.plans.libraries import LibraryName, plan_module
from engines.plans.onnx_builder import ONNX_VERSION
from engines.plans.store import Plan, PlanStore, PlanWanted
from engines.plans.tensorrt_builder import Card
from engines.vae.protocol import StreamingDecoder, use_fused_ops
from kernels.dispatch import KernelBackends
from serving.config import DecoderEngine, ServerConfig
from serving.weights.catalog import models_folder
from serving.weights.downloader import LOCK
from serving.weights.loader import CodecName, open_model
from serving.weights.quantized_model import served_model

logger = logging.getLogger(__name__)

DECODER_ENGINES: tuple[DecoderEngine, ...] = get_args(DecoderEngine)


@dataclass(frozen=True)
class DecoderChoice:
    """Which model's decoder is to run on which engine.

    Raises ConfigError for an engine that is not for the device.

    Args:
        engine: "auto" takes TensorRT where its plans are there, and else PyTorch.
        model: by its name.
        codec: of the model.
        models_dir: where the models are, if that is said.
        device: that it runs on.
        sizes: heights and widths of the pictures.

    """

    engine: DecoderEngine
    model: str
    codec: CodecName
    models_dir: Path | None
    device: torch.device
    sizes: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        wanted = {"onnx": "cpu", "tensorrt": "cuda"}.get(self.engine, self.device.type)
        remedy = f"say --device {wanted}, or --decoder-engine torch"
        require(
            wanted == self.device.type,
            f"the decoder engine {self.engine} runs on {wanted}, and the device is {self.device.type}; {remedy}",
        )


def served_decoder(config: ServerConfig) -> DecoderChoice:
    """That of a server."""
    model = served_model(config)
    own = [model.stream] if model.video is None else [model.stream, model.video]
    sizes = dict.fromkeys(size for each in own for size in config.served_sizes((each.height, each.width)))
    return DecoderChoice(
        config.decoder_engine, config.model, config.codec, config.models_dir, torch.device(config.device),
        tuple(sizes),
    )  # fmt: skip


def described(backends: KernelBackends, engine: DecoderEngine) -> str:
    """The kernels of a process, and what decodes in it where that is not theirs."""
    return f"{backends}; decoder engine: {engine}" if engine in ("onnx", "tensorrt") else str(backends)


class ChosenDecoder(NamedTuple):
    """A decoder, and the engine that runs it."""

    decoder: StreamingDecoder
    engine: DecoderEngine


def open_decoder(vae: Autoencoder, choice: DecoderChoice, backends: KernelBackends) -> ChosenDecoder:
    """The decoder of `vae` on the engine that is chosen; PyTorch runs it on `backends`, from now on.

    Raises PlanError, which names the command that makes it, where a plan is asked for and is not there, is
    damaged, or was made for something else.
    """
    if choice.engine != "torch" and (choice.engine, choice.device.type) != ("auto", "cpu"):
        try:
            plans = require_plans(choice)
            sessions = [StageSession(load_plan(plan, choice.device), choice.device) for plan in plans]
            decoder = GraphDecoder(sessions, vae.decoder_receptive_field, vae.decoder.slots)
            engine: DecoderEngine = "onnx" if choice.engine == "onnx" else "tensorrt"
            logger.info("decoder engine", extra={"engine": engine, "library": plans[0].manifest.key.library})
            return ChosenDecoder(decoder, engine)
        except PlanError as error:
            if choice.engine != "auto":
                raise
            logger.info("decoder engine", extra={"engine": "torch", "why": str(error)})
    use_fused_ops(vae, backends)
    return ChosenDecoder(vae, "torch")


def require_plans(choice: DecoderChoice) -> list[Plan]:
    """The plans of all calls that streams need. Raises PlanError with the command that makes what is missing."""
    models = models_folder(choice.models_dir)
    source = open_model(
        choice.model, models, torch.device("cpu"), SOURCE_DTYPES["decoder"], choice.codec, networks=["codec"]
    )
    base, weights = source.model.config, source.model.identity["codec"]
    store = PlanStore(models / base.name, models / base.name / LOCK)
    failed = list[PlanError]()
    for library in _libraries(choice):
        try:
            return [store.find(wanted) for wanted in _wanted(choice, base, weights, library)]
        except PlanError as error:
            failed.append(error)
    raise failed[0]


def _libraries(choice: DecoderChoice) -> tuple[LibraryName, ...]:
    return ("onnxruntime",) if choice.engine == "onnx" else ("tensorrt-rtx", "tensorrt")


def _wanted(choice: DecoderChoice, model: ModelConfig, weights: str, library: LibraryName) -> list[PlanWanted]:
    module = plan_module(library)
    on_cpu = library == "onnxruntime"
    version, card = (ONNX_VERSION, Card(CPU, "")) if on_cpu else (module.__version__, Card.here())
    return [
        PlanWanted(
            model.name, choice.codec == "tiny", "decoder", call.name, size, weights, library, version, *card
        )
        for size in choice.sizes
        for call in decoder_calls(replace(model.stream, height=size[0], width=size[1]))
    ]  # fmt: skip
