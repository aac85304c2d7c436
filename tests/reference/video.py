"""A recorded StreamDiffusionV2 session, generated again by the generator that serves, each call compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engines.cache.kv_cache import cache_size
from engines.config.networks import TransformerConfig
from engines.runner.eager import EagerAttention
from engines.runner.rows import Row
from engines.sampling.flow_schedule import FlowSchedule, predict_clean
from engines.streaming.generator import Generator
from engines.vae.wan_vae import WanVAE
from engines.video.generator import VideoGenerator
from engines.video.input import BlockInput, InputEncoder, InputState
from engines.video.stream import VideoStream
from engines.wan.layer_ops import EAGER_OPS, AttentionContext, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.slot_choice.slot_queue import ENDS, LENGTH, SLOT
from tests.reference.findings import Differences, Finding
from tests.reference.recording import Recording
from tests.reference.video_recording import Handover, RecordedVideoNoise, sessions, video_config
from tests.support.generators import denoiser_for

FP32_BOUNDS = {"pixels": 1e-4}
FP32_BOUND = 2e-5

BF16_BOUNDS = {"calls: x0": 0.1, "decoded: pixels": 0.2}
"""The only bounds of a recording in bf16, besides those of integers."""

INTEGERS = "integers: "
"""How the names of differences begin that must be none."""


class VideoResult(NamedTuple):
    """What was found in one recording, and the decoder's inputs [1, frames, channels, h/8, w/8]."""

    findings: list[Finding]
    latents: Tensor


class TappedVideoTransformer(CausalTransformer):
    """The denoiser, each call of which is held against the recorded one; a call is complete with its last row."""

    def __init__(self, config: TransformerConfig, recording: Recording) -> None:
        super().__init__(config)
        self._recording = recording
        self._seen: list[tuple[Tensor, Tensor, Tensor, Row]] = []
        self.generator: Generator
        self.differences = Differences()
        self.calls = 0

    def denoise(
        self, latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
    ) -> Tensor:
        """As the original, and compare."""
        flow = super().denoise(latents, modulations, context, ops)
        assert isinstance(context, EagerAttention)
        self._seen.append((latents, modulations.timesteps.expand(-1, 1), flow, context.row))
        if len(self._seen) == self._recording.facts["calls"][self.calls]["batch"]:
            self._compare()
            self._seen = []
            self.calls += 1
        return flow

    def _compare(self) -> None:
        number, call = self.calls, self._recording.facts["calls"][self.calls]
        latents, times, flow = (torch.cat(x) for x in list(zip(*self._seen, strict=True))[:3])
        rows = [row for *_, row in self._seen]
        self.note(f"call.{number}.x", "calls: x", latents)
        self.note(f"call.{number}.flow", "calls: flow", flow)
        clean = [
            predict_clean(x, f, FlowSchedule((int(t),), self._shift, "nearest").levels[0].sigma)
            for x, f, t in zip(latents, flow, times.flatten().tolist(), strict=True)
        ]
        self.note(f"call.{number}.x0", "calls: x0", torch.stack(clean))
        self._exactly("timesteps", times.flatten().tolist(), call["t"])
        self._exactly("positions", [row.placement.positions[0] for row in rows], call["start"])
        self._exactly("filled slots", [row.placement.used for row in rows], call["filled"])
        records = [self._records(row) for row in rows]
        for layer, (wrote, queue) in enumerate(zip(call["wrote"], call["queue"], strict=True)):
            for lane, record in enumerate(records):
                ends = record[layer, ENDS : ENDS + int(record[layer, LENGTH])].tolist()
                self._exactly("slots written", [int(record[layer, SLOT])], [wrote[lane]])
                self._exactly("queues", ends, queue[lane])
            self._compare_cache(layer, rows)

    def _compare_cache(self, layer: int, rows: Sequence[Row]) -> None:
        for name, plane in (("k", "keys"), ("v", "values")):
            key = f"kv.{self.calls}.l{layer}.{name}"
            if key in self._recording:
                recorded = self._recording[key]
                for lane, row in enumerate(rows):
                    ours = self.generator.cache.state(row.kv, row.placement.used)[plane][layer]
                    self.differences.note(f"cache: {name}", ours, recorded[lane, : ours.shape[0]])

    def note(self, key: str, what: str, ours: Tensor) -> None:
        """Compare, if the recording has it."""
        if key in self._recording:
            self.differences.note(what, ours, self._recording[key])

    def _exactly(self, what: str, ours: Sequence[float], recorded: Sequence[float]) -> None:
        far = torch.tensor([0.0 if list(ours) == list(recorded) else 1.0])
        self.differences.note(INTEGERS + what, far, torch.zeros(1))

    def _records(self, row: Row) -> Tensor:
        assert row.write is not None
        return self.generator.cache.state(row.kv, 0)["records"][:, row.write.write]

    @property
    def _shift(self) -> float:
        return float(self._recording.options["shift"])


class Playback:
    """One recording, played back session by session."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.config = video_config(recording)
        self.transformer = TappedVideoTransformer(recording.transformer(), recording).to(recording.dtype)
        self.transformer.load_state_dict(recording.weights("model."))
        self.vae = WanVAE(recording.vae()).to(recording.dtype)
        self.vae.load_state_dict(recording.weights("vae.model."))
        size = cache_size(1, self.config, self.transformer.config)
        self.generator = denoiser_for(self.transformer, self.vae, size=size)
        self.video = VideoGenerator(self.generator)
        self.encoder = InputEncoder(self.vae, torch.device("cpu"), recording.dtype)
        self.transformer.generator = self.generator
        self.decoded: list[Tensor] = []
        self._survivors: list[Tensor] = []

    def play(self, session: Sequence[Handover]) -> None:
        """All that was handed over in one session."""
        stream = self.video.open(self.config, RecordedVideoNoise.of_session(self.recording, session))
        survivors = self._survivors if self._queues_survived(session[0]) else []
        self._take_over(stream, survivors[:1])
        self.video.set_prompt(stream, self.recording.prompt(session[0].prompt, row=0))
        state = self.encoder.start(self.config)
        cache = self.vae.start_decoding()
        for number, made in enumerate(session):
            inputs, state = self._inputs(stream, made, state)
            if number == 0 and survivors:
                inputs = [block._replace(timestep=made.timestep) for block in inputs]
            elif number == 1 and stream.loop == "batch":
                self._take_over(stream, survivors)
            if not made.opens and made.loop != stream.loop:
                self._switch(stream, made)
            finished = [self.video.generate([stream], [block])[0] for block in inputs]
            # What was published drops a text stream's first block that comes out of the rows.
            blocks = [block.latents for block in finished if block is not None]
            for latents in blocks[len(blocks) - made.outputs :]:
                decoded = self.vae.decode(latents.unsqueeze(0), cache)
                cache = decoded.cache
                number = len(self.decoded)
                self.transformer.note(f"decode.{number}.latents", "decoded: latents", latents.unsqueeze(0))
                self.transformer.note(f"decode.{number}.pixels", "decoded: pixels", decoded.frames)
                self.decoded.append(latents)
        self._survivors = [self._record(stream, lane).clone() for lane in range(len(stream.lanes))]
        self.video.close(stream)

    def _queues_survived(self, opening: Handover) -> bool:
        """Whether queues went on from one session to the next, as the publishers' do unless they are reset."""
        queue = self.recording.facts["calls"][opening.first_call]["queue"][0][0]
        return bool(self._survivors) and queue != [2 * self.config.first_block_frames]

    def _take_over(self, stream: VideoStream, queues: Sequence[Tensor]) -> None:
        """Go on with other queues in the first lanes."""
        for lane, queue in enumerate(queues):
            self._record(stream, lane)[:, LENGTH:] = queue[:, LENGTH:]

    def _record(self, stream: VideoStream, lane: int) -> Tensor:
        """The queue of a lane in every layer, as it is now."""
        records = self.generator.cache.state(stream.lanes[lane], 0)["records"]
        return records[:, stream.progress[lane].writes % stream.window.records]

    def _inputs(
        self, stream: VideoStream, made: Handover, state: InputState
    ) -> tuple[list[BlockInput], InputState]:
        if made.pictures is None:
            return [self._noise_input(stream, number) for number in range(made.blocks)], state
        inputs, after = self.encoder.encode(self.config, made.pictures.permute(0, 2, 3, 1), state)
        latents = torch.cat([block.latents for block in inputs]).unsqueeze(0)
        self.transformer.note(f"encode.{made.encode}.latents", "encoded: latents", latents)
        if made.noise_scale is not None:
            scale = torch.tensor([inputs[0].noise_scale - made.noise_scale], dtype=torch.float64)
            self.transformer.differences.note("encoded: noise scale", scale, torch.zeros_like(scale))
        return inputs, after

    def _noise_input(self, stream: VideoStream, number: int) -> BlockInput:
        """Of a stream without pictures: nothing but noise."""
        block = stream.entered + number
        shape = self.config.latent_shape(
            self.transformer.config.latent_channels, self.config.blocks.frames_of(block)
        )
        return BlockInput(block, torch.zeros(shape, dtype=self.recording.dtype), 1.0, self.config.steps[0])

    def _switch(self, stream: VideoStream, made: Handover) -> None:
        """As published: blocks on their way are lost."""
        self.video.leave_batch(stream)
        self.video.use_loop(stream, made.loop)


def check_video(recording: Recording) -> VideoResult:
    """Play a recording back, and say how far it is from what was recorded."""
    playback = Playback(recording)
    for session in sessions(recording):
        playback.play(session)
    transformer = playback.transformer
    findings = [_bounded(finding, recording.dtype) for finding in transformer.differences.findings(None)]
    missed = len(recording.facts["calls"]) - transformer.calls
    findings.append(Finding("calls not made", missed, 0.0, len(recording.facts["calls"])))
    return VideoResult(findings, torch.cat(playback.decoded).unsqueeze(0))


def _bounded(finding: Finding, dtype: torch.dtype) -> Finding:
    if finding.what.startswith(INTEGERS):
        return finding._replace(bound=0.0)
    if dtype == torch.float32:
        return finding._replace(bound=FP32_BOUNDS.get(finding.what.split(": ")[-1], FP32_BOUND))
    return finding._replace(bound=BF16_BOUNDS.get(finding.what))
