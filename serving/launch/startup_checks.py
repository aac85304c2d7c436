"""What would keep a server from starting and can be known before anything is started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from engines.config.validation import require
from engines.loading.memory_plan import MemoryPlan, gigabytes
from engines.runner.selection import require_runnable
from serving.config import DTYPES, Listener, ServerConfig
from serving.errors import ServerError
from serving.media.encoder import chosen, opens
from serving.pipeline.stage_engine import require_plans, served_stages
from serving.tracing.exporter import check_exporter
from serving.weights.catalog import models_folder
from serving.weights.loader import require_model
from serving.weights.quantized_model import served_model

CONNECT_S = 5.0


def check_startup(config: ServerConfig) -> None:
    """Raise ConfigError, ModelError, ServerError or WeightsError, with the remedy: a server cannot start here.

    Of one in a Ray cluster that is there, devices and ports are the cluster's.
    """
    check_exporter()
    choices = served_stages(config)
    require_model(config.model, models_folder(config.models_dir), config.codec, config.lora_files)
    # Of a cluster's cards nothing is known here.
    for choice in choices:
        if choice.engine == "onnx" or (choice.engine == "tensorrt" and config.address is None):
            require_plans(choice)
    _require_folder(config.recordings)
    if config.address is not None:
        require_cluster(config.address)
    else:
        require_devices(config)
        require_kernels(config)
        require_encoder(config)
        for listener in config.listeners:
            require_port(listener)


def require_devices(config: ServerConfig) -> None:
    """Raise ConfigError where a GPU is asked for and there is none, or where replicas need more than there are."""
    if "cuda" not in (config.device, config.text_device):
        return
    require_cuda()
    there, needed = torch.cuda.device_count(), config.gpus
    problem = f"{needed} replicas need a GPU each, and {there} are here; take fewer --denoisers or --decoders"
    require(needed <= there, problem)


def require_cuda() -> None:
    """Raise ConfigError where there is no GPU."""
    problem = "the device is cuda, and torch finds no CUDA device here; say --device cpu, or look at `nvidia-smi`"
    require(torch.cuda.is_available(), problem)


def require_encoder(config: ServerConfig) -> str:
    """The encoder of a replica on a machine like this one. Raises ConfigError where it does not open."""
    codec = chosen(config.encoder, graphics=config.device == "cuda")
    require(opens(codec), f"{codec} does not open here; choose another one by --encoder, or install av with it")
    return codec


def require_kernels(config: ServerConfig) -> None:
    """Raise ConfigError where the kernels, or the model in its format, cannot run on a machine like this one."""
    model, device = served_model(config), torch.device(config.device)
    require_runnable(model.transformer, config.backends, device, DTYPES[config.dtype])


def check_memory(config: ServerConfig, plan: MemoryPlan) -> None:
    """Raise ConfigError, with what would fit, unless a graphics card has room for the plan."""
    free, total = torch.cuda.mem_get_info()
    needed, fit = plan.nbytes(config.slots), plan.sessions_in(free)
    presets = ", --preset 24gb or 16gb" if config.preset == "none" else ""
    remedy = (
        f"--slots {fit}" if fit else f"a quantized or smaller model (`longtake models`), smaller --sizes{presets}"
    )
    problem = (
        f"{config.model} with {config.slots} sessions needs {gigabytes(needed)}, and of the GPU's "
        f"{gigabytes(total)} {gigabytes(free)} are free; take {remedy}"
    )
    require(needed <= free, problem)


def require_cluster(address: str) -> None:
    """Raise ServerError where nobody listens at an address that is `HOST:PORT`: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        remedy = "start one by `ray start --head`, or leave --address out"
        raise ServerError(f"no Ray cluster answers at {address}: {why}; {remedy}") from error


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        require(False, f"the recordings folder {str(folder)!r} cannot be made: {error.strerror}")
    require(os.access(folder, os.W_OK), f"the recordings folder {str(folder)!r} cannot be written to")


def require_port(listener: Listener) -> None:
    """Raise ConfigError, with the flag, for a port of this host that cannot be had."""
    flag = f"--{listener.setting.replace('_', '-')}"
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: what a server before this one left in TIME_WAIT is no reason not to start.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = f"the {listener.name} port {listener.port} of {listener.host}"
        require(False, f"{where} cannot be had: {error.strerror}; choose another one by {flag}")
