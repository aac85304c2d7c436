"""The denoiser's replica has every method of a denoiser that others call, and takes what that takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from serving.deployments.replicas.denoiser import DenoiserReplica
from serving.worker.denoiser import Denoiser


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: method for name, method in vars(kind).items() if not name.startswith("_") and callable(method)}


DENOISERS = methods(Denoiser)


@pytest.mark.parametrize("name", sorted(methods(DenoiserReplica).keys() & DENOISERS.keys()))
def test_a_replicas_method_takes_what_its_denoisers_does(name: str) -> None:
    taken = (inspect.signature(found[name]).parameters for found in (methods(DenoiserReplica), DENOISERS))
    assert len({tuple(parameters) for parameters in taken}) == 1
