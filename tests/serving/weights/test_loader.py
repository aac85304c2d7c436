"""A published model from the hub to a film, by the commands that a user gives."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session
from torch import nn

from engines.config.presets import PRESETS, preset
from engines.config.video_stream import VideoStreamConfig
from engines.loading.model import Model, build_vae
from engines.vae.taehv import TAEHV
from serving.cli.main import main
from serving.weights import loader
from tests.serving.media.clips.clips import gray, write_clip
from tests.serving.weights.hub_server import FakeHub, FakeRepo, serve
from tests.support.published_files import random_lora, train_tokenizer

COMMIT = "a" * 40
TINY_CODEC = preset("tiny-taehv").vae


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on which LongLive, StreamDiffusionV2 and Wan2.1 are published as they are, but tiny."""
    small = replace(preset("tiny"), name="longlive-1.3b")
    monkeypatch.setitem(PRESETS, "longlive-1.3b", small)
    clips = replace(small, name="streamdiffusionv2-1.3b", video=VideoStreamConfig())
    monkeypatch.setitem(PRESETS, "streamdiffusionv2-1.3b", clips)
    monkeypatch.setattr(loader, "TAEW2_1", TINY_CODEC)
    monkeypatch.setenv("LONGTAKE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    networks = Model.random(small, seed=1)
    assert isinstance(networks.vae, nn.Module)
    train_tokenizer(tmp_path / "tokenizer")
    base = {f"model.{name}": tensor for name, tensor in networks.transformer.state_dict().items()}
    wan = {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "LICENSE.txt": b"Apache License",
        "Wan2.1_VAE.pth": saved(networks.vae.state_dict()),
        "models_t5_umt5-xxl-enc-bf16.pth": saved(networks.text_encoder.bfloat16().state_dict()),
        "google/umt5-xxl/tokenizer.json": (tmp_path / "tokenizer" / "tokenizer.json").read_bytes(),
    }
    wan |= {
        f"google/umt5-xxl/{name}": b"{}"
        for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json")
    }
    longlive = {
        "README.md": b"---\nlicense: other\nlicense_name: lab-terms\n---\n",
        "models/longlive_base.pt": saved({"generator": base}),
        "models/lora.pt": saved({"generator_lora": random_lora(networks.transformer)}),
    }
    tiny = build_vae(TINY_CODEC)
    assert isinstance(tiny, TAEHV)
    repos = {
        "Wan-AI/Wan2.1-T2V-1.3B": FakeRepo({COMMIT: wan}, {"license": "apache-2.0"}),
        "Efficient-Large-Model/LongLive-1.3B": FakeRepo({COMMIT: longlive}, {"license": "other"}),
        "jerryfeng/StreamDiffusionV2": FakeRepo({COMMIT: {"wan_causal_dmd_v2v/model.pt": saved(base)}}),
        "lightx2v/Autoencoders": FakeRepo({COMMIT: {"taew2_1.pth": saved(tiny.state_dict())}}),
    }
    close_session()
    with serve(FakeHub(repos)) as running:
        yield running
    close_session()


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "film.txt"
    path.write_text("a red ball hits the cube\nthe ball rolls under the cube\n")
    return path


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_a_downloaded_model_makes_a_film_that_says_where_it_comes_from(
    hub: FakeHub, timeline: Path, tmp_path: Path
) -> None:
    assert run("download", "longlive-1.3b", "--endpoint", hub.address) == 0
    film = tmp_path / "film.mp4"
    command = ("generate", timeline, "--model", "longlive-1.3b", "--size", "16x32", "--seconds", "6")
    assert run(*command, "-o", film, "--text-device", "cpu") == 0
    facts = json.loads(film.with_suffix(".json").read_text())
    assert (facts["frames_made"], facts["model"]) == (105, "longlive-1.3b")
    assert {(origin["repo"], origin["revision"]) for origin in facts["origins"]} == {
        ("Efficient-Large-Model/LongLive-1.3B", COMMIT),
        ("Wan-AI/Wan2.1-T2V-1.3B", COMMIT),
    }
    assert run("generate", film, "-o", tmp_path / "again.mp4") == 0
    assert tmp_path.joinpath("again.mp4").read_bytes() == film.read_bytes()


def test_the_tiny_codec_is_another_way_to_pictures(
    hub: FakeHub, timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "longlive-1.3b", "--endpoint", hub.address) == 0
    command = ("generate", timeline, "--model", "longlive-1.3b", "--size", "16x32", "--seconds", "1")
    tiny = (*command, "--codec", "tiny", "-o", tmp_path / "tiny.mp4")
    assert run(*tiny) == 2
    assert "run `longtake download longlive-1.3b --with-tiny-codec`" in capsys.readouterr().err
    assert run("download", "longlive-1.3b", "--endpoint", hub.address, "--with-tiny-codec") == 0
    assert run(*tiny) == 0
    assert run(*command, "-o", tmp_path / "own.mp4") == 0
    assert tmp_path.joinpath("tiny.mp4").read_bytes() != tmp_path.joinpath("own.mp4").read_bytes()


def test_a_clip_is_restyled_and_encoded_by_the_models_own_codec_whatever_decodes_it(
    hub: FakeHub, timeline: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", gray(24))
    name = "streamdiffusionv2-1.3b"
    assert run("download", name, "--endpoint", hub.address, "--with-tiny-codec") == 0
    command = ("generate", timeline, "--input", clip, "--model", name, "--size", "16x32")
    assert run(*command, "-o", tmp_path / "own.mp4") == 0
    assert run(*command, "-o", tmp_path / "tiny.mp4", "--codec", "tiny") == 0
    own, tiny = (json.loads(tmp_path.joinpath(f"{made}.json").read_text()) for made in ("own", "tiny"))
    assert own["frames_made"] == tiny["frames_made"] == 16
    assert tiny["weights"]["encoder"] == own["weights"]["codec"] != tiny["weights"]["codec"]


def test_a_file_that_has_shrunk_is_noticed(
    hub: FakeHub, timeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "longlive-1.3b", "--endpoint", hub.address) == 0
    lora = tmp_path / "models" / "longlive-1.3b" / "LongLive-1.3B" / "models" / "lora.pt"
    lora.write_bytes(lora.read_bytes()[:-1])
    assert run("generate", timeline, "--model", "longlive-1.3b", "-o", tmp_path / "film.mp4") == 2
    assert "run `longtake download longlive-1.3b` again" in capsys.readouterr().err
    assert not (tmp_path / "film.mp4").exists()
