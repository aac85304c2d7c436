"""What networks are made of that run over a stream piece by piece and remember between two pieces.

Each `Past` of a `Network` has a slot in the network's `History`. It is the only layer that reads or writes
one; everything else is a function of its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engines.errors import StreamError
from engines.history import History, HistoryStep


class Layer(nn.Module):
    """A layer whose output depends on earlier pieces, or whose time axis is longer or shorter than its input's."""

    def forward(self, x: Tensor, step: HistoryStep) -> Tensor:
        """The output for the piece `x` of the stream."""
        raise NotImplementedError

    def reach(self, frames: int) -> int:
        """How many of its last input frames the layer's history and its last `frames` outputs depend on.

        Only the layers of a decoder can say.
        """
        raise NotImplementedError


class Past(Layer):
    """Puts the `frames` frames that came before a piece in front of it: zeros at the start of a stream.

    `dim` is the time axis. The network that the layer becomes part of sets `slot`.
    """

    slot: int

    def __init__(self, frames: int, dim: int) -> None:
        super().__init__()
        self.frames = frames
        self.dim = dim

    def forward(self, x: Tensor, step: HistoryStep) -> Tensor:
        """One copy joins the piece to its past; raises StreamError if their shapes or dtypes differ."""
        past = step.past(self.slot)
        shape = self._past_shape(x)
        if past is None:
            past = x.new_zeros(shape)
        elif past.shape != shape or past.dtype != x.dtype:
            raise StreamError(
                f"layer {self.slot} remembers {tuple(past.shape)} {past.dtype}, "
                f"but this piece follows {shape} {x.dtype}"
            )
        joined = torch.cat((past, x), dim=self.dim)
        step.keep(self.slot, joined.narrow(self.dim, x.shape[self.dim], self.frames))
        return joined

    def _past_shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[: self.dim], self.frames, *x.shape[self.dim + 1 :])

    def reach(self, frames: int) -> int:
        """The outputs' own frames and those before them."""
        return frames + self.frames


class Chain(Layer):
    """Runs layers one after the other, in the order of the mapping.

    The keys are the layers' names in the checkpoint: mostly positions in a sequence, some of which hold
    nothing with parameters and are left out.
    """

    def __init__(self, layers: Mapping[int, nn.Module] | Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(str(name), layer)

    def forward(self, x: Tensor, step: HistoryStep) -> Tensor:
        """The last layer's output."""
        for layer in self.children():
            x = layer(x, step) if isinstance(layer, Layer) else self.apply_stateless(layer, x)
        return x

    def apply_stateless(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The output of a layer that looks at each frame by itself."""
        y: Tensor = layer(x)
        return y

    def reach(self, frames: int) -> int:
        """The layers' reaches, taken from the last to the first."""
        for layer in reversed(list(self.children())):
            frames = layer.reach(frames) if isinstance(layer, Layer) else frames
        return frames


class Advanced(NamedTuple):
    """A network's output for a piece of a stream, and its history after that piece."""

    output: Tensor
    history: History


class Network(Chain):
    """A chain that is complete: it gives every `Past` in it a slot and makes histories for them."""

    def __init__(self, layers: Mapping[int, nn.Module] | Mapping[str, nn.Module]) -> None:
        super().__init__(layers)
        pasts = [layer for layer in self.modules() if isinstance(layer, Past)]
        for slot, past in enumerate(pasts):
            past.slot = slot
        self.slots = len(pasts)

    def start(self) -> History:
        """The history of a stream of which nothing has been seen."""
        return History(consumed=0, past=(None,) * self.slots)

    def advance(self, x: Tensor, history: History, frames: int) -> Advanced:
        """Run over the next `frames` frames of a stream, which are all of `x`; `history` stays as it is.

        Raises StreamError if the history belongs to another network.
        """
        if len(history.past) != self.slots:
            raise StreamError(f"a history of {len(history.past)} layers; this network has {self.slots}")
        step = HistoryStep(history, frames)
        output = self(x, step)
        return Advanced(output, step.finish())
