from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import fidelity
from benchmarks.fidelity import Fidelity, Plan, earlier_parts, open_source, run
from benchmarks.judging import seeds
from benchmarks.judging.adherence import measure
from benchmarks.judging.casting import drift_cue, prompt_role, turn
from benchmarks.judging.footage import Cue, ModelSource, RenderedSource, Source, as_bytes, as_floats
from benchmarks.judging.judge import TrainedJudge
from benchmarks.judging.prompt_switch import arrival
from benchmarks.measure.machine import Machine
from engines.config.stream import StreamConfig
from engines.loading.model import Model
from engines.pocket.world.renderer import Renderer
from engines.pocket.world.scene import ATTRIBUTES, Clip
from engines.text.prompt_encoder import PromptEncoder
from engines.text.tokenizer import ByteTokenizer
from serving.cli.main import main as longtake

CPU = torch.device("cpu")
SMALLEST = Plan(prompts=4, blocks=4, pairs=2, switches=3, streams=1, minutes=0.06, together=4)


@pytest.fixture(scope="module")
def world() -> Renderer:
    return Renderer()


@pytest.fixture(scope="module")
def judge() -> TrainedJudge:
    return TrainedJudge.load()


@pytest.fixture
def tiny(model: Model) -> ModelSource:
    prompts = PromptEncoder(ByteTokenizer(model.config.text_encoder.text_len), model.text_encoder, 8)
    return ModelSource(model, prompts, "tiny", streams=4)


@pytest.fixture
def cues() -> list[Cue]:
    return [drift_cue(number) for number in range(2)]


def test_the_world_itself_keeps_all_marks(world: Renderer, judge: TrainedJudge, tmp_path: Path) -> None:
    source = RenderedSource(world, StreamConfig())
    measured = Fidelity(source, judge, world, SMALLEST, lambda line: None)
    parts = run(measured, None, list(fidelity.PARTS), Machine.here(CPU), tmp_path / "world")["parts"]
    for share in parts["prompts"]["adherence"]["all"].values():
        assert share["share"] >= 0.75
    assert parts["prompts"]["motion_by_rendered"]["ratio"] == pytest.approx(1, abs=0.05)
    assert parts["prompts"]["smoothness"]["change_by_wanted"] == pytest.approx([1] * 4, abs=0.05)
    assert parts["seeds"]["apart"] == pytest.approx(parts["seeds"]["apart_rendered"], abs=0.005)
    assert parts["seeds"]["apart"] > 0.02
    assert parts["switches"]["recache"]["all"]["changed_right_within_3_blocks"]["share"] >= 0.8
    assert parts["switches"]["recache"]["all"]["unchanged_kept"]["share"] >= 0.9
    assert parts["drift"]["minutes"][0]["mean_adherence"] >= 0.8
    assert len(list(tmp_path.glob("world*.png"))) == 5


def test_a_model_is_measured_by_its_name(world: Renderer, judge: TrainedJudge, tmp_path: Path) -> None:
    source, weights = open_source("tiny-taehv", tmp_path, CPU, SMALLEST, world)
    measured = Fidelity(source, judge, world, SMALLEST, lambda line: None)
    document = run(measured, weights, ["switches"], Machine.here(CPU), tmp_path / "tiny")
    assert document["model"] == "tiny-taehv"
    assert json.loads((tmp_path / "tiny.json").read_text()) == document
    assert document["parts"]["switches"]["no_recache"]["all"]["switches"] == SMALLEST.switches
    assert "switch, no_recache, all" in fidelity.summary(document)


def test_parts_measured_earlier_are_kept_for_the_same_weights_only(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert earlier_parts(file, {"weights": "a"}) == {}
    file.write_text(json.dumps({"weights": "a", "parts": {"drift": {"streams": 2}}}))
    assert earlier_parts(file, {"weights": "a"}) == {"drift": {"streams": 2}}
    assert earlier_parts(file, {"weights": "b"}) == {}


def test_too_few_blocks_to_read_are_refused(world: Renderer, judge: TrainedJudge) -> None:
    source: Source = RenderedSource(world, StreamConfig())
    with pytest.raises(ValueError, match="2 blocks are 21 frames"):
        measure(source, judge, world, prompts=1, blocks=2, together=1, report=lambda done: None)
    with pytest.raises(ValueError, match="2 blocks are 21 frames"):
        seeds.measure(source, world, prompts=1, blocks=2, report=lambda done: None)


def test_a_plan_measures_something() -> None:
    with pytest.raises(ValueError, match="switches is 0"):
        Plan(4, 4, 1, 0, 1, 1.0, 1)


def test_of_four_prompts_each_is_of_its_own_kind() -> None:
    kinds = {(role.cue.scene.held_out, role.phrasings) for role in map(prompt_role, range(8, 12))}
    assert kinds == {(held_out, wording) for held_out in (False, True) for wording in ("training", "held_out")}


def test_the_same_number_draws_the_same_prompt() -> None:
    assert prompt_role(17) == prompt_role(17)
    assert prompt_role(17) != prompt_role(21)


def test_switches_change_what_their_kind_says() -> None:
    turns = [turn(number) for number in range(30)]
    assert {t.changed for t in turns if t.kind == "weather"} == {("weather",)}
    assert all(len(t.changed) == 1 and "weather" not in t.changed for t in turns if t.kind == "one")
    assert max(len(t.changed) for t in turns if t.kind == "several") == 3
    assert all(len(t.changed) + len(t.unchanged) == len(ATTRIBUTES) for t in turns)


def test_rendered_blocks_join_to_the_clip(world: Renderer, cues: list[Cue]) -> None:
    take = RenderedSource(world, StreamConfig()).start(cues)
    joined = torch.cat([take.next_block(), take.next_block()], dim=1)
    clips = [Clip(cue.scene, cue.seed) for cue in cues]
    assert joined.shape[1] == take.next_frame == 21
    assert torch.equal(joined, as_bytes(world.render(clips, [0, 0], 21)))


def test_a_rendered_clip_is_switched_only_once(world: Renderer, cues: list[Cue]) -> None:
    take = RenderedSource(world, StreamConfig()).start(cues)
    take.switch(cues, recache=True)
    with pytest.raises(ValueError, match="switched already"):
        take.switch(cues, recache=True)


def test_without_recache_the_first_block_after_a_switch_is_another(tiny: ModelSource, cues: list[Cue]) -> None:
    take = tiny.start(cues[:1])
    take.next_block()
    fork = take.fork()
    take.switch(cues[1:], recache=True)
    fork.switch(cues[1:], recache=False)
    assert not torch.equal(take.next_block(), fork.next_block())


def test_without_a_change_a_missing_recache_is_not_seen(tiny: ModelSource, cues: list[Cue]) -> None:
    take = tiny.start(cues[:1])
    take.next_block()
    fork = take.fork()
    fork.switch(cues[:1], recache=False)
    assert torch.equal(take.next_block(), fork.next_block())


def test_closed_takes_leave_room_for_others(tiny: ModelSource, cues: list[Cue]) -> None:
    for _ in range(3):
        take = tiny.start(cues)
        take.close()
    assert tiny.start(cues).next_frame == 0


def test_bytes_come_back_as_they_were() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    assert torch.equal(as_bytes(as_floats(pictures)), pictures)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([False, False, True, True], 2),
        ([True, False, False, False], None),
        ([True] * 12, 0),
        ([False] + [True] * 9 + [False] + [True] * 9, 1),
        ([], None),
    ],
    ids=["late", "lost again", "at once", "one slip of twenty", "no readings"],
)
def test_a_change_has_arrived_once_nearly_all_later_pictures_show_it(
    right: list[bool], expected: int | None
) -> None:
    assert arrival(right) == expected


def test_a_quantized_model_is_judged_by_its_name(tmp_path: Path) -> None:
    among = ["--models-dir", str(tmp_path)]
    quantize = [
        "quantize",
        "pocket",
        "--to",
        "int8",
        "--smoothing",
        "0",
        "--rounding",
        "nearest",
        "--hold-back",
        "none",
    ]
    assert longtake([*quantize, *among]) == 0
    asked = ["--parts", "prompts", "--prompts", "1", "--blocks", "4", "--threads", "1"]
    fidelity.main(["--model", "pocket-int8", *asked, *among, "--results", str(tmp_path / "results")])
    document = json.loads((tmp_path / "results" / "fidelity_pocket-int8_cpu.json").read_text())
    assert document["model"] == "pocket-int8"
    assert document["weights"]["quantization"] == "int8, rounding nearest"


def test_a_model_that_is_not_here_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fidelity.main(["--model", "longlive-1.3b", "--models-dir", str(tmp_path)])
    assert "run `longtake download longlive-1.3b`" in capsys.readouterr().err
