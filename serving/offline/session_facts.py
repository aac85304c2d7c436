"""The facts of a film that a server has made: what `longtake generate` needs to make it again."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from engines.config.presets import preset
from serving.offline.provenance import Facts, UsedLoRA, applied_cues
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.schedule import Schedule
from serving.timeline.timeline import Timeline
from serving.weights.loader import CodecName, Origin


def session_facts(session: pb.Session, timeline: Timeline, planned: Schedule) -> Facts:
    """Of a film of the session from frame 0 on. Raises ConfigError if its model is not known here."""
    made, options = session.provenance, session.options
    own = preset(made.base_model or made.model).stream
    stream = replace(own, seed=options.seed, height=options.height, width=options.width)
    return Facts(
        longtake=made.longtake,
        model=made.model,
        codec=cast("CodecName", made.codec),
        origins=tuple(Origin(origin.repo, origin.revision, origin.licence) for origin in made.origins),
        weights={fingerprint.name: fingerprint.value for fingerprint in made.weights},
        torch=made.torch,
        device=made.device,
        threads=made.threads,
        dtype=made.dtype,
        kernels=made.kernels,
        stream=stream,
        timeline=timeline,
        cues=applied_cues(planned),
        frames=planned.frames or 0,
        # Those that were merged before the model was quantized are in its weights.
        loras=tuple(
            UsedLoRA(lora.name, lora.weight, lora.sha256) for lora in made.loras if lora.name != made.model
        ),
    )
