"""The networks that make one model, and how its streams run."""

from __future__ import annotations

from dataclasses import dataclass

from engines.config.networks import AutoencoderConfig, TextEncoderConfig, TransformerConfig
from engines.config.stream import StreamConfig
from engines.config.validation import require
from engines.config.video_stream import AnyStreamConfig, VideoStreamConfig


@dataclass(frozen=True)
class ModelConfig:
    """The networks that make one model, and how its streams run unless told otherwise.

    `vae` decodes; it encodes too, unless there is an `encoder` (Wan's beside a tiny decoder). `endless` says
    whether its authors made it for streams without end, or trained it on short clips only. `video` is how it
    restyles one, if it can; `needs_video`: it was made for nothing else.
    """

    name: str
    transformer: TransformerConfig
    vae: AutoencoderConfig
    text_encoder: TextEncoderConfig
    stream: StreamConfig
    endless: bool = True
    encoder: AutoencoderConfig | None = None
    video: VideoStreamConfig | None = None
    needs_video: bool = False

    def __post_init__(self) -> None:
        latent, coded = self.transformer.latent_channels, self.vae.latent_channels
        require(latent == coded, f"the transformer makes {latent} latent channels, the VAE reads {coded}")
        encoded = coded if self.encoder is None else self.encoder.latent_channels
        require(coded == encoded, f"the encoder makes {encoded} latent channels, the VAE reads {coded}")
        rows, taken = self.text_encoder.dim, self.transformer.text_dim
        require(rows == taken, f"the text encoder makes {rows} channels, the transformer reads {taken}")
        length, read = self.text_encoder.text_len, self.transformer.text_len
        require(length <= read, f"prompts of {length} tokens do not fit the transformer's {read}")
        require(
            self.video is not None or not self.needs_video,
            f"{self.name} needs a video, and says not how it restyles",
        )

    @property
    def usual_stream(self) -> AnyStreamConfig:
        """How its streams run from prompts alone, or from a video where it needs one."""
        return self.streams[0]

    @property
    def streams(self) -> tuple[AnyStreamConfig, ...]:
        """How streams of each kind run that it makes."""
        from_prompts = () if self.needs_video else (self.stream,)
        return from_prompts if self.video is None else (*from_prompts, self.video)

    def require_prompts_alone(self) -> None:
        """Raise ConfigError for a model that only restyles videos."""
        require(
            not self.needs_video,
            f"{self.name} only restyles videos: `longtake generate --input CLIP` does that",
        )
