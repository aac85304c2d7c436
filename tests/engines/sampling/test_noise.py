from __future__ import annotations

import pytest
import torch

from engines.sampling.noise import SeededNoise

SHAPE = (3, 16, 8, 8)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    fresh, used = SeededNoise(7), SeededNoise(7)
    for block in range(5):
        used.draw(block, 0, SHAPE)
    assert torch.equal(fresh.draw(5, 2, SHAPE), used.draw(5, 2, SHAPE))


def test_the_values_are_the_same_on_every_machine_and_version() -> None:
    expected = [-0.9778042435646057, 0.4884304702281952, -0.081004798412323, -0.30936482548713684]
    assert SeededNoise(42).draw(3, 1, (4,)).tolist() == expected


@pytest.mark.parametrize(
    ("seed", "block", "draw"), [(8, 0, 0), (7, 1, 0), (7, 0, 1), (7, 0, 1023), (1 << 63, 0, 0)]
)
def test_another_seed_block_or_draw_gives_unrelated_noise(seed: int, block: int, draw: int) -> None:
    a, b = SeededNoise(7).draw(0, 0, SHAPE), SeededNoise(seed).draw(block, draw, SHAPE)
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.1


def test_noise_is_standard_normal() -> None:
    noise = SeededNoise(1).draw(0, 0, (100_000,))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_the_largest_seed_and_a_block_after_centuries_are_drawn() -> None:
    assert SeededNoise((1 << 64) - 1).draw(1 << 50, 3, (2,)).isfinite().all()
