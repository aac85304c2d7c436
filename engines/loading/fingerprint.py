"""Telling networks apart by their parameters."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Hash of every parameter's name, shape, dtype and first values.

    Reads the parameters' first values back from their device, once.
    """
    state = network.state_dict()
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
    heads = torch.cat([tensor.flatten()[:64].float() for tensor in state.values()])
    digest.update(heads.cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_hash(network: nn.Module) -> str:
    """Hash of every parameter's name, shape, dtype and values, all of them: what a plan has in it."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
