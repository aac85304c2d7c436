"""The modulations of a stream's few timesteps, made once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.errors import StreamError
from engines.sampling.flow_schedule import CLEAN_TIMESTEP, FlowSchedule
from engines.wan.transformer import AdaLNModulation, CausalTransformer


class ModulationCache:
    """What each timestep of `schedule`, and the clean one, does to the passes of `transformer`.

    Kept when first asked for: 0.6 MB a frame for the 1.3B model in bf16. Otherwise every pass would read 33 MB of
    weights for the same result.
    """

    def __init__(self, transformer: CausalTransformer, schedule: FlowSchedule) -> None:
        self._transformer = transformer
        self._timesteps = (*schedule.timesteps, CLEAN_TIMESTEP)
        self._made: dict[tuple[float, int], AdaLNModulation] = {}

    @torch.inference_mode()
    def at(self, timestep: float, frames: int) -> AdaLNModulation:
        """For a pass of one stream whose `frames` all are at `timestep`. Raises StreamError if it has no such."""
        if timestep not in self._timesteps:
            raise StreamError(f"no pass of the stream runs at timestep {timestep}, only at {self._timesteps}")
        if (timestep, frames) not in self._made:
            timesteps = torch.full((1, frames), timestep, device=self._transformer.device)
            self._made[timestep, frames] = self._transformer.modulations(timesteps)
        return self._made[timestep, frames]


def batched(streams: Sequence[AdaLNModulation]) -> AdaLNModulation:
    """Those of one pass over several streams."""
    if len(streams) == 1:
        return streams[0]
    timesteps, layers, head = zip(*streams, strict=True)
    return AdaLNModulation(torch.cat(timesteps), torch.cat(layers, dim=1), torch.cat(head))
