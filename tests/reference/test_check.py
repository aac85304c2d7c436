from __future__ import annotations

import json
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.config.video_stream import Loop
from tests.conftest import RECORDINGS
from tests.reference.check import main
from tests.reference.recorder import Recorder

FILES = sorted(RECORDINGS.glob("*.safetensors"))


COUNTED = ("encode", "draw", "call", "decode")
"""Events with a number, by which their tensors are found."""


def latents(file: Path) -> Tensor:
    """What was decoded: of a video stream block by block."""
    tensors = load_file(file)
    if "latents" in tensors:
        return tensors["latents"]
    blocks = [key for key in tensors if key.startswith("decode.") and key.endswith(".latents")]
    return torch.cat([tensors[key] for key in sorted(blocks, key=lambda key: int(key.split(".")[1]))], dim=1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recording_is_reproduced(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--save-latents", str(tmp_path)]) == 0
    assert "MISS" not in capsys.readouterr().out
    torch.testing.assert_close(load_file(tmp_path / file.name)["latents"], latents(file), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("renoise.5", "latents"),
        ("call.20.flow", "calls: flow"),
        ("kv.after_recache36.l2.v", "cache: v"),
        ("model.blocks.1.self_attn.norm_k.weight", "latents"),
        ("prompt.2", "latents"),
    ],
)
def test_a_recording_of_something_else_is_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, line: str
) -> None:
    source = RECORDINGS / "rollout_relative.safetensors"
    tensors = load_file(source)
    tensors[key] = tensors[key] * 1.001
    save_file(tensors, tmp_path / source.name)
    copy(source.with_suffix(".json"), tmp_path)
    assert main([str(tmp_path / source.name)]) == 1
    missed = [found.split("  ")[1] for found in capsys.readouterr().out.splitlines() if found.endswith("MISS")]
    assert line in missed


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("shift", 5.0, "calls: x0"), ("refresh_at", 99, "integers: positions"),
        ("sink_threshold", -1.0, "integers: slots written"), ("noise_scale", 0.7, "integers: timesteps"),
    ],
)  # fmt: skip
def test_a_video_stream_set_up_otherwise_is_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: float, line: str
) -> None:
    source = RECORDINGS / "sdv2_batch4_long.safetensors"
    copy(source, tmp_path)
    facts = json.loads(source.with_suffix(".json").read_text())
    facts["options"][option] = value
    tmp_path.joinpath(source.name).with_suffix(".json").write_text(json.dumps(facts))
    assert main([str(tmp_path / source.name)]) == 1
    assert f"  {line} " in "".join(x for x in capsys.readouterr().out.splitlines() if x.endswith("MISS"))


@pytest.mark.parametrize("name", ["sdv2_plain", "sdv2_batch2_fast"])
def test_a_second_session_begins_anew(tmp_path: Path, name: str) -> None:
    source = RECORDINGS / f"{name}.safetensors"
    tensors, facts = load_file(source), json.loads(source.with_suffix(".json").read_text())
    counted = {kind: 1 + max(e[kind] for e in facts["events"] if kind in e) for kind in COUNTED}
    again = [
        {key: x + counted.get(key, 0) if key in COUNTED else x for key, x in e.items()} for e in facts["events"]
    ]
    facts["events"] += again
    facts["calls"] *= 2
    for key, tensor in list(tensors.items()):
        kind, _, rest = key.partition(".")
        counter = "call" if kind == "kv" else kind
        if counter in COUNTED:
            number, _, part = rest.partition(".")
            tensors[".".join(filter(None, (kind, str(int(number) + counted[counter]), part)))] = tensor.clone()
    tensors["video"] = torch.cat([tensors["video"], tensors["video"]])
    save_file(tensors, tmp_path / source.name)
    tmp_path.joinpath(source.name).with_suffix(".json").write_text(json.dumps(facts))
    assert main([str(tmp_path / source.name)]) == 0


def test_the_rows_of_a_batch_are_streams_of_their_own(tmp_path: Path) -> None:
    source = RECORDINGS / "rollout_relative.safetensors"
    twice = {
        key: tensor if key.startswith(("model.", "sched.")) else torch.cat([tensor, tensor])
        for key, tensor in load_file(source).items()
    }
    save_file(twice, tmp_path / source.name)
    facts = json.loads(source.with_suffix(".json").read_text())
    facts["options"]["batch"] = 2
    tmp_path.joinpath(source.name).with_suffix(".json").write_text(json.dumps(facts))
    assert main([str(tmp_path / source.name)]) == 0


def test_a_file_that_cannot_be_read_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing.safetensors"), str(FILES[-1])]) == 1
    assert "cannot be checked: FileNotFoundError" in capsys.readouterr().out


TEXT = {
    "frames_per_block": 3, "window": 21, "sink": 0, "sink_threshold": -1.0, "noise_scale": None,
    "steps": [1000, 500, 0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "runs", "has_pictures"),
    [
        ({"dtype": "bfloat16"}, ["plain"] * 6, True),
        ({"dtype": "bfloat16", "mode": "batch"}, ["batch"] * 8, True),
        ({"steps": [700]}, ["plain"] * 8, True),
        ({"mode": "batch", "steps": [850, 600, 300]}, ["batch"] * 10, True),
        ({"mode": "auto"}, [*["batch"] * 4, *["plain"] * 3, *["batch"] * 4, "plain"], True),
        (TEXT | {"mode": "plain"}, ["plain"] * 8, False),
        (TEXT | {"mode": "batch"}, ["batch"] * 10, False),
    ],
    ids=["bf16", "bf16 batch", "one step", "three steps", "loops switched", "t2v", "t2v batch"],
)  # fmt: skip
def test_what_our_engine_does_is_checked_in_every_kind_of_recording(
    options: dict[str, Any], runs: list[Loop], has_pictures: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = RECORDINGS / "sdv2_plain.safetensors"
    pictures = load_file(source)["video"] if has_pictures else None
    file = Recorder(source, tmp_path, options).roll(runs, pictures)
    assert main([str(file)]) == 0
    facts = json.loads(file.with_suffix(".json").read_text())
    facts["calls"][-1]["start"][0] += 1
    file.with_suffix(".json").write_text(json.dumps(facts))
    assert main([str(file)]) == 1
    assert "integers: positions" in "".join(x for x in capsys.readouterr().out.splitlines() if x.endswith("MISS"))
