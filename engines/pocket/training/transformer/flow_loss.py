"""The error of a flow, weighed by what it costs in pictures."""

from __future__ import annotations

from torch import Tensor


class FlowLoss:
    """Squared errors of flows [B, ..., frames, channels, h, w], weighed by channel and place: one on average."""

    def __init__(self, energy: Tensor, channel_power: float, standout: float) -> None:
        self._energy = energy[:, None, None]
        weights = self._energy**channel_power
        self._channels = weights / weights.mean()
        self._standout = standout

    def __call__(self, flow: Tensor, wanted: Tensor, clean: Tensor) -> Tensor:
        """Where the `clean` latents stand out of their row, as seen in pictures, errors count more."""
        return (flow - wanted).square() * self._channels * self._places(clean)

    def _places(self, clean: Tensor) -> Tensor:
        contrast = (clean - clean.mean(-1, keepdim=True)).square() * self._energy
        contrast = contrast.mean(-3, keepdim=True)
        average = contrast.mean(dim=(-4, -2, -1), keepdim=True).clamp(min=1e-6)
        return (1 + self._standout * contrast / average) / (1 + self._standout)
