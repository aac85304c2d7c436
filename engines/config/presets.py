"""The models that Longtake knows by name."""

from __future__ import annotations

from dataclasses import replace

from engines.config.model import ModelConfig
from engines.config.networks import (
    PatchVAEConfig,
    TAEHVConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from engines.config.stream import StreamConfig
from engines.config.video_stream import VideoStreamConfig
from engines.errors import ConfigError

WAN_1_3B = TransformerConfig(dim=1536, layers=30, heads=12, ffn_dim=8960)

WAN_14B = TransformerConfig(dim=5120, layers=40, heads=40, ffn_dim=13824)

TINY = TransformerConfig(
    dim=96, layers=3, heads=3, ffn_dim=192, freq_dim=64, text_dim=32, text_len=256, latent_channels=16
)
TINY_TEXT = TextEncoderConfig(vocab=320, dim=32, layers=2, heads=4, head_dim=8, ffn_dim=64, text_len=256)

POCKET = TransformerConfig(
    dim=192, layers=6, heads=4, ffn_dim=512, freq_dim=256, text_dim=128, text_len=64, latent_channels=16,
    position_grid=(3, 6, 10),
)  # fmt: skip
POCKET_TEXT = TextEncoderConfig(vocab=1280, dim=128, layers=2, heads=4, head_dim=32, ffn_dim=256, text_len=64)

TAEW2_1 = TAEHVConfig()
"""What `taew2_1` holds."""

POCKET_VIDEO = VideoStreamConfig(
    height=96, width=160, steps=(850, 500), shift=3.0, noise_scale=0.85, timestep_below=0, motion_noise=False,
)  # fmt: skip
"""At less noise a prompt does not change the light, and the controller would lower it where something moves."""

FRAMEWISE = StreamConfig(block_frames=1, window_frames=21, sink_frames=0)
"""A block is one latent frame; the window is all of a clip of 81 frames."""

ONE_STEP = replace(FRAMEWISE, steps=(1000,), first_steps=(1000, 750, 500, 250))

RCM = replace(
    FRAMEWISE, steps=(1000, 250), first_steps=ONE_STEP.first_steps, start_level=1600 / 1601, context="noisy"
)  # fmt: skip
"""Causal-rCM in two steps, whose last one writes the context (`c1-1_step2_noisy_ctx`)."""


STREAM_BATCH = StreamConfig(
    window_frames=21, sink_frames=0, steps=(1000, 750, 500, 250), shift=8.0, levels="nearest", context="steps"
)
"""StreamDiffusionV2 without pictures, which it was not made for: every step has a window of its own."""


def _wan(
    name: str,
    stream: StreamConfig,
    *,
    endless: bool = True,
    transformer: TransformerConfig = WAN_1_3B,
    video: VideoStreamConfig | None = None,
) -> ModelConfig:
    """A distillation of one of Wan2.1's models, with the VAE and the text encoder that they share."""
    return ModelConfig(
        name, transformer, VAEConfig(), TextEncoderConfig(), stream, endless, video=video,
        needs_video=video is not None,
    )  # fmt: skip


PRESETS = {
    model.name: model
    for model in (
        _wan("longlive-1.3b", StreamConfig()),
        _wan("self-forcing-1.3b", StreamConfig(window_frames=21, sink_frames=0), endless=False),
        _wan("causal-forcing-1.3b", StreamConfig(window_frames=21, sink_frames=0), endless=False),
        _wan("causal-forcing-framewise-1.3b", FRAMEWISE, endless=False),
        _wan("causal-forcing-2step-1.3b", replace(ONE_STEP, steps=(1000, 500)), endless=False),
        _wan("causal-forcing-1step-1.3b", ONE_STEP, endless=False),
        _wan("one-forcing-1.3b", ONE_STEP, endless=False),
        _wan("causal-rcm-1.3b", RCM, endless=False, transformer=replace(WAN_1_3B, fp32_time=True)),
        _wan("streamdiffusionv2-1.3b", STREAM_BATCH, endless=False, video=VideoStreamConfig()),
        _wan(
            "streamdiffusionv2-14b", STREAM_BATCH, endless=False, transformer=WAN_14B, video=VideoStreamConfig(),
        ),
        _wan("infinite-forcing-1.3b", StreamConfig(window_frames=6, sink_frames=1)),
        ModelConfig(
            "pocket", POCKET, PatchVAEConfig(), POCKET_TEXT, StreamConfig(height=96, width=160, shift=3.0),
            video=POCKET_VIDEO,
        ),
        ModelConfig("tiny", TINY, VAEConfig(dim=8), TINY_TEXT, StreamConfig(height=64, width=96)),
        ModelConfig(
            "tiny-taehv", TINY, TAEHVConfig(decoder_widths=(32, 16, 8, 8), encoder_width=8), TINY_TEXT,
            StreamConfig(height=64, width=96),
        ),
    )
}  # fmt: skip
"""By name. The pocket model's weights ship with Longtake; the tiny ones are for tests and have random ones."""


def preset(name: str) -> ModelConfig:
    """The model called `name`; ConfigError lists the known ones if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(sorted(PRESETS))}") from None
