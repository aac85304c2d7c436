from __future__ import annotations

from dataclasses import replace

from engines.config.presets import preset
from engines.config.work import decoding_work, denoising_work

POCKET = preset("pocket")


def test_attention_grows_with_the_square_of_the_picture_and_the_rest_with_the_picture() -> None:
    own = POCKET.stream
    four, sixteen = (replace(own, height=n * own.height, width=n * own.width) for n in (2, 4))
    works = [denoising_work(POCKET.transformer, stream) for stream in (own, four, sixteen)]
    linear = (16 * works[0] - works[1]) / 12
    attention = works[0] - linear
    assert works[2] == 16 * linear + 256 * attention


def test_a_longlive_pass_has_the_flops_that_were_counted() -> None:
    """28.3 TFLOP less cross-attention over 512 keys, of two operations a multiply-add."""
    longlive = preset("longlive-1.3b")
    a_pass = denoising_work(longlive.transformer, longlive.stream) / longlive.stream.passes
    assert abs(2 * a_pass / 1e12 - (28.3 - 0.44)) < 0.1


def test_decoding_is_counted_in_pixels() -> None:
    assert decoding_work(POCKET.stream) == 12 * 96 * 160
