"""A recorded clip, generated again by the generator that serves, each call of its denoiser compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engines.cache.window import WindowLayout
from engines.config.networks import TransformerConfig
from engines.sampling.flow_schedule import FlowSchedule
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.wan.layer_ops import EAGER_OPS, AttentionContext, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.attention.rope import apply_rope
from tests.reference.findings import Differences, Finding
from tests.reference.recording import RecordedNoise, Recording

ROLLOUT_BOUND = 1e-5
"""fp32: calls, caches and latents."""


BF16_RMS_BOUND, BF16_BOUND = 0.01, 0.1
"""bf16 latents: root mean square of the error over that of the latents, and the largest error."""


class TappedTransformer(CausalTransformer):
    """The denoiser, each call of which is held against the recorded one; clean passes are run in full."""

    def __init__(self, config: TransformerConfig, recording: Recording) -> None:
        super().__init__(config)
        self._recording = recording
        stream = recording.stream()
        self._schedule = FlowSchedule(stream.steps, stream.shift)
        self.streams: list[Stream] = []
        self.differences = Differences()
        self.calls = 0

    def denoise(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        """As the original, and compare."""
        number, frames = self.calls, latents.shape[1]
        self._compare_cache(f"before_recache{number}", number - 1)
        timesteps, flow = modulations.timesteps, super().denoise(latents, modulations, context, ops)
        for name, ours in (("x", latents), ("t", timesteps), ("flow", flow)):
            # LongLive recaches the sink's frames too, and throws the result away.
            self.differences.note(f"calls: {name}", ours, self._recording[f"call.{number}.{name}"][:, -frames:])
        if (timestep := timesteps[0, 0].item()) in self._schedule.timesteps:
            clean = self._schedule.predict_clean(latents, flow, self._schedule.timesteps.index(timestep))
            self.differences.note("calls: x0", clean, self._recording[f"call.{number}.x0"])
        for tag in (f"after{number}", f"after_recache{number}"):
            self._compare_cache(tag, number)
        self.calls += 1
        return flow

    def write_kv(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> None:
        """In full, so that there is a flow to compare."""
        self.denoise(latents, modulations, context, ops)

    def _compare_cache(self, tag: str, call: int) -> None:
        """Compare the slabs, if the recording has the cache under `tag`, with its state after `call`."""
        for layer in range(self.config.layers):
            if f"kv.{tag}.l{layer}.k" not in self._recording:
                continue
            for name in "kv":
                recorded = self._recording[f"kv.{tag}.l{layer}.{name}"]
                ours = torch.stack([self._cache(stream, layer, name, call) for stream in self.streams])
                self.differences.note(f"cache: {name}", ours, recorded[:, : ours.shape[1]])

    def _cache(self, stream: Stream, layer: int, name: str, call: int) -> Tensor:
        """A slab's content in the recorder's order: the sink, then from old to new."""
        layout = stream.slab.layout
        blocks = self._recording.facts["calls"][call]["global_end"] // layout.block_tokens
        order = _slots_in_order(layout, blocks)
        slab = stream.slab.keys if name == "k" else stream.slab.values
        cache = slab[layer, order].flatten(0, 1)
        if name == "v" or stream.config.rope == "absolute":
            return cache
        positions = [*range(layout.sink_blocks), *range(blocks - len(order) + layout.sink_blocks, blocks)]
        frames = [b * stream.config.block_frames + f for b in positions for f in range(stream.config.block_frames)]
        return apply_rope(cache, stream.grid.freqs_cis(frames[: len(order) * stream.config.block_frames]).conj())


def _slots_in_order(layout: WindowLayout, blocks: int) -> list[int]:
    """Filled slots from the sink to the newest block, once `blocks` have been written."""
    if blocks <= layout.window_blocks:
        return list(range(blocks))
    return [*range(layout.sink_blocks), *(layout.slot(b) for b in range(blocks - layout.ring_blocks, blocks))]


def roll_out(recording: Recording, transformer: TappedTransformer) -> Tensor:
    """The whole clip, its rows as streams of one batch."""
    batch = recording.options["batch"]
    generator = Generator(transformer, None, slab_bytes=1 << 40, batch=batch)
    streams = [generator.open(recording.stream(), RecordedNoise(recording, row)) for row in range(batch)]
    transformer.streams = streams
    blocks = []
    for number, prompt in _prompts(recording):
        if prompt is not None:
            for row, stream in enumerate(streams):
                generator.set_prompt(stream, recording.prompt(prompt, row))
        made = generator.generate(streams)
        assert {block.number for block in made} == {number}
        blocks.append(torch.stack([block.latents for block in made]))
        generator.write_context(streams)
    return torch.cat(blocks, dim=1)


def _prompts(recording: Recording) -> Iterator[tuple[int, int | None]]:
    """For each block the prompt that is switched to before it, or None."""
    present: int | None = None
    block_tokens = recording.facts["tokens_per_frame"] * recording.options["frames_per_block"]
    for number in range(recording.options["blocks"]):
        calls = (c for c in recording.facts["calls"] if "recache_at_frame" not in c)
        wanted = next(c["prompt"] for c in calls if c["start"] == number * block_tokens)
        yield number, None if wanted == present else wanted
        present = wanted


def latent_findings(ours: Tensor, recorded: Tensor, bound: float | None) -> list[Finding]:
    far = (ours.double() - recorded.double()).nan_to_num(nan=float("inf"))
    largest, frames = far.abs().max().item(), ours.shape[1]
    if bound is not None:
        return [Finding("latents", largest, bound, frames)]
    rms = (far.square().mean().sqrt() / recorded.double().square().mean().sqrt()).item()
    return [
        Finding("latents, rms", rms, BF16_RMS_BOUND, frames),
        Finding("latents", largest, BF16_BOUND, frames),
    ]
