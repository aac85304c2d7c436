"""The pocket model's stages by onnxruntime's plans, beside PyTorch's, and what is said where there are none."""

from __future__ import annotations

import logging
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.device.host_copy import HostCopier
from engines.device.side_stream import SideStream
from engines.errors import ConfigError, PlanError
from engines.loading.model import Model
from engines.plans.store import Plan
from engines.plans.tensorrt_builder import Card
from engines.streaming.builder import EngineConfig, build_generator
from engines.text.prompt import Prompt
from engines.text.prompt_encoder import PromptEncoder
from engines.vae.frame_decoder import FrameDecoder
from engines.vae.protocol import StreamingDecoder
from kernels.dispatch import EAGER
from serving.cli.main import main
from serving.config import ServerConfig, StageEngine
from serving.pipeline import stage_engine
from serving.pipeline.stage_engine import (
    ChosenDecoder,
    ChosenText,
    RunStage,
    StageChoice,
    described,
    open_decoder,
    open_runner,
    open_text,
    require_plans,
    served_stages,
)
from serving.weights.loader import OpenedModel, open_model
from serving.weights.quantized_model import served_model
from tests.support import fake_tensorrt_runtime

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMMANDS: dict[RunStage, str] = {
    "decoder": "longtake plan pocket --stage decoder --for cpu --size 96x160 --library onnxruntime",
    "text": "longtake plan pocket --stage text --for cpu --library onnxruntime",
}
INT8_COMMAND = COMMANDS["decoder"].replace("--library", "--int8-convs --library")
FIRST_GRAPHS: dict[RunStage, str] = {"decoder": "decoder-first-1 at 96x160", "text": "text-64"}
LATENTS = torch.randn(9, 16, 12, 20, generator=torch.Generator().manual_seed(1))

each_stage = pytest.mark.parametrize("stage", COMMANDS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With plans made by the commands that errors name, for tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("models")
    for command in COMMANDS.values():
        make(command, folder)
    return folder


def make(command: str, models: Path) -> None:
    assert main([*shlex.split(command)[1:], "--models-dir", str(models)]) == 0


def choice(stage: RunStage, models: Path) -> StageChoice:
    sizes = [(96, 160)] if stage == "decoder" else []
    return StageChoice(stage, "onnx", "pocket", "own", models, CPU, sizes)


def pocket() -> OpenedModel:
    return open_model("pocket", Path("none"), CPU, torch.float32, networks=["codec", "text_encoder"])


def pocket_decoder(chosen: StageChoice) -> StreamingDecoder:
    return open_decoder(pocket().model.vae, chosen, EAGER).decoder


def pocket_prompts(chosen: StageChoice) -> PromptEncoder:
    opened = pocket()
    return open_text(opened.prompts, opened.model.text_encoder, chosen).prompts


def pictures(decoder: StreamingDecoder, split: tuple[int, ...]) -> Tensor:
    decoding = FrameDecoder(decoder, SideStream(CPU), HostCopier(CPU))
    cache, made = decoding.empty_cache(), list[Tensor]()
    for block in LATENTS.split(list(split)):
        frames, cache, _ = decoding.decode(block, cache)
        made.append(frames)
    return torch.cat(made)


@pytest.mark.parametrize("split", [(3, 3, 3), (2, 1, 1, 5)], ids=str)
def test_pictures_are_within_one_step_of_pytorchs(models: Path, split: tuple[int, ...]) -> None:
    chosen = choice("decoder", models)
    by_onnx, by_torch = (
        pictures(pocket_decoder(replace(chosen, engine=engine)), split).int() for engine in ("onnx", "torch")
    )
    assert (by_onnx - by_torch).abs().max() <= 1


@pytest.mark.parametrize("text", ["a red balloon", "snow " * 500], ids=["short", "too long"])
def test_prompts_are_pytorchs(models: Path, text: str) -> None:
    chosen = choice("text", models)
    by_onnx, by_torch = (
        pocket_prompts(replace(chosen, engine=engine)).encode(text) for engine in ("onnx", "torch")
    )
    torch.testing.assert_close(by_onnx.rows, by_torch.rows, rtol=0, atol=2e-5)
    assert (by_onnx.text, by_onnx.cut_tokens) == (by_torch.text, by_torch.cut_tokens)


@pytest.mark.slow
def test_pictures_by_int8_convolutions_are_near_pytorchs(models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red balloon\na blue boat\n")
    make(f"{INT8_COMMAND} --blocks 2 --prompts {prompts}", tmp_path)
    chosen = replace(choice("decoder", tmp_path), int8_convs=True)
    by_onnx, by_torch = (pictures(pocket_decoder(each), (3, 3, 3)) for each in (chosen, choice("decoder", models)))
    errors = (by_onnx.float() - by_torch.float()).abs()
    assert 0.1 < errors.mean() < 10  # Noise reaches further than the streams that were watched.


def test_without_int8_plans_the_command_is_named_though_others_are_there(models: Path) -> None:
    with pytest.raises(PlanError, match=f"no plan of decoder-first-1-int8 at 96x160 .*; make it: {INT8_COMMAND}$"):
        require_plans(replace(choice("decoder", models), int8_convs=True))


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_int8_convolutions_are_run_by_plans_alone(models: Path, engine: StageEngine) -> None:
    with pytest.raises(ConfigError, match="by plans alone; say --decoder-engine onnx or tensorrt"):
        replace(choice("decoder", models), engine=engine, int8_convs=True)


@each_stage
def test_a_plan_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path, stage: RunStage) -> None:
    said = f"there is no plan of {FIRST_GRAPHS[stage]} .*; make it: {COMMANDS[stage]}$"
    with pytest.raises(PlanError, match=said):
        require_plans(choice(stage, tmp_path))


@each_stage
def test_a_plan_of_weights_of_which_the_last_value_was_another_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch, stage: RunStage
) -> None:
    def changed(*arguments: Any, **options: Any) -> OpenedModel:
        opened = open_model(*arguments, **options)
        network = opened.model.vae if stage == "decoder" else opened.model.text_encoder
        largest = max(network.parameters(), key=torch.Tensor.numel)
        largest.data[(-1,) * largest.dim()] += 1
        return opened

    monkeypatch.setattr(stage_engine, "open_model", changed)
    with pytest.raises(PlanError, match=f"was made of other weights than pocket has now; .*{COMMANDS[stage]}$"):
        require_plans(choice(stage, models))


def test_a_plan_that_cannot_be_loaded_is_named_with_what_mends_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: Plan, device: torch.device) -> None:
        raise PlanError(f"the library cannot load the plan of {plan.graph.name}")

    monkeypatch.setattr(stage_engine, "load_plan", fail)
    said = f"decoder-first-1; remove .*decoder-first-1-[0-9a-f]+, then make it: {COMMANDS['decoder']}$"
    with pytest.raises(PlanError, match=said):
        pocket_decoder(choice("decoder", models))


@pytest.mark.parametrize(
    ("engine", "device", "likely"),
    [("auto", CPU, "torch"), ("auto", CUDA, "auto"), ("torch", CUDA, "torch"), ("tensorrt", CUDA, "tensorrt")],
    ids=str,
)
def test_before_plans_were_looked_for_auto_is_known_where_there_are_none(
    engine: StageEngine, device: torch.device, likely: StageEngine
) -> None:
    chosen = StageChoice("decoder", engine, "pocket", "own", None, device)
    assert chosen.likely_engine == likely
    assert (f"decoder engine: {likely}" in described(EAGER, likely, "torch")) == (likely != "torch")


def test_a_model_that_restyles_videos_too_needs_plans_for_their_first_blocks(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (first,) = tmp_path.rglob("decoder-first-2-*")
    shutil.rmtree(first)
    with pytest.raises(
        PlanError, match=f"no plan of decoder-first-2 at 96x160 .*; make it: {COMMANDS['decoder']}$"
    ):
        require_plans(choice("decoder", tmp_path))


@each_stage
def test_a_plan_with_one_byte_changed_is_refused(models: Path, tmp_path: Path, stage: RunStage) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    file = next(tmp_path.rglob(f"{stage}-*/engine.plan"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PlanError, match=f"{file} is damaged: .*; make it: {COMMANDS[stage]}$"):
        require_plans(choice(stage, tmp_path))


@each_stage
def test_an_engine_on_the_wrong_device_is_refused(models: Path, stage: RunStage) -> None:
    with pytest.raises(ConfigError, match=f"the {stage} engine onnx runs on cpu, and the device is cuda; say"):
        replace(choice(stage, models), device=CUDA)
    with pytest.raises(ConfigError, match=f"the {stage} engine tensorrt runs on cuda, and the device is cpu"):
        replace(choice(stage, models), engine="tensorrt")


def test_an_engine_for_text_in_int8_is_refused(models: Path) -> None:
    with pytest.raises(ConfigError, match="the text engine onnx has no INT8 weights; say --text-weights plain"):
        replace(choice("text", models), int8_text=True)


def test_on_a_cpu_auto_is_pytorch_though_plans_are_there(models: Path) -> None:
    opened = pocket()
    decoder = open_decoder(opened.model.vae, replace(choice("decoder", models), engine="auto"), EAGER)
    text = open_text(opened.prompts, opened.model.text_encoder, replace(choice("text", models), engine="auto"))
    assert (decoder.decoder, decoder.engine) == (opened.model.vae, "torch")
    assert (text.prompts, text.engine) == (opened.prompts, "torch")


@each_stage
def test_on_a_card_without_plans_auto_is_pytorch_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: RunStage
) -> None:
    caplog.set_level(logging.INFO)
    opened, chosen = pocket(), replace(choice(stage, tmp_path), engine="auto", device=CUDA)
    made: ChosenDecoder | ChosenText
    if stage == "decoder":
        made = open_decoder(opened.model.vae, chosen, EAGER)
    else:
        made = open_text(opened.prompts, opened.model.text_encoder, chosen)
    assert made.engine == "torch"
    (record,) = caplog.records
    assert (record.message, record.__dict__["engine"]) == (f"{stage} engine", "torch")
    assert record.__dict__["why"] == made.why != ""


DENOISER = "longtake plan tiny --stage denoiser --for cpu --size 32x48 --library onnxruntime"


def denoiser(models: Path) -> StageChoice:
    return StageChoice("denoiser", "onnx", "tiny", "own", models, CPU, [(32, 48)])


def transformer(dtype: torch.dtype = torch.float32) -> Model:
    return open_model("tiny", Path("none"), CPU, dtype, networks=["transformer"]).model


@pytest.mark.slow
def test_blocks_by_plans_of_a_denoiser_are_pytorchs(tmp_path: Path) -> None:
    make(DENOISER, tmp_path)
    model, made = transformer(), list[Tensor]()
    stream = replace(model.config.stream, height=32, width=48)
    for runner in (open_runner(model.transformer, denoiser(tmp_path)), None):
        generator = build_generator(model, EngineConfig(stream, decodes=False), runner=runner)
        opened = generator.open(stream)
        generator.set_prompt(opened, Prompt("ones", torch.ones(3, generator.config.text_dim)))
        made.append(torch.stack([generator.generate([opened])[0].latents for _ in range(6)]))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=2e-5)
    with pytest.raises(ConfigError, match=r"compute in torch.float32 here, and .*; say --dtype float32"):
        open_runner(transformer(torch.bfloat16).transformer, denoiser(tmp_path))


def test_a_denoiser_without_plans_is_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=f"there is no plan of denoiser-3-of-3 at 32x48 .*; make it: {DENOISER}$"):
        open_runner(transformer().transformer, denoiser(tmp_path))


def test_of_a_denoiser_on_a_card_the_plan_of_a_full_window_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "here", lambda: Card("sm_89", "RTX 4090"))
    monkeypatch.setattr(stage_engine, "plan_module", lambda library: fake_tensorrt_runtime)
    command = "longtake plan tiny --stage denoiser --for sm_89 --size 32x48"
    with pytest.raises(PlanError, match=f"no plan of denoiser-3-of-12 at 32x48 .*; make it: {command}"):
        require_plans(replace(denoiser(tmp_path), engine="tensorrt", device=CUDA))


def test_pytorch_runs_passes_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    assert open_runner(transformer().transformer, replace(denoiser(tmp_path), engine="torch")) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"device": CUDA},
            "the denoiser engine onnx runs on cpu, and the device is cuda; say --device cpu",
        ),
        (
            {"engine": "tensorrt"},
            "the denoiser engine tensorrt runs on cuda, and the device is cpu; say --device cuda",
        ),
        ({"loras": True}, "plans of a denoiser know no LoRAs; say --denoiser-engine torch, or leave --lora out"),
    ],
)
def test_a_denoiser_that_plans_cannot_run_is_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(denoiser(tmp_path), **change)


def test_on_a_card_auto_leaves_plans_where_pictures_may_be_of_any_size(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chosen = replace(choice("decoder", models), engine="auto", device=CUDA, other_sizes=True)
    assert open_decoder(pocket().model.vae, chosen, EAGER).engine == "torch"
    assert "say --sizes" in caplog.records[0].__dict__["why"]


def test_a_server_by_graphs_of_its_denoiser_restyles_no_videos_and_has_its_own_size_alone(tmp_path: Path) -> None:
    config = ServerConfig(model="pocket", device="cpu", models_dir=tmp_path, denoiser_engine="onnx")
    assert served_model(config).video is None
    assert not config.other_sizes
    stages = served_stages(config)
    assert (stages.denoiser.engine, stages.denoiser.sizes) == ("onnx", ((96, 160),))
    with pytest.raises(ConfigError, match=r"only restyles videos, .*; say --denoiser-engine torch"):
        served_model(config.model_copy(update={"model": "streamdiffusionv2-1.3b"}))


def test_engines_are_named_beside_kernels_where_they_are_not_pytorch() -> None:
    assert described(EAGER, "torch", "torch") == str(EAGER)
    assert (
        described(EAGER, "onnx", "torch", convs="int8") == f"{EAGER}; decoder engine: onnx, convolutions in INT8"
    )
    assert described(EAGER, "torch", "torch", "onnx") == f"{EAGER}; denoiser engine: onnx"
    assert described(EAGER, "onnx", "tensorrt") == f"{EAGER}; decoder engine: onnx; text engine: tensorrt"
