"""The model that ships with Longtake, as the commands use it: what a prompt says can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.config.stream import StreamConfig
from engines.pocket.model_files import WEIGHTS, revision
from serving.cli.main import main
from serving.offline.provenance import Facts
from serving.weights.loader import DEFAULT_MODEL, OpenedModel, open_model
from tests.support.generators import generator_for

PLACE = "a white balloon hovering on the spot over the {} {} under a clear sky"


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return open_model(DEFAULT_MODEL, tmp_path_factory.mktemp("none"), torch.device("cpu"), torch.float32)


def pictures(pocket: OpenedModel, *prompts: str) -> Tensor:
    """Two blocks under each prompt in turn, in 0..1: [frames, height, width, 3]."""
    config: StreamConfig = pocket.model.config.stream
    generator = generator_for(pocket.model)
    stream = generator.open(config)
    made = []
    for prompt in prompts:
        generator.set_prompt(stream, pocket.prompts.encode(prompt))
        made += [generator.decode(stream, generator.generate([stream])[0]) for _ in range(2)]
    return torch.cat(made).float() / 255


def test_night_is_darker_than_noon(pocket: OpenedModel) -> None:
    night = pictures(pocket, PLACE.format("sea", "at night"))
    noon = pictures(pocket, PLACE.format("sea", "at noon"))
    assert night.shape == (21, 96, 160, 3)
    assert night.mean() < 0.6 * noon.mean()


def test_a_switch_to_night_makes_the_picture_darker_than_going_on_at_noon(pocket: OpenedModel) -> None:
    noon, night = PLACE.format("hills", "at noon"), PLACE.format("hills", "at night")
    switched, unchanged = pictures(pocket, noon, night, night), pictures(pocket, noon, noon, noon)
    torch.testing.assert_close(switched[:21], unchanged[:21])
    assert switched[-12:].mean() < 0.9 * unchanged[-12:].mean()


def test_dusk_is_redder_than_noon(pocket: OpenedModel) -> None:
    def redness(hour: str) -> float:
        mean = pictures(pocket, PLACE.format("desert", hour)).mean(dim=(0, 1, 2))
        return float(mean[0] / mean[2])

    assert redness("at dusk") > 1.3 * redness("at noon")


def test_a_film_says_which_weights_made_it(tmp_path: Path) -> None:
    source = tmp_path / "timeline.yaml"
    source.write_text("version: 1\nframes: 9\ncues: [{frame: 0, prompt: a red fish over the sea}]\n")
    assert main(["generate", str(source), "-o", str(tmp_path / "film.mp4"), "--threads", "1"]) == 0
    (origin,) = Facts.of_film(tmp_path / "film.mp4").origins
    assert (origin.repo, origin.revision) == ("longtake pocket", revision())


def test_the_weights_fit_into_the_repository() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 32 * 2**20


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert revision(tmp_path) == revision()
    with (tmp_path / "codec.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert revision(tmp_path) != revision()
