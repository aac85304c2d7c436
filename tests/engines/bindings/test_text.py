"""Prompts encoded by graphs, on either runtime, beside PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.bindings.stage_session import StageSession
from engines.bindings.text import GraphTextEncoder
from engines.errors import PromptError
from engines.export.graph import StageGraph
from engines.export.text import export_text_encoder
from tests.engines.bindings.runtimes import CPU, RUNTIMES
from tests.engines.text.test_umt5 import TINY, random_encoder

LENGTHS = (64, 128)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[StageGraph]:
    folder, encoder = tmp_path_factory.mktemp("text"), random_encoder().requires_grad_(False)
    return [export_text_encoder(encoder, n, Path(folder, str(n)), "weights", torch.float32) for n in LENGTHS]


@pytest.fixture(params=RUNTIMES)
def encoder(graphs: list[StageGraph], request: pytest.FixtureRequest) -> GraphTextEncoder:
    sessions = [StageSession(RUNTIMES[request.param](graph), CPU) for graph in graphs]
    return GraphTextEncoder(sessions, random_encoder().requires_grad_(False).token_embedding, TINY)


def ids_of(tokens: int) -> Tensor:
    return torch.randint(TINY.vocab, (1, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128])
def test_a_prompt_of_any_length_has_the_rows_of_pytorch(encoder: GraphTextEncoder, tokens: int) -> None:
    ids = ids_of(tokens)
    expected = random_encoder().requires_grad_(False)(ids, torch.ones_like(ids))
    torch.testing.assert_close(encoder(ids, torch.ones_like(ids)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("ids", [ids_of(129), ids_of(8).expand(2, -1)], ids=["too many tokens", "two prompts"])
def test_what_no_graph_takes_is_refused(encoder: GraphTextEncoder, ids: Tensor) -> None:
    with pytest.raises(PromptError, match="graphs take one prompt of up to 128"):
        encoder(ids, torch.ones_like(ids))
