"""A recorded clip, generated again by the generator that serves, each call of its denoiser compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engines.cache.kv_cache import cache_size
from engines.cache.window import SinkWindow
from engines.config.networks import TransformerConfig
from engines.sampling.flow_schedule import FlowSchedule, predict_clean
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.wan.layer_ops import EAGER_OPS, AttentionContext, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.attention.rope import apply_rope, frame_freqs, join_freqs, spatial_freqs
from tests.reference.findings import Differences, Finding
from tests.reference.recording import RecordedNoise, Recording
from tests.support.generators import denoiser_for

ROLLOUT_BOUND = 1e-5
"""fp32: calls, caches and latents."""


BF16_RMS_BOUND, BF16_BOUND = 0.01, 0.1
"""bf16 latents: root mean square of the error over that of the latents, and the largest error."""


class TappedTransformer(CausalTransformer):
    """The denoiser, each call of which is held against the recorded one; clean passes are run in full.

    The generator runs the rows of a recorded batch one after the other: a call is complete with its last row.
    """

    def __init__(self, config: TransformerConfig, recording: Recording) -> None:
        super().__init__(config)
        self._recording = recording
        self._rows = recording.options["batch"]
        stream = recording.stream()
        self._sigmas = {level.timestep: level.sigma for level in FlowSchedule(stream.steps, stream.shift).levels}
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.generator: Generator
        self.streams: list[Stream] = []
        self.differences = Differences()
        self.calls = 0

    def denoise(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        """As the original, and compare."""
        if not self._seen:
            self._compare_cache(f"before_recache{self.calls}", self.calls - 1)
        flow = super().denoise(latents, modulations, context, ops)
        self._seen.append((latents, modulations.timesteps.expand(-1, latents.shape[1]), flow))
        if len(self._seen) == self._rows:
            self._compare_call(*(torch.cat(rows) for rows in zip(*self._seen, strict=True)))
            self._seen = []
            self.calls += 1
        return flow

    def write_kv(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> None:
        """In full, so that there is a flow to compare."""
        self.denoise(latents, modulations, context, ops)

    def _compare_call(self, latents: Tensor, timesteps: Tensor, flow: Tensor) -> None:
        number, frames = self.calls, latents.shape[1]
        for name, ours in (("x", latents), ("t", timesteps), ("flow", flow)):
            # LongLive recaches the sink's frames too, and throws the result away.
            self.differences.note(f"calls: {name}", ours, self._recording[f"call.{number}.{name}"][:, -frames:])
        if (timestep := timesteps[0, 0].item()) in self._sigmas:
            clean = predict_clean(latents, flow, self._sigmas[timestep])
            self.differences.note("calls: x0", clean, self._recording[f"call.{number}.x0"])
        for tag in (f"after{number}", f"after_recache{number}"):
            self._compare_cache(tag, number)

    def _compare_cache(self, tag: str, call: int) -> None:
        """Compare the windows, if the recording has the cache under `tag`, with their state after `call`."""
        for layer in range(self.config.layers):
            if f"kv.{tag}.l{layer}.k" not in self._recording:
                continue
            for name, plane in (("k", "keys"), ("v", "values")):
                recorded = self._recording[f"kv.{tag}.l{layer}.{name}"]
                ours = torch.stack([self._cache(stream, layer, plane, call) for stream in self.streams])
                self.differences.note(f"cache: {name}", ours, recorded[:, : ours.shape[1]])

    def _cache(self, stream: Stream, layer: int, plane: str, call: int) -> Tensor:
        """A window in the recorder's order: the sink, then from old to new; keys as they are recorded."""
        policy, tokens = stream.policy, stream.lanes[0].frame_tokens
        assert isinstance(policy, SinkWindow)
        end = self._recording.facts["calls"][call]["global_end"] // tokens
        used = min(end, policy.frames)
        ring = range(max(policy.sink, end - (policy.frames - policy.sink)), end)
        slots = [*range(min(policy.sink, end)), *map(policy.slot, ring)]
        window = self.generator.cache.state(stream.lanes[0], used)[plane][layer].unflatten(0, (used, tokens))[
            slots
        ]
        if plane == "values" or stream.config.rope == "absolute":
            return window.flatten(0, 1)
        positions = [end - used + place for place in range(used)]
        frame = frame_freqs(positions, self.config.head_dim)
        freqs = join_freqs(frame, spatial_freqs(stream.config.rows, stream.config.columns, self.config.head_dim))
        return apply_rope(window.flatten(0, 1), freqs.conj())


def roll_out(recording: Recording, transformer: TappedTransformer) -> Tensor:
    """The whole clip, its rows as streams of one batch."""
    batch, config = recording.options["batch"], recording.stream()
    generator = denoiser_for(transformer, batch=batch, size=cache_size(batch, config, transformer.config))
    streams = [generator.open(config, RecordedNoise(recording, row)) for row in range(batch)]
    transformer.generator, transformer.streams = generator, streams
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
