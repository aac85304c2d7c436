"""Check recordings of LongLive: `python -m tests.reference FILE.safetensors ... [--save-latents FOLDER]`.

A recording holds weights, noise and prompts, and what the published implementation made of them. Everything is
generated again from the recorded noise, free-running, by the generator that serves; nothing about a file is
built in, its options are read from the JSON beside it. Exits 1 if a difference is above its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from engines.cache.window import SlabLayout
from engines.config.geometry import TEMPORAL_FACTOR
from engines.config.networks import TransformerConfig
from engines.errors import EngineError
from engines.sampling.flow_schedule import FlowSchedule
from engines.streaming.generator import Generator
from engines.streaming.stream import Stream
from engines.text.umt5 import UMT5Encoder
from engines.vae.wan_vae import WanVAE
from engines.wan.layer_ops import PLAIN_OPS, LayerOps, Memory
from engines.wan.transformer import CausalTransformer, Modulations
from kernels.attention.rope import apply_rope
from tests.recording import RecordedNoise, Recording

ROLLOUT_BOUND = 1e-5
"""fp32: calls, caches and latents."""

CODEC_BOUND = 2e-5
"""fp32: pixels, encoded latents and text embeddings."""

BF16_RMS_BOUND, BF16_BOUND = 0.01, 0.1
"""bf16 latents: root mean square of the error over that of the latents, and the largest error."""


class Finding(NamedTuple):
    """The largest difference over `compared` tensors, and its bound; None where there is none to keep."""

    what: str
    difference: float
    bound: float | None
    compared: int

    @property
    def kept(self) -> bool:
        """Whether something was compared and is close enough. A NaN is not."""
        return self.compared > 0 and (self.bound is None or self.difference <= self.bound)

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"  bound {self.bound:.0e}  {'ok' if self.kept else 'MISS'}"
        return f"  {self.what:<24} {self.difference:9.2e}  of {self.compared:4d}{bound}"


class Differences:
    """Collects the largest difference under each name."""

    def __init__(self) -> None:
        self._largest: defaultdict[str, float] = defaultdict(float)
        self._compared: defaultdict[str, int] = defaultdict(int)

    def note(self, what: str, ours: Tensor, recorded: Tensor) -> None:
        """Compare two tensors; another shape, and NaN, count as infinitely far."""
        far = float("inf")
        if ours.shape == recorded.shape:
            far = (ours.float() - recorded.float()).abs().nan_to_num(nan=far).max().item()
        self._largest[what] = max(self._largest[what], far)
        self._compared[what] += 1

    def findings(self, bound: float | None) -> list[Finding]:
        """One for each name."""
        return [Finding(what, far, bound, self._compared[what]) for what, far in self._largest.items()]


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
        self, latents: Tensor, modulations: Modulations, memory: Memory, ops: LayerOps = PLAIN_OPS
    ) -> Tensor:
        """As the original, and compare."""
        number, frames = self.calls, latents.shape[1]
        self._compare_cache(f"before_recache{number}", number - 1)
        timesteps, flow = modulations.timesteps, super().denoise(latents, modulations, memory, ops)
        for name, ours in (("x", latents), ("t", timesteps), ("flow", flow)):
            # LongLive recaches the sink's frames too, and throws the result away.
            self.differences.note(f"calls: {name}", ours, self._recording[f"call.{number}.{name}"][:, -frames:])
        if (timestep := timesteps[0, 0].item()) in self._schedule.timesteps:
            clean = self._schedule.clean(latents, flow, self._schedule.timesteps.index(timestep))
            self.differences.note("calls: x0", clean, self._recording[f"call.{number}.x0"])
        for tag in (f"after{number}", f"after_recache{number}"):
            self._compare_cache(tag, number)
        self.calls += 1
        return flow

    def remember(
        self, latents: Tensor, modulations: Modulations, memory: Memory, ops: LayerOps = PLAIN_OPS
    ) -> None:
        """In full, so that there is a flow to compare."""
        self.denoise(latents, modulations, memory, ops)

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


def _slots_in_order(layout: SlabLayout, blocks: int) -> list[int]:
    """Filled slots from the sink to the newest block, once `blocks` have been written."""
    if blocks <= layout.window_blocks:
        return list(range(blocks))
    return [*range(layout.sink_blocks), *(layout.slot(b) for b in range(blocks - layout.ring_blocks, blocks))]


class Result(NamedTuple):
    """What was found in one recording, and the latents [B, frames, channels, h/8, w/8] made from it."""

    findings: list[Finding]
    latents: Tensor


@torch.inference_mode()
def check(recording: Recording) -> Result:
    """Generate the recorded clip again and compare all that was recorded of it."""
    transformer = TappedTransformer(recording.transformer(), recording).to(recording.dtype)
    transformer.load_state_dict(recording.weights("model."))
    latents = _roll_out(recording, transformer)
    bound = ROLLOUT_BOUND if recording.dtype == torch.float32 else None
    findings = transformer.differences.findings(bound)
    findings += _latent_findings(latents, recording["latents"], bound)
    missed = len(recording.facts["calls"]) - transformer.calls
    findings.append(Finding("calls not made", missed, 0.0, len(recording.facts["calls"])))
    if "vae.z" in recording:
        findings += _check_vae(recording)
    if "t5.out" in recording:
        findings += _check_text_encoder(recording)
    return Result(findings, latents)


def _roll_out(recording: Recording, transformer: TappedTransformer) -> Tensor:
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
        generator.settle(streams)
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


def _latent_findings(ours: Tensor, recorded: Tensor, bound: float | None) -> list[Finding]:
    far = (ours.double() - recorded.double()).nan_to_num(nan=float("inf"))
    largest, frames = far.abs().max().item(), ours.shape[1]
    if bound is not None:
        return [Finding("latents", largest, bound, frames)]
    rms = (far.square().mean().sqrt() / recorded.double().square().mean().sqrt()).item()
    return [
        Finding("latents, rms", rms, BF16_RMS_BOUND, frames),
        Finding("latents", largest, BF16_BOUND, frames),
    ]


def _check_vae(recording: Recording) -> list[Finding]:
    vae = WanVAE(recording.vae()).to(recording["vae.z"].dtype)
    vae.load_state_dict(recording.weights("vae.model."))
    differences = Differences()
    latents = recording["vae.z"].transpose(1, 2)
    history, first = vae.start_decoding(), 0
    for number, shape in enumerate(recording.facts["vae"]["stream_shapes"]):
        frames = (shape[2] + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR
        raw, history = vae.decode_raw(latents[:, first : first + frames], history)
        differences.note("pixels, streamed", raw, recording[f"vae.stream.{number}"])
        first += frames
    whole, _ = vae.decode_raw(latents, vae.start_decoding())
    differences.note("pixels, whole clip", whole, recording["vae.whole"])
    pictures = recording["vae.pixels"].transpose(1, 2) * 0.5 + 0.5
    encoded, _ = vae.encode(pictures, vae.start_encoding())
    differences.note("latents, encoded", encoded.transpose(1, 2), recording["vae.encoded"])
    return differences.findings(CODEC_BOUND)


def _check_text_encoder(recording: Recording) -> list[Finding]:
    encoder = UMT5Encoder(recording.text_encoder()).to(recording["t5.out"].dtype)
    encoder.load_state_dict(recording.weights("t5.model."))
    differences = Differences()
    differences.note("text encoder", encoder(recording["t5.ids"], recording["t5.mask"]), recording["t5.out"])
    return differences.findings(CODEC_BOUND)


def main(arguments: Sequence[str]) -> int:
    """Check the files named; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=__doc__)
    parser.add_argument("recordings", nargs="+", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--save-latents", type=Path, metavar="FOLDER", help="write NAME.safetensors there")
    options = parser.parse_args(arguments)
    kept = [_check_file(path, options.save_latents) for path in options.recordings]
    return 0 if all(kept) else 1


def _check_file(path: Path, save_latents: Path | None) -> bool:
    """Check one file and print what was found; whether all bounds are kept."""
    print(path.stem)
    try:
        result = check(Recording(path))
    except (EngineError, OSError, SafetensorError, KeyError, RuntimeError) as error:
        print(f"  cannot be checked: {error!r}  MISS")
        return False
    print(*result.findings, sep="\n", flush=True)
    if save_latents is not None:
        save_latents.mkdir(parents=True, exist_ok=True)
        save_file({"latents": result.latents.contiguous()}, save_latents / path.name)
    return all(finding.kept for finding in result.findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
