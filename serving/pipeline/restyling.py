"""How pictures are restyled, from one cue to the next."""

from __future__ import annotations

from engines.sampling.motion_noise import NoiseSetting
from serving.timeline.cue import Restyling


def noise_after(noise: NoiseSetting, restyling: Restyling) -> NoiseSetting:
    """What pictures are mixed with from a cue on."""
    scale, follows = restyling.noise_scale, restyling.follows_motion
    return NoiseSetting(
        noise.scale if scale is None else scale, noise.follows_motion if follows is None else follows
    )
