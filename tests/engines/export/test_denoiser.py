"""The graph of a denoiser's pass, run by onnxruntime in the midst of streams, beside PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from engines.config.presets import preset
from engines.config.quantization import QuantizationConfig
from engines.config.stream import StreamConfig
from engines.errors import ConfigError
from engines.export.denoiser import DenoiserCall, export_denoiser, own_names, prompt_names, slot_names
from engines.export.graph import StageGraph
from engines.loading.loader import load_networks
from engines.loading.model import Model
from engines.pocket.model_files import model_files
from engines.runner.eager import EagerAttention
from engines.text.prompt import Prompt
from engines.wan.layer_ops import EAGER_OPS, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from tests.support.generators import generator_for

EXACT = 2e-5
"""Of the largest value that is compared."""
BLOCKS = 6
"""Of LongLive's window of 12 frames four blocks fill it."""


class ComparedDenoiser:
    """In the place of a transformer's `denoise`: runs the graph as well where the window is full."""

    def __init__(self, transformer: CausalTransformer, graph: StageGraph, call: DenoiserCall) -> None:
        self._denoise = transformer.denoise
        self._layers = transformer.config.layers
        self._text_len = transformer.config.text_len
        self._call = call
        self._session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
        self._names = [spec.name for spec in graph.outputs]
        self.errors: list[float] = []

    def __call__(
        self, latents: Tensor, modulations: AdaLNModulation, context: EagerAttention, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        flow = self._denoise(latents, modulations, context, ops)
        if context.row.placement.used == self._call.frames + sum(self._call.slots):
            made = self._made(latents, modulations, context)
            self.errors.append(largest_error(made["flow"], flow))
            self._compare_own(made, context)
        return flow

    def _made(self, latents: Tensor, modulations: AdaLNModulation, context: EagerAttention) -> dict[str, Tensor]:
        given = {
            "latents": latents,
            "layer_modulations": modulations.layers,
            "head_modulations": modulations.head,
            "cosines": context.freqs_cis.real.contiguous(),
            "sines": context.freqs_cis.imag.contiguous(),
        }
        for layer in range(self._layers):
            for slot, kv in enumerate(self._others(layer, context)):
                given |= dict(zip(slot_names(layer, slot), kv, strict=True))
            given |= dict(zip(prompt_names(layer), self._prompt(layer, context), strict=True))
        ran = self._session.run(self._names, {name: tensor.numpy() for name, tensor in given.items()})
        return {name: torch.from_numpy(made) for name, made in zip(self._names, ran, strict=True)}

    def _others(self, layer: int, context: EagerAttention) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the slots that the pass does not write, in the sizes that the graph takes."""
        row, tokens = context.row, context.row.kv.frame_tokens
        window = context._windows.state(row.kv.window, row.kv.window.tokens)
        others = [frame for frame in range(row.placement.used) if frame not in row.slots(layer)]
        keys, values = (
            torch.cat([window[name][layer, frame * tokens : (frame + 1) * tokens] for frame in others])
            for name in ("keys", "values")
        )
        sizes = [frames * tokens for frames in self._call.slots]
        return list(zip(keys.split(sizes), values.split(sizes), strict=True))

    def _prompt(self, layer: int, context: EagerAttention) -> list[Tensor]:
        """With the key that stands for all padding as often as it stands for."""
        found = (context.prompt[name][layer] for name in ("keys", "values"))
        return [torch.cat([x, x[-1:].expand(self._text_len - len(x), -1, -1)]) for x in found]

    def _compare_own(self, made: dict[str, Tensor], context: EagerAttention) -> None:
        row, tokens = context.row, context.row.kv.frame_tokens
        window = context._windows.state(row.kv.window, row.kv.window.tokens)
        for layer in range(self._layers):
            for name, own in zip(("keys", "values"), own_names(layer), strict=True):
                kept = torch.cat([window[name][layer, s * tokens : (s + 1) * tokens] for s in row.slots(layer)])
                self.errors.append(largest_error(made[own], kept))


def largest_error(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).abs().max() / wanted.abs().max())


def errors_of(model: Model, stream: StreamConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    call, transformer = DenoiserCall.of(stream), model.transformer
    graph = export_denoiser(transformer, call, folder / "graph", "weights", torch.float32)
    compared = ComparedDenoiser(transformer, graph, call)
    monkeypatch.setattr(transformer, "denoise", compared)
    torch.manual_seed(1)
    generator = generator_for(model)
    opened = generator.open(stream)
    generator.set_prompt(opened, Prompt("noise", torch.randn(5, model.config.transformer.text_dim)))
    for _ in range(BLOCKS):
        generator.generate([opened])
    return compared.errors


@pytest.mark.parametrize(
    "stream",
    [
        StreamConfig(),
        StreamConfig(window_frames=6, sink_frames=1),
        StreamConfig(block_frames=1, window_frames=4, sink_frames=0),
    ],
    ids=["longlive", "infinite-forcing", "framewise"],
)
def test_a_pass_gives_the_flow_keys_and_values_of_pytorch(
    stream: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.random(preset("tiny"), 3)
    errors = errors_of(model, replace(stream, height=32, width=48), tmp_path, monkeypatch)
    assert len(errors) >= 2 * 4 * (1 + 2 * model.config.transformer.layers)
    assert max(errors) < EXACT


def test_so_does_that_of_the_pocket_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("pocket")
    model = load_networks(
        config, model_files(), torch.device("cpu"), torch.float32, None, ("transformer", "codec")
    )
    errors = errors_of(model, config.stream, tmp_path, monkeypatch)
    assert len(errors) >= 2 * 4 * (1 + 2 * config.transformer.layers)
    assert max(errors) < EXACT


def test_a_denoiser_in_8_bits_is_not_exported(tmp_path: Path) -> None:
    config = preset("tiny")
    quantized = replace(config.transformer, quantization=QuantizationConfig("int8"))
    with pytest.raises(ConfigError, match="in 8 bits has kernels of its own"):
        export_denoiser(CausalTransformer(quantized), DenoiserCall.of(config.stream), tmp_path, "", torch.float32)
