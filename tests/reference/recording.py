"""Recordings of LongLive, as they lie on disk: see `tests/assets/recordings/README.md` for the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engines.config.geometry import SPATIAL_FACTOR
from engines.config.networks import TextEncoderConfig, TransformerConfig, VAEConfig
from engines.config.stream import StreamConfig
from engines.text.prompt import Prompt


class Recording:
    """One recording: its options and its tensors, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self.options: dict[str, Any] = self.facts["options"]
        self._file = safe_open(path, "pt")
        self._keys = set(self._file.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, without it."""
        return {key.removeprefix(prefix): self[key] for key in self._keys if key.startswith(prefix)}

    @property
    def dtype(self) -> torch.dtype:
        """That of the rollout."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.options["dtype"]]

    def transformer(self) -> TransformerConfig:
        """Sizes of the recorded denoiser, whose weights begin with `model.`."""
        o = self.options
        return TransformerConfig(
            dim=o["dim"], layers=o["layers"], heads=o["heads"], freq_dim=o["freq_dim"],
            ffn_dim=o["ffn_dim"] if "ffn_dim" in o else o["ffn"], text_dim=o["text_dim"], text_len=o["text_len"],
        )  # fmt: skip

    def vae(self) -> VAEConfig:
        """Sizes of the recorded VAE, whose weights begin with `vae.model.`."""
        down = {key.split(".")[4] for key in self._keys if key.startswith("vae.model.encoder.downsamples.")}
        levels = 4
        residual_blocks = (len(down) - (levels - 1)) // levels
        dim = self["vae.model.encoder.conv1.weight"].shape[0]
        firsts = [f"vae.model.encoder.downsamples.{i * (residual_blocks + 1)}" for i in range(levels)]
        a, b, c, d = (self[f"{first}.residual.2.weight"].shape[0] // dim for first in firsts)
        mean, std = (tuple(self[f"vae.{name}"].tolist()) for name in ("mean", "std"))
        return VAEConfig(dim, (a, b, c, d), residual_blocks, mean, std)

    def text_encoder(self) -> TextEncoderConfig:
        """Sizes of the recorded text encoder, whose weights begin with `t5.model.`."""
        vocab, dim = self["t5.model.token_embedding.weight"].shape
        buckets, heads = self["t5.model.blocks.0.pos_embedding.embedding.weight"].shape
        return TextEncoderConfig(
            vocab=vocab, dim=dim, heads=heads, buckets=buckets,
            layers=len({key.split(".")[3] for key in self._keys if key.startswith("t5.model.blocks.")}),
            head_dim=self["t5.model.blocks.0.attn.q.weight"].shape[0] // heads,
            ffn_dim=self["t5.model.blocks.0.ffn.fc1.weight"].shape[0], text_len=self["t5.ids"].shape[1],
        )  # fmt: skip

    def prompt(self, number: int, row: int) -> Prompt:
        """A recorded prompt, for one row of the batch."""
        return Prompt.from_padded(f"recorded prompt {number}", self[f"prompt.{number}"][row])

    def stream(self) -> StreamConfig:
        """How the recorded clip was generated. A window of -1 is the whole clip."""
        o = self.options
        window = o["window"] if o["window"] > 0 else o["blocks"] * o["frames_per_block"]
        steps, shift = self._schedule()
        return StreamConfig(
            height=o["height"] * SPATIAL_FACTOR, width=o["width"] * SPATIAL_FACTOR,
            block_frames=o["frames_per_block"], window_frames=window, sink_frames=o["sink"],
            sink="local" if o["no_global_sink"] else "global", rope="relative" if o["infinite"] else "absolute",
            steps=steps, shift=shift,
        )  # fmt: skip

    def _schedule(self) -> tuple[tuple[int, ...], float]:
        """Denoising steps and flow shift, found back in the table of warped timesteps."""
        table = self["sched.timesteps"]
        steps = tuple(len(table) - int((table - step).abs().argmin()) for step in self.facts["steps"])
        middle = self["sched.sigmas"][len(table) // 2].item()
        return steps, round(middle / (1 - middle), 4)


class RecordedNoise:
    """The noise of one row of a recorded batch."""

    def __init__(self, recording: Recording, row: int) -> None:
        self._recording = recording
        self._row = row
        self._batch = recording.options["batch"]
        self._renoise_per_block = len(recording.facts["steps"]) - 1

    def draw(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        """As engines.sampling.noise.Noise, for the blocks that were recorded."""
        frames = shape[0]
        if draw == 0:
            return self._recording["noise"][self._row, block * frames : (block + 1) * frames]
        renoise = self._recording[f"renoise.{block * self._renoise_per_block + draw - 1}"]
        return renoise.unflatten(0, (self._batch, frames))[self._row]
