"""Settings for graphics cards of 24 and of 16 GB: 8 bits wherever they can be had, the text encoder elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from engines.config.quantization import WEIGHT_FORMATS, QuantizationConfig
from engines.config.validation import require
from engines.errors import ConfigError, PlanError
from engines.loading.memory_plan import MemoryPlan, PlanBytes, gigabytes, plan_memory
from engines.runner.selection import format_problem, kv_format_of
from kernels.dispatch import chip_of
from kernels.tiles import FP16_SUMS
from serving.config import DTYPES, ServerConfig
from serving.launch.startup_checks import require_cuda
from serving.pipeline.stage_engine import likely_plans, served_stages
from serving.weights.catalog import CATALOG, Role, models_folder
from serving.weights.loader import configured
from serving.weights.quantized_model import QuantizedModel, find_quantized, served_model

KEPT_IN_INT8 = "keys=int8,values=int8"


@dataclass(frozen=True)
class MemoryPreset:
    """A size of graphics card: how much one has at most, and for how many sessions it is fast enough."""

    below: int
    sessions: int


PRESETS: Mapping[str, MemoryPreset] = {
    "16gb": MemoryPreset(18_000_000_000, 2),
    "24gb": MemoryPreset(26_000_000_000, 4),
}


class Chosen(NamedTuple):
    """A config with its preset filled in, and what there is to be said of it."""

    config: ServerConfig
    notes: tuple[str, ...] = ()


def fill_in(config: ServerConfig, given: Collection[str]) -> Chosen:
    """What the config's preset says of settings that are not `given`; with "auto", of a card that is small.

    Raises ConfigError for a preset that is asked for and cannot be: without a graphics card, or without a
    quantized model.
    """
    if config.address is not None:
        problem = f"preset {config.preset} is for a graphics card of this machine; leave it out with an address"
        require(config.preset in ("auto", "none"), problem)
    if config.preset == "none" or (config.preset == "auto" and not _needs_one(config)):
        return Chosen(config.model_copy(update={"preset": "none"}))
    if config.device != "cuda":
        raise ConfigError(f"preset {config.preset} is for a graphics card; the device is {config.device}")
    require_cuda()
    free, total = torch.cuda.mem_get_info()
    name = config.preset if config.preset != "auto" else _preset_for(total)
    if name is None:
        return Chosen(config.model_copy(update={"preset": "none"}))
    filled, notes = _filled(config, given, asked=config.preset != "auto")
    if "slots" not in given:
        most = filled.model_copy(update={"slots": PRESETS[name].sessions})
        fit = memory_plan(most).sessions_in(free)
        filled = most.model_copy(update={"slots": max(1, min(most.slots, fit))})
    why = f", since the card has {gigabytes(total)}; --preset none: not" if config.preset == "auto" else ""
    return Chosen(filled.model_copy(update={"preset": name}), (f"preset {name}{why}", *notes))


def memory_plan(config: ServerConfig) -> MemoryPlan:
    """What a server takes of its graphics card."""
    networks = configured(served_model(config), config.codec, int8_text=config.text_weights == "int8")
    streams = [
        replace(kind, height=height, width=width)
        for kind in networks.streams
        for height, width in config.served_sizes((kind.height, kind.width))
    ]
    return plan_memory(
        networks, DTYPES[config.dtype], kv_format_of(config.backends), streams=streams,
        text_here=config.text_device in (None, config.device), batch=min(config.batch, config.slots),
        plans=_plans(config),
    )  # fmt: skip


def _plans(config: ServerConfig) -> list[PlanBytes]:
    """Of the stages that plans will run on the card, if they are of the weights that are there."""
    found = []
    for choice in served_stages(config):
        if choice.device.type == "cuda" and choice.looks_for_plans:
            with suppress(PlanError):
                manifests = [plan.manifest for plan in likely_plans(choice)]
                activations = max(manifest.activation_bytes or 0 for manifest in manifests)
                found.append(PlanBytes(choice.stage, sum(manifest.bytes for manifest in manifests), activations))
    return found


def _needs_one(config: ServerConfig) -> bool:
    """Whether the model is one of those that are large."""
    is_here = config.address is None and config.device == "cuda" and torch.cuda.is_available()
    return is_here and served_model(config).name in CATALOG


def _preset_for(total: int) -> str | None:
    return next((name for name, preset in PRESETS.items() if total < preset.below), None)


def _filled(config: ServerConfig, given: Collection[str], *, asked: bool) -> Chosen:
    """All but the number of sessions."""
    models = models_folder(config.models_dir)
    saving = {name: value for name, value in _saving(config).items() if name not in given}
    codec, weights = _codec(config, models, given, asked=asked), _weights(config, models, asked=asked)
    filled = config.model_copy(update={**saving, **codec.update, **weights.update})
    return Chosen(filled, (*codec.notes, *weights.notes))


def _saving(config: ServerConfig) -> dict[str, str]:
    """What saves memory by itself, beside the text engine that is asked for: plans have no INT8 weights."""
    sums = ",value_sums=fp16" if chip_of(torch.device(config.device)) in FP16_SUMS else ""
    on_cpu = {} if config.text_engine == "tensorrt" else {"text_device": "cpu"}
    in_int8 = {} if config.text_engine in ("onnx", "tensorrt") else {"text_weights": "int8"}
    return {"kernels": KEPT_IN_INT8 + sums, **on_cpu, **in_int8}


class _Update(NamedTuple):
    """Settings, and what there is to be said of them."""

    update: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def _codec(config: ServerConfig, models: Path, given: Collection[str], *, asked: bool) -> _Update:
    """The tiny decoder, if it is here or has to be."""
    entry = CATALOG.get(served_model(config).name)
    if "codec" in given or entry is None:
        return _Update()
    if asked or all(path.is_file() for path in entry.locate(models / entry.model, Role.TINY_CODEC)):
        return _Update({"codec": "tiny"})
    command = f"longtake download {entry.model} --with-tiny-codec"
    return _Update(notes=(f"the tiny decoder is not here; `{command}` brings it",))


def _weights(config: ServerConfig, models: Path, *, asked: bool) -> _Update:
    """The model in 8 bits that this card multiplies, if it is here or has to be.

    Raises ConfigError if the preset is asked for and it is not.
    """
    if config.model not in CATALOG:
        return _Update()
    if config.lora:
        told = f"`longtake quantize {config.model} --lora ... --output ...` merges LoRAs before it rounds"
        return _Update(notes=(f"weights stay in 16 bits; {told}",))
    runs = [weights for weights in WEIGHT_FORMATS if _runs(QuantizationConfig(weights), config)]
    for name in (f"{config.model}-{weights}" for weights in runs):
        made = find_quantized(name, models)
        if made is not None and _is_plain(made, config.model) and _runs(made.header.recipe, config):
            return _Update({"model": name})
    if not runs:
        return _Update(notes=(f"weights stay in {config.dtype}; beside it this card multiplies no 8 bits",))
    command = f"longtake quantize {config.model} --to {runs[0]}"
    if asked:
        raise ConfigError(
            f"preset {config.preset} serves {config.model} in {runs[0].upper()}, which is not in {models}; "
            f"make it by `{command}`, or set what saves memory one by one beside --preset none"
        )
    return _Update(notes=(f"weights stay in 16 bits; `{command}` rounds them",))


def _is_plain(made: QuantizedModel, model: str) -> bool:
    """Whether it is this model and nothing else: what is in a folder of its name may have been put there."""
    return made.base == model and not made.header.loras


def _runs(recipe: QuantizationConfig, config: ServerConfig) -> bool:
    capability = torch.cuda.get_device_capability(torch.device(config.device))
    return format_problem(recipe, capability, DTYPES[config.dtype]) is None
