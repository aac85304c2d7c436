"""A picture of what rounding costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from serving.media.whole_file import whole_file

SMALL = {"fontsize": 7}


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw the parts that there are."""
    mpl.use("Agg")
    figure, ((blocks, steps), (kinds, layers)) = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    parts = document["parts"]
    if "whole" in parts:
        _draw_blocks(blocks, parts["whole"]["variants"])
    if "steps" in parts:
        _draw_steps(steps, parts["steps"]["variants"])
    for axes, part, title in ((kinds, "kinds", "kind of layer"), (layers, "layers", "block of the transformer")):
        if part in parts:
            _draw_bars(axes, parts[part]["variants"], f"INT8 in one {title} alone: at the last block")
    figure.suptitle(f"{document['model']}: relative error of latents against fp32, median of streams")
    with whole_file(file) as place:
        figure.savefig(place, dpi=100)
    plt.close(figure)


def _draw_blocks(axes: Any, variants: Mapping[str, Any]) -> None:
    for name, found in variants.items():
        errors = found["error_by_block"]
        axes.plot(range(len(errors)), errors, ".-", label=f"{name}: worst {found['worst_psnr_db']:.1f} dB")
    axes.set(title="by block of the stream", xlabel="block; the last two follow another prompt", yscale="log")
    axes.legend(**SMALL)


def _draw_steps(axes: Any, variants: Mapping[str, Any]) -> None:
    for name, errors in variants.items():
        axes.plot(list(errors), list(errors.values()), ".-", label=name)
    axes.set(title="by step, each begun where fp32 is: what it takes for clean", xlabel="timestep", yscale="log")
    axes.legend(**SMALL)


def _draw_bars(axes: Any, variants: Mapping[str, Any], title: str) -> None:
    axes.bar(list(variants), [found["last_block_error"] for found in variants.values()])
    axes.set(title=title)
    axes.tick_params(axis="x", labelsize=7)
