"""One op at the sizes of a pass, with its implementations side by side, and what makes such cases.

Bytes of a floor are those that cannot be avoided however an op is written: inputs read once, outputs written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from benchmarks.measure.counts import Work
from engines.config.presets import preset
from engines.config.stream import StreamConfig

EPS = 1e-6
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Root mean square of an error over that of the truth. A rounding to bf16 is 2e-3, and an op does a few."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """Of a pass over a block, and of the pictures (channels, frames, height, width) in a decoder's last stage."""

    frames: int
    rows: int
    columns: int
    heads: int
    head_dim: int
    ffn_dim: int
    window_blocks: int
    prompt_keys: int
    text_len: int
    pictures: tuple[int, int, int, int]

    @classmethod
    def longlive(cls, size: str) -> Self:
        """The 1.3B model with pictures of `size`, HxW, and a prompt of 40 tokens."""
        height, width = map(int, size.split("x"))
        model, stream = preset("longlive-1.3b").transformer, StreamConfig(height=height, width=width)
        return cls(
            stream.block_frames, stream.rows, stream.columns, model.heads, model.head_dim, model.ffn_dim,
            stream.window_frames // stream.block_frames, 41, model.text_len, (96, 12, height, width),
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> Self:
        """For the interpreter."""
        return cls(
            frames=2, rows=1, columns=3, heads=2, head_dim=16, ffn_dim=48, window_blocks=3, prompt_keys=5,
            text_len=9, pictures=(8, 2, 3, 5),
        )  # fmt: skip

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return self.frames * self.frame_tokens

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Channels in and out of a layer's linear maps, but for the one with GELU."""
        return (self.dim, self.dim), (self.dim, 3 * self.dim), (self.ffn_dim, self.dim)


@dataclass(frozen=True)
class Case:
    """An op at one size. Implementations and `truth` take the number of a set of inputs.

    `set_bytes` are those of one set. `bound` is for the error's root mean square over the truth's.
    """

    name: str
    work: Work
    providers: Mapping[str, Callable[[int], Tensors]]
    truth: Callable[[int], Tensors]
    bound: float
    set_bytes: int
    device: torch.device


MakeCase = Callable[[int], Case]
"""A case with so many sets of inputs."""


@dataclass(frozen=True)
class Maker:
    """Makes cases at `sizes`."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype

    def randn(self, *shape: int) -> Tensor:
        """Random values."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def modulation(self) -> Tensor:
        """[1, frames, 1, dim], one of six in a table."""
        return self.randn(1, self.sizes.frames, 6, self.sizes.dim)[:, :, :1]

    def token_rows(self) -> Tensor:
        """[1, frames, tokens of a frame, dim]."""
        return self.randn(1, self.sizes.frames, self.sizes.frame_tokens, self.sizes.dim)

    def case(
        self,
        name: str,
        inputs: Callable[[], Tensors],
        providers: Mapping[str, Callable[..., Tensor | Tensors]],
        reference: Callable[..., Tensor | Tensors],
        flops: int,
        sets: int,
        bound: float | None = None,
        eight_bit_ops: int = 0,
    ) -> Case:
        """An op of tensors; the truth is its reference in fp32."""
        given = [inputs() for _ in range(sets)]
        made = _outputs(reference(*given[0]))
        nbytes = sum(x.nbytes for x in (*given[0], *made))
        return Case(
            name=name,
            work=Work(flops, nbytes, eight_bit_ops),
            providers={n: partial(_call, function, given) for n, function in providers.items()},
            truth=lambda i: _outputs(reference(*(x.float() for x in given[i]))),
            bound=bound or BOUNDS[self.dtype],
            set_bytes=nbytes,
            device=self.device,
        )

    def in_place(
        self,
        name: str,
        nbytes: int,
        run: Callable[..., Tensors],
        op: Callable[..., object],
        reference: Callable[..., object],
    ) -> Case:
        """An op that writes into a pool, as `run` calls it: with an op, a dtype and a set. It moves `nbytes`."""
        return Case(
            name=name,
            work=Work(0, nbytes),
            providers={"triton": partial(run, op, self.dtype), "reference": partial(run, reference, self.dtype)},
            truth=partial(run, reference, torch.float32),
            bound=BOUNDS[self.dtype],
            set_bytes=nbytes,
            device=self.device,
        )


def _call(function: Callable[..., Tensor | Tensors], given: Sequence[Tensors], i: int) -> Tensors:
    return _outputs(function(*given[i]))


def _outputs(made: Tensor | Tensors) -> Tensors:
    return (made,) if isinstance(made, Tensor) else tuple(made)
