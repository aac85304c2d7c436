"""The pocket model's decoder by onnxruntime's plans, beside PyTorch's, and what is said where there are none."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.errors import ConfigError, PlanError
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import StreamingDecoder
from kernels.dispatch import EAGER
from serving.cli.main import main
from serving.pipeline.decoder_engine import DecoderChoice, open_decoder, require_plans
from serving.weights.loader import open_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMMAND = "longtake plan pocket --stage decoder --for cpu --size 96x160 --library onnxruntime"
LATENTS = torch.randn(9, 16, 12, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> DecoderChoice:
    """Plans made by the command that errors name."""
    models = tmp_path_factory.mktemp("models")
    assert main([*shlex.split(COMMAND)[1:], "--models-dir", str(models)]) == 0
    return choice(models)


def choice(models: Path) -> DecoderChoice:
    return DecoderChoice("onnx", "pocket", "own", models, CPU, [(96, 160)])


def pocket_decoder(chosen: DecoderChoice) -> StreamingDecoder:
    vae = open_model("pocket", Path("none"), CPU, torch.float32, networks=["codec"]).model.vae
    return open_decoder(vae, chosen, EAGER).decoder


def pictures(decoder: StreamingDecoder, split: tuple[int, ...]) -> Tensor:
    decoding = FrameDecoder(decoder, SideStream(CPU), HostCopier(CPU))
    cache, made = decoding.empty_cache(), list[Tensor]()
    for block in LATENTS.split(list(split)):
        frames, cache, _ = decoding.decode(block, cache)
        made.append(frames)
    return torch.cat(made)


@pytest.mark.parametrize("split", [(3, 3, 3), (2, 1, 1, 5)], ids=str)
def test_pictures_are_within_one_step_of_pytorchs(planned: DecoderChoice, split: tuple[int, ...]) -> None:
    by_onnx, by_torch = (
        pictures(pocket_decoder(replace(planned, engine=engine)), split).int() for engine in ("onnx", "torch")
    )
    assert (by_onnx - by_torch).abs().max() <= 1


def test_a_plan_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=f"there is no plan of decoder-first-1 at 96x160 .*; make it: {COMMAND}$"):
        require_plans(choice(tmp_path))


def test_a_plan_with_one_byte_changed_is_refused(planned: DecoderChoice, tmp_path: Path) -> None:
    assert main([*shlex.split(COMMAND)[1:], "--models-dir", str(tmp_path)]) == 0
    file = next(tmp_path.rglob("decoder-steady-3-*/engine.plan"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PlanError, match=f"{file} is damaged: .*; make it: {COMMAND}$"):
        pocket_decoder(choice(tmp_path))


def test_an_engine_on_the_wrong_device_is_refused(planned: DecoderChoice) -> None:
    with pytest.raises(ConfigError, match="the decoder engine onnx runs on cpu, and the device is cuda; say"):
        replace(planned, device=CUDA)
    with pytest.raises(ConfigError, match="the decoder engine tensorrt runs on cuda, and the device is cpu"):
        replace(planned, engine="tensorrt")


def test_on_a_cpu_auto_is_pytorch_though_a_plan_is_there(planned: DecoderChoice) -> None:
    vae = open_model("pocket", Path("none"), CPU, torch.float32, networks=["codec"]).model.vae
    opened = open_decoder(vae, replace(planned, engine="auto"), EAGER)
    assert (opened.decoder, opened.engine) == (vae, "torch")


def test_on_a_card_without_plans_auto_is_pytorch_and_says_so(
    planned: DecoderChoice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    vae = open_model("pocket", Path("none"), CPU, torch.float32, networks=["codec"]).model.vae
    opened = open_decoder(vae, replace(planned, engine="auto", device=CUDA), EAGER)
    assert opened.engine == "torch"
    (record,) = caplog.records
    assert (record.message, record.__dict__["engine"]) == ("decoder engine", "torch")
    assert record.__dict__["why"]
