"""What INT8 convolutions cost a decoder of random weights."""

from __future__ import annotations

import pytest
import torch

from engines.config.stream import StreamConfig
from engines.export.quantized_convs import PictureLoss
from engines.quantization.conv_ranges import conv_ranges
from engines.quantization.picture_loss import MOST_DB, int8_conv_loss, psnr
from tests.engines.quantization.test_conv_ranges import random_codec

STREAM = StreamConfig(height=32, width=48, first_block_frames=2, block_frames=1)
LATENTS = torch.randn(2, 1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [pytest.param("taehv", marks=pytest.mark.slow), "pocket"])
def test_every_block_of_every_stream_is_compared(kind: str) -> None:
    codec, told = random_codec(kind), list[int]()
    ranges = conv_ranges(codec, list(LATENTS))
    loss = int8_conv_loss(codec, STREAM, ranges, list(LATENTS), told.append)
    assert (loss.blocks, told) == (6, [1, 2])
    assert 30 < loss.worst_psnr_db <= loss.median_psnr_db < MOST_DB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["taehv", "pocket"])
def test_ranges_that_are_too_narrow_cost_more(kind: str) -> None:
    codec = random_codec(kind)
    ranges = conv_ranges(codec, list(LATENTS))
    narrow = {name: reach / 8 for name, reach in ranges.items()}
    loss, clipped = (int8_conv_loss(codec, STREAM, reaches, list(LATENTS)) for reaches in (ranges, narrow))
    assert clipped.median_psnr_db < loss.median_psnr_db - 3


def test_psnr_is_of_the_mean_square() -> None:
    black = torch.zeros(4, 4)
    assert psnr(black, black) == MOST_DB
    assert psnr(black + 255, black) == 0
    assert psnr(black + 25.5, black) == pytest.approx(20)


def test_a_loss_reads_like_this() -> None:
    assert str(PictureLoss(10, 45.6, 44.4)) == "45.6 dB in the median, 44.4 dB in the worst of 10 blocks"
