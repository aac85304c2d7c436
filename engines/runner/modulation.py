"""What timesteps do to passes, made once for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from engines.wan.transformer import AdaLNModulation, CausalTransformer

KEPT = 64
"""Timesteps whose modulations are kept: 0.55 MB each for the 1.3B model in bf16."""


class ModulationCache:
    """Modulations of `transformer` for single timesteps, the latest `kept` of them.

    Otherwise every pass would read 33 MB of weights for the same result.
    """

    def __init__(self, transformer: CausalTransformer, kept: int = KEPT) -> None:
        self._transformer = transformer
        self._kept = kept
        self._made: OrderedDict[float, AdaLNModulation] = OrderedDict()

    @torch.inference_mode()
    def at(self, timestep: float) -> AdaLNModulation:
        """For one row at `timestep`, all of whose frames it holds for."""
        if timestep not in self._made:
            timesteps = torch.full((1, 1), timestep, device=self._transformer.device)
            self._made[timestep] = self._transformer.modulations(timesteps)
            if len(self._made) > self._kept:
                self._made.popitem(last=False)
        self._made.move_to_end(timestep)
        return self._made[timestep]

    def batched(self, timesteps: Sequence[float]) -> AdaLNModulation:
        """For a batch, a timestep for each row."""
        rows = [self.at(timestep) for timestep in timesteps]
        if len(rows) == 1:
            return rows[0]
        times, layers, head = zip(*rows, strict=True)
        return AdaLNModulation(torch.cat(times), torch.cat(layers, dim=1), torch.cat(head))
