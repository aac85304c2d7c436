"""Recordings of StreamDiffusionV2: what happened in each session of one, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engines.config.video_stream import Loop, VideoStreamConfig
from tests.reference.recording import Recording


class Handover(NamedTuple):
    """Pictures handed over at once, and what came of it.

    `blocks` were begun with them in `loop`, or the stream's first, where `opens`; `outputs` of those that came out
    were decoded. `noise_scale` and `timestep` are recorded for all but openings.
    """

    opens: bool
    prompt: int
    pictures: Tensor | None
    blocks: int
    loop: Loop
    outputs: int
    noise_scale: float | None
    timestep: int
    first_call: int
    draws: list[int]
    encode: int | None


def video_config(recording: Recording) -> VideoStreamConfig:
    """How the recorded streams were set up."""
    o = recording.options
    threshold = o["sink_threshold"]
    frames = o["frames_per_block"]
    return VideoStreamConfig(
        height=o["height"], width=o["width"], block_frames=frames, first_block_frames=max(frames, 2),
        window_frames=o["window"], sink_frames=o["sink"], sink_threshold=threshold if threshold > -1 else None,
        steps=tuple(o["steps"]), shift=o["shift"], noise_scale=o.get("noise_scale") or 1.0,
        refresh_at=o["refresh_at"],
        loop="plain" if o["mode"] == "plain" else "batch",
    )  # fmt: skip


def handovers(recording: Recording) -> Iterator[Handover]:
    """From the recorded events; an event is followed by what it led to."""
    events: list[dict[str, Any]] = recording.facts["events"]
    heads = [number for number, event in enumerate(events) if "start" in event or "run" in event]
    shown, prompt = 0, 0
    for begin, end in zip(heads, [*heads[1:], len(events)], strict=True):
        head, led = events[begin], events[begin + 1 : end]
        prompt = head.get("prompt", prompt)
        taken = head.get("frames") or 0
        encodes = [event["encode"] for event in led if "encode" in event]
        draws = [event["draw"] for event in led if "draw" in event]
        kinds = [event["kind"] for event in led if "draw" in event]
        began = sum(e["shape"][1] for e in led if "draw" in e and e["kind"] != "renoise")
        calls = [event["call"] for event in led if "call" in event]
        assert "renoise" not in kinds[:1], "a block begins with its own draw"
        call = recording.facts["calls"][calls[0]]
        pictures = recording["video"][shown : shown + taken] if encodes else None
        shown += taken if encodes else 0
        yield Handover(
            opens="start" in head,
            prompt=prompt,
            pictures=pictures,
            blocks=1 if "start" in head else began // recording.options["frames_per_block"],
            loop=_loop(recording, call),
            outputs=sum("decode" in event for event in led),
            noise_scale=head.get("noise_scale"),
            timestep=head.get("t", call["t"][0]),
            first_call=calls[0],
            draws=draws,
            encode=encodes[0] if encodes else None,
        )


def sessions(recording: Recording) -> list[list[Handover]]:
    """The handovers of each session."""
    found: list[list[Handover]] = []
    for made in handovers(recording):
        found += [[]] if made.opens else []
        found[-1].append(made)
    return found


def _loop(recording: Recording, call: dict[str, Any]) -> Loop:
    """In a stream batch a pass has a row for each step."""
    if len(recording.options["steps"]) == 1:
        return "plain" if recording.options["mode"] == "plain" else "batch"
    return "plain" if call["batch"] == 1 else "batch"


class RecordedVideoNoise:
    """The draws of one recorded session, by block and draw as the engine asks for them."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._steps = len(recording.options["steps"])
        self._draws: dict[tuple[int, int], Tensor] = {}
        self._next = 0
        self._batch_since = 0

    @classmethod
    def of_session(cls, recording: Recording, session: Sequence[Handover]) -> RecordedVideoNoise:
        """All draws of one session."""
        noise = cls(recording)
        for made in session:
            noise._add(made)
        return noise

    def _add(self, made: Handover) -> None:
        """The draws of what was handed over, in the order in which they were drawn."""
        draws = [self._recording[f"draw.{number}"] for number in made.draws]
        first = draws.pop(0)[0]
        begun = range(self._next, self._next + made.blocks)
        for block, latents in zip(begun, first.chunk(made.blocks), strict=True):
            self._draws[block, 0] = latents
        if made.loop == "plain" or made.opens:
            self._batch_since = begun.stop
        for block in begun:
            for step in range(self._steps - 1):
                drawn = draws.pop(0)
                drawn = drawn[0] if drawn.dim() == 5 else drawn
                if made.loop == "plain" or made.opens:
                    self._draws[block, step + 1] = drawn
                elif block - step >= self._batch_since:
                    self._draws[block - step, step + 1] = drawn
                else:
                    self._draws[block, self._steps + step] = drawn
        self._next = begun.stop

    def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        """As engines.sampling.noise.Noise; zeros for what was never drawn: a block's draws are made together."""
        drawn = self._draws.get((block, draw))
        return torch.zeros(shape) if drawn is None else drawn.reshape(shape)
