from __future__ import annotations

from dataclasses import replace

import torch

from engines.config.presets import preset
from engines.wan.position_embedding import PositionEmbedding
from engines.wan.transformer import CausalTransformer

TINY = preset("tiny").transformer


def embedding() -> PositionEmbedding:
    generator = torch.Generator().manual_seed(1)
    vectors = PositionEmbedding((3, 2, 4), dim=5).requires_grad_(False)
    for parameter in vectors.parameters():
        parameter.normal_(generator=generator)
    return vectors


def test_a_transformer_without_learned_positions_has_no_such_parameters() -> None:
    with torch.device("meta"):
        plain, positioned = CausalTransformer(TINY), CausalTransformer(replace(TINY, position_grid=(3, 4, 6)))
    more = positioned.state_dict().keys() - plain.state_dict().keys()
    assert more == {"position_embedding.frame", "position_embedding.space"}


def test_positions_of_nought_change_nothing() -> None:
    torch.manual_seed(0)
    plain, positioned = CausalTransformer(TINY), CausalTransformer(replace(TINY, position_grid=(3, 4, 6)))
    positioned.load_state_dict(plain.state_dict(), strict=False)
    latents = torch.randn(1, 3, 16, 8, 12)
    assert torch.equal(plain._patch(latents), positioned._patch(latents))


def test_every_token_of_a_block_has_a_vector_of_its_own() -> None:
    vectors = embedding()(frames=3, rows=2, columns=4)
    assert vectors.shape == (3, 8, 5)
    assert len(vectors.flatten(0, 1).unique(dim=0)) == 24


def test_all_blocks_of_a_pass_have_the_same_vectors() -> None:
    vectors = embedding()
    assert torch.equal(vectors(6, 2, 4), vectors(3, 2, 4).repeat(2, 1, 1))


def test_blocks_of_one_frame_have_the_first_frames_vectors() -> None:
    vectors = embedding()
    assert torch.equal(vectors(1, 2, 4), vectors(3, 2, 4)[:1])


def test_larger_pictures_share_out_the_vectors_that_there_are() -> None:
    vectors = embedding()
    corner = vectors(3, 4, 8).unflatten(1, (4, 8))[:, 0, 0]
    torch.testing.assert_close(corner, vectors(3, 2, 4)[:, 0])
