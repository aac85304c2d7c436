"""Recordings of our own engine in the format of StreamDiffusionV2's, for kinds of which none of those is here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.config.video_stream import Loop
from engines.runner.eager import EagerAttention
from engines.runner.rows import Row
from engines.sampling.flow_schedule import FlowSchedule, predict_clean
from engines.sampling.noise import SeededNoise
from engines.video.input import BlockInput, InputState
from engines.video.stream import VideoStream
from engines.wan.layer_ops import EAGER_OPS, AttentionContext, LayerOps
from engines.wan.transformer import AdaLNModulation, CausalTransformer
from kernels.slot_choice.slot_queue import ENDS, LENGTH, SLOT
from tests.reference.recording import Recording
from tests.reference.video import Playback

Seen = tuple[Tensor, Tensor, Tensor, Row]


class Recorder:
    """Rolls out a stream with the weights of a recording, set up by `options`, and writes down what happens."""

    def __init__(self, source: Path, folder: Path, options: dict[str, Any]) -> None:
        self._source = Recording(source)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.get("dtype", "float32")]
        self.file = folder / source.name
        self._tensors = {
            key: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for prefix in ("model.", "vae.", "prompt.", "sched.")
            for key, tensor in ((prefix + key, x) for key, x in self._source.weights(prefix).items())
        }
        self._facts = self._source.facts | {"options": self._source.options | options, "events": [], "calls": []}
        self._save()
        self._playback = Playback(Recording(self.file))
        self._seen: list[Seen] = []
        self._counts = dict.fromkeys(("encode", "draw", "call", "decode"), 0)
        self._batch_since = 0
        self._watch(self._playback.transformer)

    @torch.inference_mode()
    def roll(self, runs: Sequence[Loop], pictures: Tensor | None) -> Path:
        """An opening, and a block in each of the loops `runs`, of `pictures` [T, 3, H, W] if there are any."""
        video, config = self._playback.video, self._playback.config
        stream = video.open(config, SeededNoise(config.seed))
        video.set_prompt(stream, self._playback.recording.prompt(0, row=0))
        state, shown, cache = self._playback.encoder.start(config), 0, self._playback.vae.start_decoding()
        for number, loop in enumerate([config.loop, *runs]):
            if number and stream.loop != loop:
                video.leave_batch(stream)
                video.use_loop(stream, loop)
            frames = config.blocks.pixel_frames_of(number)
            taken = None if pictures is None else pictures[shown : shown + frames]
            shown += frames
            head: dict[str, Any] = {"run": number - 1} if number else {"start": 0, "prompt": 0}
            self._facts["events"].append(head)
            block, state = self._input(stream, taken, state)
            head["frames"] = 0 if taken is None else frames
            if number and taken is not None:
                head |= {"noise_scale": block.noise_scale, "t": block.timestep}
            self._draws(stream, loop, opens=number == 0)
            (finished,) = video.generate([stream], [block])
            self._calls(rows=len(config.steps) if loop == "batch" and number else 1)
            if finished is not None:
                self._keep("decode", latents=finished.latents.unsqueeze(0))
                cache = self._playback.vae.decode(finished.latents.unsqueeze(0), cache).cache
        if pictures is not None:
            self._tensors["video"] = pictures
        self._save()
        return self.file

    def _input(
        self, stream: VideoStream, taken: Tensor | None, state: InputState
    ) -> tuple[BlockInput, InputState]:
        if taken is None:
            return self._playback._noise_input(stream, 0), state
        (block,), after = self._playback.encoder.encode(stream.config, taken.permute(0, 2, 3, 1), state)
        self._keep("encode", latents=block.latents.unsqueeze(0))
        return block, after

    def _draws(self, stream: VideoStream, loop: Loop, *, opens: bool) -> None:
        """Of the next block, in the order in which they were published: see `RecordedVideoNoise`."""
        config, block = stream.config, stream.entered
        shape = config.latent_shape(16, stream.block_frames)
        self._draw(stream, block, 0, shape)
        if loop == "plain" or opens:
            self._batch_since = block + 1
        for step in range(len(config.steps) - 1):
            if loop == "plain" or opens:
                self._draw(stream, block, step + 1, shape)
            elif block - step >= self._batch_since:
                self._draw(stream, block - step, step + 1, shape)
            else:
                self._draw(stream, block, len(config.steps) + step, shape)

    def _draw(self, stream: VideoStream, block: int, draw: int, shape: tuple[int, ...]) -> None:
        drawn = stream.noise.draw(block, draw, shape).to(self._playback.recording.dtype)
        self._tensors[f"draw.{self._counts['draw']}"] = drawn.unsqueeze(0) if draw == 0 else drawn
        kind = "encode" if draw == 0 else "renoise"
        self._event("draw", self._counts["draw"], kind=kind, shape=[1, *shape] if draw == 0 else list(shape))
        self._counts["draw"] += 1

    def _calls(self, rows: int) -> None:
        """What has been seen of passes over so many rows."""
        for first in range(0, len(self._seen), rows):
            seen = self._seen[first : first + rows]
            self._facts["calls"].append(self._call(seen))
            latents, times, flow = (torch.cat(x) for x in list(zip(*seen, strict=True))[:3])
            clean = torch.stack(
                [
                    predict_clean(
                        x, f, FlowSchedule((int(t),), self._source.options["shift"], "nearest").levels[0].sigma
                    )
                    for x, f, t in zip(latents, flow, times.flatten().tolist(), strict=True)
                ]
            )
            self._keep("call", x=latents, flow=flow, x0=clean)
        self._seen.clear()

    def _call(self, seen: Sequence[Seen]) -> dict[str, Any]:
        rows = [row for *_, row in seen]
        records = [self._playback.transformer._records(row) for row in rows]
        layers = range(self._playback.transformer.config.layers)
        return {
            "batch": len(rows), "frames": seen[0][0].shape[1],
            "start": [row.placement.positions[0] for row in rows],
            "t": torch.cat([times for _, times, _, _ in seen]).flatten().tolist(),
            "filled": [row.placement.used for row in rows],
            "wrote": [[int(record[layer, SLOT]) for record in records] for layer in layers],
            "queue": [
                [record[layer, ENDS : ENDS + int(record[layer, LENGTH])].tolist() for record in records]
                for layer in layers
            ],
        }  # fmt: skip

    def _keep(self, kind: str, **tensors: Tensor) -> None:
        number = self._counts[kind]
        self._event(kind, number)
        self._tensors |= {f"{kind}.{number}.{name}": x.clone().contiguous() for name, x in tensors.items()}
        self._counts[kind] += 1

    def _event(self, what: str, number: int, /, **more: object) -> None:
        self._facts["events"].append({what: number, **more})

    def _save(self) -> None:
        save_file(self._tensors, self.file)
        self.file.with_suffix(".json").write_text(json.dumps(self._facts))

    def _watch(self, transformer: CausalTransformer) -> None:
        """Have every pass written down instead of compared."""

        def denoise(
            latents: Tensor, modulations: AdaLNModulation, context: AttentionContext, ops: LayerOps = EAGER_OPS
        ) -> Tensor:
            flow = CausalTransformer.denoise(transformer, latents, modulations, context, ops)
            assert isinstance(context, EagerAttention)
            self._seen.append((latents, modulations.timesteps.expand(-1, 1), flow, context.row))
            return flow

        transformer.denoise = denoise  # type: ignore[method-assign]
