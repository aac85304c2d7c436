"""Graphs of decoders by themselves; over whole streams they are held against PyTorch where they are run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from engines.errors import ConfigError
from engines.export.decoders import DecoderCall, export_decoder
from engines.export.graph import StageGraph
from tests.engines.vae.pieces import EXACT, decode
from tests.support.exported import CODECS, HEIGHT, WIDTH, Exported, random_codec

LATENTS = torch.randn(1, 6, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(1))

State = dict[str, np.ndarray]


def run(graph: StageGraph, latents: Tensor, state: State) -> tuple[Tensor, State]:
    """Pictures, and what the next call is given: slots that a first call left empty are zeros."""
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    zeros = {past: np.zeros(graph.input(past).shape, np.float32) for past, _ in graph.state}
    names = [spec.name for spec in graph.outputs]
    given = {"latents": latents.numpy()} | {past: state.get(kept, zeros[past]) for past, kept in graph.state}
    made = dict(zip(names, session.run(names, given), strict=True))
    return torch.from_numpy(made["pictures"]), made


def test_the_state_that_comes_out_is_what_pytorch_remembers(exported: Exported) -> None:
    pieces = LATENTS.split(3, dim=1)
    _, state = run(exported.graphs["decoder-first-3"], pieces[0], {})
    _, state = run(exported.graphs["decoder-steady-3"], pieces[1], state)
    cache = exported.codec.start_decoding()
    for piece in pieces[:2]:
        cache = exported.codec.decode(piece, cache).cache
    for slot, kept in enumerate(cache.frames):
        assert kept is not None
        torch.testing.assert_close(torch.from_numpy(state[f"kept_{slot}"]), kept, rtol=0, atol=EXACT)


def test_a_stream_that_forgets_its_state_shows_other_pictures(exported: Exported) -> None:
    """Else the tests above would show nothing."""
    later = LATENTS[:, 3:6]
    right, _ = run(exported.graphs["decoder-steady-3"], later, stated(exported))
    forgetful, _ = run(exported.graphs["decoder-steady-3"], later, {})
    assert (right - forgetful).abs().max() > 100 * EXACT


def stated(exported: Exported) -> State:
    return run(exported.graphs["decoder-first-3"], LATENTS[:, :3], {})[1]


def test_a_first_call_has_no_past_and_a_later_one_has_all_slots(exported: Exported) -> None:
    slots = exported.codec.decoder.slots
    assert exported.graphs["decoder-first-3"].state == ()
    assert exported.graphs["decoder-steady-1"].state == tuple((f"past_{n}", f"kept_{n}") for n in range(slots))


@pytest.mark.parametrize("kind", CODECS)
def test_in_fp16_the_pictures_are_near_those_of_fp32(kind: str, tmp_path: Path) -> None:
    """By casts, on a CPU: what a graphics card makes of it is compared there."""
    call = DecoderCall(first=True, frames=3, height=HEIGHT, width=WIDTH)
    codec = random_codec(kind)
    graph = export_decoder(codec, call, tmp_path / call.name, "weights", torch.float16)
    pictures, *kept = graph.outputs
    assert pictures.dtype == "float32"
    assert {spec.dtype for spec in (*graph.inputs, *kept)} == {"float16"}
    latents = LATENTS[:, :3]
    torch.testing.assert_close(run(graph, latents.half(), {})[0], decode(codec, (latents,)), rtol=0, atol=0.02)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    call = DecoderCall(first=True, frames=1, height=HEIGHT, width=WIDTH)
    with pytest.raises(ConfigError, match=r"not torch\.bfloat16"):
        export_decoder(random_codec("taehv"), call, tmp_path / "graph", "weights", torch.bfloat16)
