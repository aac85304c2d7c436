"""What can be downloaded: the published weights of each model, file by file, and the terms they come under."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serving.errors import DownloadError

SEE_CARD = "see the model card"
"""Where no licence is known beforehand. What the hub declares is recorded when the files are downloaded."""

MODELS_VARIABLE = "LONGTAKE_MODELS"


class Role(StrEnum):
    """What a file is to a model."""

    TRANSFORMER = "transformer"
    LORA = "lora"
    CODEC = "codec"
    TINY_CODEC = "tiny-codec"
    TEXT_ENCODER = "text-encoder"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Repo:
    """A model repository on the hub, `owner/name`, and the licence it is known to declare."""

    id: str
    license: str

    @property
    def name(self) -> str:
        """The id without its owner: the folder of its files within a model's folder."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `path` is relative to its root."""

    repo: Repo
    path: str

    @property
    def local(self) -> str:
        """Where the file lies, relative to the model's folder."""
        return f"{self.repo.name}/{self.path}"


@dataclass(frozen=True)
class Part:
    """The files of one role. An optional part is downloaded only when it is asked for."""

    role: Role
    files: tuple[RemoteFile, ...]
    optional: bool = False


@dataclass(frozen=True)
class CatalogEntry:
    """The published weights of the preset called `model`.

    `entry` names the transformer's state dict, where its file has several.
    """

    model: str
    summary: str
    parts: tuple[Part, ...]
    entry: str | None = None

    @property
    def repos(self) -> tuple[Repo, ...]:
        """Every repository with a part that is not optional, each once."""
        return tuple(dict.fromkeys(file.repo for file in self.files()))

    def files(self, extras: Iterable[Role] = ()) -> tuple[RemoteFile, ...]:
        """The files that the model needs, and those of the optional parts in `extras`."""
        wanted = set(extras)
        unknown = wanted - {part.role for part in self.parts}
        if unknown:
            known = ", ".join(part.role for part in self.parts if part.optional)
            raise DownloadError(f"{self.model} has no part {', '.join(sorted(unknown))!r}; optional ones: {known}")
        return tuple(
            file for part in self.parts if not part.optional or part.role in wanted for file in part.files
        )

    def locate(self, folder: Path, role: Role) -> tuple[Path, ...]:
        """Where the files of a role lie once downloaded into `folder`; empty if the model has no such part."""
        return tuple(folder / file.local for part in self.parts if part.role is role for file in part.files)


WAN = Repo("Wan-AI/Wan2.1-T2V-1.3B", "apache-2.0")
LONGLIVE = Repo("Efficient-Large-Model/LongLive-1.3B", SEE_CARD)
SELF_FORCING = Repo("gdhe17/Self-Forcing", SEE_CARD)
CAUSAL_FORCING = Repo("zhuhz22/Causal-Forcing", "apache-2.0")
ONE_FORCING = Repo("JiaqiFeng/OneForcing", SEE_CARD)
CAUSAL_RCM = Repo("worstcoder/rcm-Wan", "apache-2.0")
STREAM_DIFFUSION = Repo("jerryfeng/StreamDiffusionV2", SEE_CARD)
INFINITE_FORCING = Repo("SOTAMak1r/Infinite-Forcing", "apache-2.0")
# TAEHV's author publishes on GitHub only; LightX2V keeps a copy of the file on the hub.
AUTOENCODERS = Repo("lightx2v/Autoencoders", SEE_CARD)

# Wan's own transformer (5.7 GB) stays out: both distilled models bring every tensor of theirs.
_WAN_PARTS = (
    Part(Role.CODEC, (RemoteFile(WAN, "Wan2.1_VAE.pth"),)),
    Part(Role.TEXT_ENCODER, (RemoteFile(WAN, "models_t5_umt5-xxl-enc-bf16.pth"),)),
    Part(
        Role.TOKENIZER,
        tuple(
            RemoteFile(WAN, f"google/umt5-xxl/{name}")
            for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        ),
    ),
    Part(Role.TINY_CODEC, (RemoteFile(AUTOENCODERS, "taew2_1.pth"),), optional=True),
)


def _over_wan(model: str, summary: str, repo: Repo, path: str, entry: str | None = None) -> CatalogEntry:
    """A transformer in one file, over the VAE and text encoder of Wan."""
    return CatalogEntry(model, summary, (Part(Role.TRANSFORMER, (RemoteFile(repo, path),)), *_WAN_PARTS), entry)


CATALOG = {
    entry.model: entry
    for entry in (
        CatalogEntry(
            "longlive-1.3b",
            "LongLive 1.3B: endless, prompts may change while it runs",
            (
                Part(Role.TRANSFORMER, (RemoteFile(LONGLIVE, "models/longlive_base.pt"),)),
                Part(Role.LORA, (RemoteFile(LONGLIVE, "models/lora.pt"),)),
                *_WAN_PARTS,
            ),
        ),
        _over_wan(
            "self-forcing-1.3b", "Self-Forcing 1.3B", SELF_FORCING, "checkpoints/self_forcing_dmd.pt",
        ),
        _over_wan(
            "causal-forcing-1.3b", "Causal-Forcing 1.3B", CAUSAL_FORCING, "chunkwise/causal_forcing.pt",
            "generator",
        ),
        _over_wan(
            "causal-forcing-framewise-1.3b", "Causal-Forcing 1.3B, frame by frame", CAUSAL_FORCING,
            "framewise/causal_forcing.pt", "generator_ema",
        ),
        _over_wan(
            "causal-forcing-2step-1.3b", "Causal-Forcing++ 1.3B, frame by frame in two steps", CAUSAL_FORCING,
            "causal-forcing++/framewise-2step.pt",
        ),
        _over_wan(
            "causal-forcing-1step-1.3b", "Causal-Forcing++ 1.3B, frame by frame in one step", CAUSAL_FORCING,
            "causal-forcing++/framewise-1step.pt",
        ),
        _over_wan(
            "one-forcing-1.3b", "One-Forcing 1.3B, frame by frame in one step", ONE_FORCING, "one_forcing.pt",
        ),
        _over_wan(
            "causal-rcm-1.3b", "Causal-rCM 1.3B, frame by frame in two steps without a clean pass", CAUSAL_RCM,
            "Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM-init_SF-DMD_c1-1_step2_noisy_ctx.pt",
        ),
        _over_wan(
            "streamdiffusionv2-1.3b", "StreamDiffusionV2 1.3B: restyles videos", STREAM_DIFFUSION,
            "wan_causal_dmd_v2v/model.pt",
        ),
        _over_wan(
            "streamdiffusionv2-14b", "StreamDiffusionV2 14B: restyles videos, with --kernels reference",
            STREAM_DIFFUSION, "wan_causal_dmd_v2v_14b/model.pt",
        ),
        _over_wan(
            "infinite-forcing-1.3b", "Infinite-Forcing 1.3B: endless", INFINITE_FORCING, "ema_model.pt",
        ),
    )
}  # fmt: skip
"""By preset name."""


def catalog_entry(model: str) -> CatalogEntry:
    """The entry of a preset; DownloadError lists those there are."""
    try:
        return CATALOG[model]
    except KeyError:
        raise DownloadError(f"no weights are published for {model!r}; known: {', '.join(CATALOG)}") from None


def models_folder(chosen: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where models are kept, one subfolder each: `chosen`, else $LONGTAKE_MODELS, else below ~/.cache."""
    if chosen is not None:
        return chosen
    # An empty variable would mean the working directory, wherever that is.
    if named := environment.get(MODELS_VARIABLE):
        return Path(named).expanduser()
    return Path.home() / ".cache" / "longtake" / "models"
