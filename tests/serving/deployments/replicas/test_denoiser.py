"""The denoiser's replica has every method of a denoiser that others call, takes what that takes, and says when to
come again."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from serving.deployments.replicas.denoiser import DenoiserReplica
from serving.deployments.scaling.policy import NOTICED_S
from serving.deployments.scaling.replica_stats import ReplicaStats
from serving.errors import SlotsFull
from serving.worker.denoiser import Denoiser


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: method for name, method in vars(kind).items() if not name.startswith("_") and callable(method)}


DENOISERS = methods(Denoiser)


@pytest.mark.parametrize("name", sorted(methods(DenoiserReplica).keys() & DENOISERS.keys()))
def test_a_replicas_method_takes_what_its_denoisers_does(name: str) -> None:
    taken = (inspect.signature(found[name]).parameters for found in (methods(DenoiserReplica), DENOISERS))
    assert len({tuple(parameters) for parameters in taken}) == 1


class Full:
    """A denoiser that has no place left."""

    async def prepare(self, *_: Any, **__: Any) -> None:
        raise SlotsFull("full")

    fork = prepare


@pytest.mark.parametrize("name", ["prepare", "fork"])
def test_who_finds_no_place_is_told_when_another_replica_may_be_there(name: str) -> None:
    replica: Any = DenoiserReplica.__new__(DenoiserReplica)
    replica._denoiser, replica._stats = Full(), ReplicaStats(20.0)
    replica._stats.report(used=2, slots=2)
    arguments = [None] * len(inspect.signature(getattr(replica, name)).parameters)
    with pytest.raises(SlotsFull) as refused:
        asyncio.run(getattr(replica, name)(*arguments))
    assert refused.value.retry_after_s == NOTICED_S + 20.0
