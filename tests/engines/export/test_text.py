from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from engines.errors import ConfigError
from engines.export.graph import StageGraph
from engines.export.text import LENGTHS, export_text_encoder
from tests.engines.text.test_umt5 import TINY, random_encoder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, StageGraph]:
    folder = tmp_path_factory.mktemp("text")
    encoder = random_encoder().requires_grad_(False)
    return {n: export_text_encoder(encoder, n, folder / str(n), "weights", torch.float32) for n in LENGTHS}


@pytest.mark.parametrize(("length", "tokens"), [(64, 1), (64, 64), (128, 65), (256, 200), (512, 512)])
def test_a_prompt_padded_to_its_length_has_the_rows_of_pytorch(
    graphs: dict[int, StageGraph], length: int, tokens: int
) -> None:
    encoder = random_encoder().requires_grad_(False)
    ids = torch.randint(TINY.vocab, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    rows = torch.zeros(1, length, TINY.dim)
    rows[:, :tokens] = encoder.token_embedding(ids)
    mask = np.zeros((1, length), np.int64)
    mask[:, :tokens] = 1
    session = onnxruntime.InferenceSession(graphs[length].path, providers=["CPUExecutionProvider"])
    (embedding,) = session.run(["embedding"], {"rows": rows.numpy(), "mask": mask})
    expected = encoder(ids, torch.ones_like(ids))
    torch.testing.assert_close(torch.from_numpy(embedding[:, :tokens]), expected, rtol=0, atol=2e-5)


def test_the_embedding_stays_outside(graphs: dict[int, StageGraph]) -> None:
    shapes = [tuple(w.shape) for w in _weights(graphs[64])]
    assert (TINY.vocab, TINY.dim) not in shapes
    assert (TINY.dim, TINY.ffn_dim) in shapes or (TINY.ffn_dim, TINY.dim) in shapes


def _weights(graph: StageGraph) -> list[np.ndarray]:
    import onnx

    return [onnx.numpy_helper.to_array(x) for x in onnx.load(graph.path).graph.initializer]


def test_more_tokens_than_the_encoder_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="513 tokens; this text encoder takes 1 to 512"):
        export_text_encoder(random_encoder(), 513, tmp_path / "text", "weights", torch.float32)
