"""Waiting for a device: only where something is taken away that its queued work may still use."""

from __future__ import annotations

import torch


def wait_until_idle(device: torch.device) -> None:
    """Return when `device` has done all that any thread has given it; on a CPU that is so already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
