"""Passes by graphs of them, row by row.

What is around a pass is PyTorch's: prompts, modulations, the turning of slots at fixed places, and the writing of
a pass's own keys and values into their slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from engines.bindings.stage_session import StageSession
from engines.config.geometry import PATCH, SPATIAL_FACTOR
from engines.errors import StreamError
from engines.export.denoiser import (
    COSINES,
    FLOW,
    HEAD_MODULATIONS,
    LATENTS,
    LAYER_MODULATIONS,
    SINES,
    DenoiserCall,
    LayerKV,
    own_names,
    prompt_names,
    slot_names,
)
from engines.export.graph import StageGraph
from engines.runner.eager import EagerAttention, EagerPass, EagerRunner
from engines.runner.rows import Row
from engines.wan.transformer import CausalTransformer
from kernels.attention.rope import apply_rope


def call_of(graph: StageGraph) -> DenoiserCall:
    """The kind of pass that a denoiser's graph is."""
    _, frames, _, rows, columns = graph.input(LATENTS).shape
    call = DenoiserCall(frames, (), rows * SPATIAL_FACTOR, columns * SPATIAL_FACTOR)
    tokens = {spec.name: spec.shape[0] for spec in graph.inputs if spec.name.startswith("keys_0_")}
    return DenoiserCall(frames, tuple(n // call.frame_tokens for n in tokens.values()), call.height, call.width)


class PassSession(NamedTuple):
    """What runs one kind of pass."""

    call: DenoiserCall
    session: StageSession


class GraphRunner(EagerRunner):
    """Runs passes of `transformer` by `sessions`, whose graphs are in its dtype: one for each kind of pass.

    With `others` PyTorch runs the passes that no graph is for.
    """

    def __init__(
        self, transformer: CausalTransformer, sessions: Sequence[StageSession], *, others: bool = False
    ) -> None:
        super().__init__(transformer)
        calls = {call_of(session.graph): session for session in sessions}
        self._sessions = {_kind(call): PassSession(call, session) for call, session in calls.items()}
        self._others = others

    @override
    def prepare(self, rows: Sequence[Row]) -> GraphPass:
        return GraphPass(self, rows)

    @torch.inference_mode()
    def run(self, by: PassSession, row: Row, latents: Tensor) -> Tensor:
        """The flow of a row's latents [frames, channels, h/8, w/8]; keys and values are in their slots then."""
        call, session = by
        context, modulation = self.attention(row), self.modulations.at(row.level.timestep)
        given = {
            LATENTS: latents.unsqueeze(0),
            LAYER_MODULATIONS: modulation.layers,
            HEAD_MODULATIONS: modulation.head,
            COSINES: context.freqs_cis.real,
            SINES: context.freqs_cis.imag,
        }
        for layer in range(self.config.layers):
            for slot, kept in enumerate(_others(call, context, layer)):
                given |= zip(slot_names(layer, slot), kept, strict=True)
            given |= zip(prompt_names(layer), self._prompt(context, layer), strict=True)
        made = session.run(given)
        for layer in range(self.config.layers):
            keys, values = (made[name] for name in own_names(layer))
            back = context.freqs_cis[:, : context.raw_dim // 2].conj()
            context.keep(layer, keys, values, apply_rope(keys[..., : context.raw_dim], back))
        return made[FLOW][0]

    def session_for(self, row: Row) -> PassSession | None:
        """What runs the row's pass; None for PyTorch. Raises StreamError where that is not to."""
        placement, side = row.placement, SPATIAL_FACTOR * PATCH
        attended, size = placement.used - placement.first, (row.grid.rows * side, row.grid.columns * side)
        found = None if row.write is not None else self._sessions.get((placement.frames, attended, *size))
        if found is None and not self._others:
            known = ", ".join(f"{call.name} of {call.height}x{call.width}" for call, _ in self._sessions.values())
            wanted = f"{placement.frames} of {attended} latent frames of {size[0]}x{size[1]}"
            raise StreamError(f"no graph is for a pass over {wanted}; there is one of {known}")
        return found

    def _prompt(self, context: EagerAttention, layer: int) -> Iterator[Tensor]:
        """With the key that stands for all padding as often as it stands for."""
        for kept in (context.prompt["keys"][layer], context.prompt["values"][layer]):
            yield torch.cat([kept, kept[-1:].expand(self.config.text_len - len(kept), -1, -1)])


class GraphPass(EagerPass):
    """A pass over rows, one after the other."""

    def __init__(self, runner: GraphRunner, rows: Sequence[Row]) -> None:
        super().__init__(runner, rows)
        self._graphs = runner

    @override
    def flow(self, row: Row, latents: Tensor) -> Tensor:
        by = self._graphs.session_for(row)
        return super().flow(row, latents) if by is None else self._graphs.run(by, row, latents)

    @override
    def write_row(self, row: Row, latents: Tensor) -> None:
        """By the whole pass: its flow is of no use."""
        by = self._graphs.session_for(row)
        if by is None:
            super().write_row(row, latents)
        else:
            self._graphs.run(by, row, latents)


def _kind(call: DenoiserCall) -> tuple[int, int, int, int]:
    return call.frames, call.attended, call.height, call.width


def _others(call: DenoiserCall, context: EagerAttention, layer: int) -> Iterator[LayerKV]:
    """Keys and values of the slots that a pass attends and does not write, in runs as the graph takes them."""
    row, tokens, window = context.row, context.row.kv.frame_tokens, context.window
    own = set(row.slots(layer))
    others = [slot for slot in range(row.placement.first, row.placement.used) if slot not in own]
    for run, frames in enumerate(call.slots):
        begin = others[run * frames] * tokens
        here = slice(begin, begin + frames * tokens)
        yield LayerKV(window["keys"][layer, here], window["values"][layer, here])
