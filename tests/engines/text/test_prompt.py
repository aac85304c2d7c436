from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engines.errors import PromptError
from engines.text.prompt import Prompt
from tests.reference.recording import Recording

RECORDING = Path(__file__).parents[2] / "assets" / "recordings" / "vae_text_encoder.safetensors"


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (torch.zeros(4), r"\(4,\); they must be \[tokens, text_dim\]"),
        (torch.zeros(1, 2, 4), r"\(1, 2, 4\); they must be \[tokens, text_dim\]"),
        (torch.zeros(0, 4), "at least one token"),
        (torch.zeros(2, 4, dtype=torch.int64), "must be floating point"),
    ],
    ids=["1-D", "3-D", "no row", "integers"],
)
def test_rows_that_are_no_embedding_are_refused(rows: torch.Tensor, rule: str) -> None:
    with pytest.raises(PromptError, match=rule):
        Prompt("a red ball", rows)


def test_a_recorded_embedding_loses_only_its_padding() -> None:
    padded = Recording(RECORDING)["prompt.0"][0]
    prompt = Prompt.from_padded("recorded", padded)
    assert prompt.rows[-1].any()
    assert torch.equal(F.pad(prompt.rows, (0, 0, 0, len(padded) - len(prompt.rows))), padded)


def test_a_zero_row_between_real_rows_stays() -> None:
    padded = torch.tensor([[1.0], [0.0], [-2.0], [0.0]])
    assert torch.equal(Prompt.from_padded("gap", padded).rows, padded[:3])


@pytest.mark.parametrize(
    ("embedding", "rule"),
    [(torch.zeros(5, 4), "all 5 rows"), (torch.ones(4), r"\(4,\); it must be \[text_len, text_dim\]")],
    ids=["all zero", "1-D"],
)
def test_a_padded_embedding_without_a_row_is_refused(embedding: torch.Tensor, rule: str) -> None:
    with pytest.raises(PromptError, match=rule):
        Prompt.from_padded("nothing", embedding)
