"""What runs a stage: PyTorch, or plans of the stage's graphs on another engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from engines.bindings.decoder import GraphDecoder
from engines.bindings.plan_runtime import load_plan
from engines.bindings.runtime import StageRuntime
from engines.bindings.stage_session import StageSession
from engines.bindings.text import GraphTextEncoder
from engines.config.model import ModelConfig
from engines.config.validation import require
from engines.errors import ConfigError, PlanError
from engines.export.denoiser import LATENTS
from engines.export.quantized_convs import int8_name
from engines.export.text import text_name
from engines.loading.fingerprint import weights_hash
from engines.loading.model import Autoencoder
from engines.loading.stage_graphs import (
    STAGE_NETWORKS,
    decoder_calls,
    planned_passes,
    recipe_of,
    source_dtype,
    streams_of,
    text_lengths,
)
from engines.plans.builder import CPU
from engines.plans.libraries import LibraryName, plan_module
from engines.plans.manifest import PictureSize
from engines.plans.onnx_builder import ONNX_VERSION
from engines.plans.rtx_builder import may_know
from engines.plans.store import Plan, PlanStore, PlanWanted
from engines.plans.tensorrt_builder import Card
from engines.runner.by_graph import GraphRunner
from engines.runner.protocol import ModelRunner
from engines.text.prompt_encoder import PromptEncoder
from engines.text.umt5 import UMT5Encoder
from engines.vae.protocol import StreamingDecoder, use_fused_ops
from engines.wan.transformer import CausalTransformer
from kernels.dispatch import KernelBackends
from serving.config import DecoderConvs, DenoiserEngine, ServerConfig, StageEngine
from serving.weights.catalog import models_folder
from serving.weights.downloader import LOCK
from serving.weights.loader import CodecName, open_model
from serving.weights.quantized_model import model_config, served_model

logger = logging.getLogger(__name__)

STAGE_ENGINES: tuple[StageEngine, ...] = get_args(StageEngine)
DECODER_CONVS: tuple[DecoderConvs, ...] = get_args(DecoderConvs)

DENOISER_ENGINES: tuple[DenoiserEngine, ...] = get_args(DenoiserEngine)

RunStage = Literal["decoder", "text", "denoiser"]
"""Stages that plans can run."""


@dataclass(frozen=True)
class StageChoice:
    """Which stage of which model is to run on which engine.

    Raises ConfigError for an engine that is not for the device, not for a text encoder in INT8, not for INT8
    convolutions, or not for LoRAs.

    Args:
        stage: of the model.
        engine: "auto" takes TensorRT where its plans are there, and else PyTorch.
        model: by its name.
        codec: of the model.
        models_dir: where the models are, if that is said.
        device: that it runs on.
        sizes: heights and widths of the pictures.
        int8_text: whether the text encoder's weights are rounded to 8 bits.
        int8_convs: whether the decoder is to have its convolutions in INT8, as only plans have them.
        loras: whether LoRAs are merged into the transformer.
        other_sizes: whether pictures may come of sizes that are not among `sizes`.

    """

    stage: RunStage
    engine: StageEngine
    model: str
    codec: CodecName
    models_dir: Path | None
    device: torch.device
    sizes: Sequence[PictureSize] = ()
    int8_text: bool = False
    int8_convs: bool = False
    loras: bool = False
    other_sizes: bool = False

    def __post_init__(self) -> None:
        flag = f"--{self.stage}-engine"
        wanted = {"onnx": "cpu", "tensorrt": "cuda"}.get(self.engine, self.device.type)
        remedy = f"say {'--text-device' if self.stage == 'text' else '--device'} {wanted}, or {flag} torch"
        require(
            wanted == self.device.type,
            f"the {self.stage} engine {self.engine} runs on {wanted}, "
            f"and the device is {self.device.type}; {remedy}",
        )
        require(
            not (self.stage == "text" and self.int8_text and self.engine in ("onnx", "tensorrt")),
            f"the text engine {self.engine} has no INT8 weights; say --text-weights plain, or {flag} torch",
        )
        require(
            not self.int8_convs or self.engine in ("onnx", "tensorrt"),
            "convolutions in INT8 are run by plans alone; say --decoder-engine onnx or tensorrt, or "
            "--decoder-convs plain",
        )
        require(
            not (self.stage == "denoiser" and self.loras and self.engine != "torch"),
            f"plans of a denoiser know no LoRAs; say {flag} torch, or leave --lora out",
        )

    @property
    def likely_engine(self) -> StageEngine:
        """What runs it as far as that is known without looking for plans: "auto" where they decide."""
        return self.engine if self.looks_for_plans else "torch"

    @property
    def looks_for_plans(self) -> bool:
        """Whether anything but PyTorch may run it."""
        if self.engine == "auto":
            return self.device.type == "cuda"
        return self.engine != "torch"


class ServedStages(NamedTuple):
    """Of a server."""

    decoder: StageChoice
    text: StageChoice
    denoiser: StageChoice


def served_stages(config: ServerConfig) -> ServedStages:
    """What is to run each. Raises as `StageChoice`."""
    model = served_model(config)
    sizes = dict.fromkeys(size for own in model.streams for size in config.served_sizes((own.height, own.width)))
    decoder = StageChoice(
        "decoder", config.decoder_engine, config.model, config.codec, config.models_dir,
        torch.device(config.device), tuple(sizes), int8_convs=config.decoder_convs == "int8",
        other_sizes=config.other_sizes,
    )  # fmt: skip
    text = replace(
        decoder, stage="text", engine=config.text_engine, int8_text=config.text_weights == "int8",
        device=torch.device(config.text_device or config.device), sizes=(), int8_convs=False,
        other_sizes=False,
    )  # fmt: skip
    denoiser = replace(
        decoder, stage="denoiser", engine=config.denoiser_engine, int8_convs=False, loras=bool(config.lora)
    )
    return ServedStages(decoder, text, denoiser)


def described(
    backends: KernelBackends,
    decoder: StageEngine,
    text: StageEngine,
    denoiser: DenoiserEngine = "torch",
    convs: DecoderConvs = "plain",
) -> str:
    """The kernels of a process, and what runs stages where that is not theirs: "auto" where nobody knows yet."""
    in_int8 = ", convolutions in INT8" if convs == "int8" else ""
    others = [
        f"{stage} engine: {engine}{how}"
        for stage, engine, how in (("decoder", decoder, in_int8), ("text", text, ""), ("denoiser", denoiser, ""))
        if engine != "torch"
    ]
    return "; ".join([str(backends), *others])


class ChosenDecoder(NamedTuple):
    """A decoder, the engine that runs it, and why that is PyTorch where "auto" looked for plans."""

    decoder: StreamingDecoder
    engine: StageEngine
    why: str = ""


class ChosenText(NamedTuple):
    """What makes prompts, the engine that runs its encoder, and why as `ChosenDecoder` has it."""

    prompts: PromptEncoder
    engine: StageEngine
    why: str = ""


def open_decoder(vae: Autoencoder, choice: StageChoice, backends: KernelBackends) -> ChosenDecoder:
    """The decoder of `vae` on the engine that is chosen; PyTorch runs it on `backends`, from now on.

    Raises PlanError, which names the command that makes it, where a plan is asked for and is not there, is
    damaged, or was made for something else.
    """
    opened = _open_plans(choice)
    if opened.engine == "torch":
        use_fused_ops(vae, backends)
        return ChosenDecoder(vae, "torch", opened.why)
    return ChosenDecoder(GraphDecoder(opened.sessions, vae), opened.engine)


def open_text(prompts: PromptEncoder, encoder: UMT5Encoder, choice: StageChoice) -> ChosenText:
    """What makes prompts as `prompts` do with `encoder`, on the engine that is chosen.

    `encoder` loses its layers where that is not PyTorch. Raises as `open_decoder`.
    """
    opened = _open_plans(choice)
    if opened.engine == "torch":
        return ChosenText(prompts, "torch", opened.why)
    graphs = GraphTextEncoder(opened.sessions, encoder.token_embedding, encoder.config)
    # Plans have the layers too, and those may be many gigabytes.
    encoder.blocks = nn.ModuleList()
    return ChosenText(prompts.on(graphs), opened.engine)


def open_runner(transformer: CausalTransformer, choice: StageChoice) -> ModelRunner | None:
    """What runs passes by graphs; None where PyTorch does. On a card it does so where windows are not full.

    Raises as `open_decoder`, and ConfigError for a transformer that is not in the plans' dtype.
    """
    opened = _open_plans(choice)
    if opened.engine == "torch":
        return None
    dtype = opened.sessions[0].graph.input(LATENTS).torch_dtype
    require(
        transformer.dtype == dtype,
        f"plans of a denoiser compute in {dtype} here, and the model is in {transformer.dtype}; "
        f"say --dtype {str(dtype).removeprefix('torch.')}",
    )
    return GraphRunner(transformer, opened.sessions, others=not _on_cpu(choice))


class _Opened(NamedTuple):
    """The engine that runs a stage, its graphs ready to run unless that is PyTorch, and why as `ChosenDecoder`."""

    engine: StageEngine
    sessions: Sequence[StageSession] = ()
    why: str = ""


def _open_plans(choice: StageChoice) -> _Opened:
    if not choice.looks_for_plans:
        return _Opened("torch")
    told = f"{choice.stage} engine"
    try:
        found = _find(choice)
        sessions = [StageSession(_loaded(each, choice.device), choice.device) for each in found]
    except PlanError as error:
        if choice.engine != "auto":
            raise
        logger.info(told, extra={"engine": "torch", "why": str(error)})
        return _Opened("torch", why=str(error))
    engine: StageEngine = "onnx" if choice.engine == "onnx" else "tensorrt"
    logger.info(told, extra={"engine": engine, "library": found[0].plan.manifest.key.library})
    return _Opened(engine, sessions)


class _Found(NamedTuple):
    """A plan, and what it was looked for by."""

    plan: Plan
    wanted: PlanWanted


def _loaded(found: _Found, device: torch.device) -> StageRuntime:
    """Ready to run. Raises PlanError, with what mends it."""
    try:
        return load_plan(found.plan, device)
    except (PlanError, ConfigError) as error:
        raise PlanError(f"{error}; remove {found.plan.folder}, then make it: {found.wanted.command}") from error


def require_plans(choice: StageChoice) -> list[Plan]:
    """The plans of all calls that are needed. Raises PlanError with the command that makes what is missing."""
    return [found.plan for found in _find(choice)]


def likely_plans(choice: StageChoice) -> list[Plan]:
    """The same by what is said of them: neither they nor the model's weights, which may be others, are read."""
    return [found.plan for found in _find(choice, read=False)]


def _find(choice: StageChoice, *, read: bool = True) -> list[_Found]:
    if choice.other_sizes:
        raise PlanError("pictures may be of any size, and plans are of one each; say --sizes")
    if choice.stage == "text" and choice.int8_text:
        raise PlanError("its weights are in INT8, which plans of a text encoder are not")
    models = models_folder(choice.models_dir)
    config = model_config(choice.model, models)
    in_8_bits = choice.stage == "denoiser" and config.transformer.quantization is not None
    require(
        not in_8_bits,
        f"{choice.model} is in 8 bits, which plans of a denoiser are not; say --denoiser-engine torch",
    )
    store = PlanStore(models / config.name, models / config.name / LOCK)
    find = store.find if read else store.look_up
    # Weights may be many gigabytes: they are not read for plans that are not there.
    there = store.libraries(choice.stage)
    if not read and not there:
        raise PlanError(f"there is no plan of the {choice.stage}")
    weights = _weights(choice, models) if read and there else None
    card, failed = Card(CPU, "") if _on_cpu(choice) else Card.here(), list[tuple[bool, PlanError]]()
    for library, version in _versions(card).items():
        try:
            wanted = _wanted(choice, config, weights, library, version, card)
            return [_Found(find(each), each) for each in wanted]
        except PlanError as error:
            failed.append((library in there, error))
    # What is wrong with plans that are there is of more use than that there are none.
    _, told = max(failed, key=itemgetter(0))
    raise told


def _weights(choice: StageChoice, models: Path) -> str:
    """The hash of the stage's network, as plans are named after it."""
    dtype = source_dtype(choice.stage, on_cpu=_on_cpu(choice))
    cpu, network = torch.device("cpu"), STAGE_NETWORKS[choice.stage]
    model = open_model(choice.model, models, cpu, dtype, choice.codec, networks=[network]).model
    match choice.stage:
        case "decoder":
            return weights_hash(model.vae)
        case "text":
            return weights_hash(model.text_encoder)
        case "denoiser":
            return weights_hash(model.transformer)


def _on_cpu(choice: StageChoice) -> bool:
    """Whether plans are those of onnxruntime."""
    return choice.engine == "onnx"


def _libraries(card: Card) -> tuple[LibraryName, ...]:
    """Those that run plans on `card`, the one that is preferred first."""
    if card.capability == CPU:
        return ("onnxruntime",)
    return ("tensorrt-rtx", "tensorrt") if may_know(card.capability) else ("tensorrt",)


def _versions(card: Card) -> dict[LibraryName, str]:
    """Of the libraries for `card` that are installed. Raises PlanError if none is."""
    found, missing = dict[LibraryName, str](), list[PlanError]()
    for library in _libraries(card):
        try:
            module = plan_module(library)
            found[library] = ONNX_VERSION if library == "onnxruntime" else module.__version__
        except PlanError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return found


def _wanted(
    choice: StageChoice, model: ModelConfig, weights: str | None, library: LibraryName, version: str, card: Card
) -> list[PlanWanted]:
    tiny = choice.stage == "decoder" and choice.codec == "tiny"
    recipe = recipe_of(choice.stage, on_cpu=_on_cpu(choice), int8_convs=choice.int8_convs)
    return [
        PlanWanted(
            model.name, tiny, choice.int8_convs, choice.stage, name, size, weights, recipe, library, version, *card
        )
        for name, size in _graphs(choice, model)
    ]


def _graphs(choice: StageChoice, model: ModelConfig) -> list[tuple[str, PictureSize | None]]:
    """Names of the stage's graphs, and the pictures that each is for."""
    if choice.stage == "text":
        return [(text_name(length), None) for length in text_lengths(model.text_encoder.text_len)]
    if choice.stage == "denoiser":
        streams = [(size, replace(model.stream, height=size[0], width=size[1])) for size in choice.sizes]
        passes = partial(planned_passes, every=_on_cpu(choice))
        return [(call.name, size) for size, stream in streams for call in passes(stream)]
    return [
        (int8_name(call.name) if choice.int8_convs else call.name, size)
        for size in choice.sizes
        for call in decoder_calls(streams_of(model, *size))
    ]
