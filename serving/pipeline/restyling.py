"""How pictures are restyled, from one cue to the next."""

from __future__ import annotations

from engines.sampling.motion_noise import NoiseSetting
from engines.video.generator import VideoGenerator
from engines.video.stream import VideoStream
from serving.timeline.cue import Restyling


def restyle(video: VideoGenerator, stream: VideoStream, restyling: Restyling) -> None:
    """Put in force, from the stream's next block on, what a cue says of it. Raises as `video` does."""
    if restyling.cuts:
        video.reopen(stream)
    if restyling.renews_sink:
        video.renew_sink(stream)


def noise_after(noise: NoiseSetting, restyling: Restyling) -> NoiseSetting:
    """What pictures are mixed with from a cue on."""
    scale, follows = restyling.noise_scale, restyling.follows_motion
    return NoiseSetting(
        noise.scale if scale is None else scale, noise.follows_motion if follows is None else follows
    )
