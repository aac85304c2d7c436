"""What has been seen of the pocket model's inputs, once for all tests."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from engines.loading.model import Model
from engines.quantization.calibration import calibrate
from engines.quantization.inputs import InputStatistics
from engines.text.prompt import Prompt
from tests.support.quantized import POCKET, encoded, pocket

WATCHED = (
    "a red balloon drifts to the left over rolling hills at noon under a clear sky",
    "a blue boat sways from side to side on the sea at dusk in the rain",
    "a yellow bird flies in circles over snowy mountains at night in falling snow",
    "a white kite bobs up and down over the sea at dawn in thick fog",
)
SHOWN = (
    "a green balloon bobs up and down over rolling hills at dawn in the rain",
    "a red bird sways from side to side over the sea at noon under a clear sky",
    "a blue kite drifts steadily to the left over mountains at dusk in thick fog",
    "a white boat drifts steadily to the right on the sea at night in falling snow",
)
"""Others than those that are watched."""


class Watched(NamedTuple):
    """The pocket model in fp32, prompts it was watched with and what was seen of its inputs, others to show it."""

    model: Model
    prompts: list[Prompt]
    statistics: InputStatistics
    shown: list[Prompt]


@pytest.fixture(scope="session")
def watched() -> Watched:
    model = pocket()
    prompts = encoded(model, [*WATCHED, *SHOWN])
    torch.set_num_threads(1)
    seen, shown = prompts[: len(WATCHED)], prompts[len(WATCHED) :]
    return Watched(model, seen, calibrate(model, seen, POCKET.stream, blocks=5), shown)
