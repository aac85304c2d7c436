from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.config.model import ModelConfig
from engines.config.networks import TAEHVConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from engines.config.presets import PRESETS, preset
from engines.config.stream import StreamConfig
from engines.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_block_frames": 13}, "a first block of 13 does not fit window_frames 12"),
        ({"first_block_frames": 0}, "first_block_frames is 0"),
        ({"sink_frames": 12}, "sink_frames 12 leaves no room for a block of 3 in window_frames 12"),
        ({"sink_frames": 15}, "sink_frames 15 leaves no room"),
        ({"sink_frames": -3}, "sink_frames is -3; it must be at least 0"),
        ({"window_frames": 0, "sink_frames": 0}, "window_frames is 0; it must be at least 1"),
        ({"block_frames": 0}, "block_frames is 0"),
        ({"height": 472}, "height 472 is not a positive multiple of 16"),
        ({"width": 0}, "width 0 is not a positive multiple of 16"),
        ({"steps": (1000, 500, 750)}, r"steps \(1000, 500, 750\) are not descending"),
        ({"steps": (500, 500)}, r"steps \(500, 500\) are not descending"),
        ({"steps": ()}, "steps is empty"),
        ({"steps": (1001, 500)}, r"steps \(1001, 500\) are not all within 1..1000"),
        ({"steps": (500, 0)}, r"steps \(500, 0\) are not all within"),
        ({"shift": 0.0}, "shift 0.0 is not positive"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"seed": 1 << 64}, "is outside"),
        ({"first_steps": (500, 1000)}, r"first_steps \(500, 1000\) are not descending"),
        ({"levels": "near"}, "levels 'near' is neither"),
        ({"start_level": 0.0}, r"start_level 0\.0 is outside"),
        ({"context": "dirty"}, "context 'dirty' is none of clean, noisy, steps"),
        ({"context": "steps", "first_steps": (1000, 500)}, "a first block cannot have others"),
        ({"sink": "both"}, "sink 'both' is neither"),
        ({"rope": "none"}, "rope 'none' is neither"),
    ],
)
def test_a_stream_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 7}, "dim 96 is not a multiple of heads 7"),
        ({"heads": 32}, "head dim 3 is odd"),
        ({"heads": 24}, "head dim 4 is below 6"),
        ({"freq_dim": 33}, "freq_dim 33 is odd"),
        ({"layers": 0}, "layers is 0"),
        ({"position_grid": (3, 0, 10)}, r"position_grid is \(3, 0, 10\)"),
    ],
)
def test_a_transformer_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TransformerConfig(dim=96, layers=1, heads=3, ffn_dim=8), **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VAEConfig(dim=7), "dim 7 is odd"),
        (lambda: VAEConfig(latent_std=(1.0,)), "16 latent means but 1 standard deviations"),
        (lambda: VAEConfig(latent_mean=(0.0,), latent_std=(0.0,)), "latent std 0.0 is not positive"),
        (lambda: TAEHVConfig(decoder_widths=(8, 0, 8, 8)), r"decoder_widths\[1\] is 0"),
        (lambda: TextEncoderConfig(buckets=6), "buckets is 6"),
        (lambda: TextEncoderConfig(max_distance=8), "max_distance 8 is not above the 8 exact"),
    ],
)
def test_a_codec_or_text_encoder_that_cannot_work_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_networks_that_do_not_fit_each_other_are_refused() -> None:
    tiny = preset("tiny")
    with pytest.raises(ConfigError, match="makes 16 latent channels, the VAE reads 4"):
        replace(tiny, vae=TAEHVConfig(latent_channels=4))
    with pytest.raises(ConfigError, match="makes 4096 channels, the transformer reads 32"):
        replace(tiny, text_encoder=TextEncoderConfig())


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown model 'longlive'; known: causal-forcing-1\.3b, .*, longlive-1\.3b, one-.*, pocket",
    ):
        preset("longlive")


@pytest.mark.parametrize("model", PRESETS.values(), ids=PRESETS)
def test_a_preset_is_found_by_its_name(model: ModelConfig) -> None:
    assert preset(model.name) is model
