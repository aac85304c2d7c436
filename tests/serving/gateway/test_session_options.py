from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.config.presets import preset
from serving.auth import Caller
from serving.config import ServerConfig
from serving.errors import InvalidRequest, LimitReached, TimelineError
from serving.gateway.session_options import OptionsChecker
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.replication.messages import SessionSpec

USUAL = preset("pocket").stream


def checker(folder: Path, **options: Any) -> OptionsChecker:
    return OptionsChecker(ServerConfig(recordings=folder, **options), preset("pocket"))


def asked(options: OptionsChecker, **fields: Any) -> SessionSpec:
    return options.read("one", pb.SessionOptions(**fields), Caller("ann"))


def test_what_is_not_asked_for_is_as_usual_and_the_seed_is_drawn(tmp_path: Path) -> None:
    options = checker(tmp_path, lease_s=17)
    first, second = asked(options), asked(options)
    assert (first.caller, first.model, first.pace.lease_s) == ("ann", "pocket", 17)
    assert (first.stream.height, first.stream.width) == (USUAL.height, USUAL.width)
    assert first.stream.seed != second.stream.seed
    assert asked(options, seed=7).stream.seed == 7


def test_where_sizes_are_declared_there_are_no_others(tmp_path: Path) -> None:
    options = checker(tmp_path, sizes=((64, 96), (160, 96)))
    found = options.describe()
    assert [(size.height, size.width) for size in found.sizes] == [(96, 160), (64, 96), (160, 96)]
    assert not found.other_sizes
    assert asked(options, height=160, width=96).stream.height == 160
    with pytest.raises(
        InvalidRequest, match="128x208, height by width, are not served here; 96x160, 64x96, 160x96"
    ):
        asked(options, height=128, width=208)


@pytest.mark.parametrize("stage", ["decoder", "denoiser"])
def test_by_plans_there_are_none_but_those_that_are_declared(tmp_path: Path, stage: str) -> None:
    options = checker(tmp_path, device="cpu", **{f"{stage}_engine": "onnx"})
    assert not options.describe().other_sizes
    with pytest.raises(InvalidRequest, match="64x96, height by width, are not served here; 96x160 are"):
        asked(options, height=64, width=96)


def test_where_none_are_declared_every_size_within_the_limit_is_served(tmp_path: Path) -> None:
    options = checker(tmp_path)
    assert options.describe().other_sizes
    assert asked(options, height=128, width=208).stream.width == 208
    with pytest.raises(LimitReached, match="the picture has 1638400 pixels; at most"):
        asked(options, height=1280, width=1280)


@pytest.mark.parametrize("fields", [{"model": "dream"}, {"height": 17}, {"fps": 1000}], ids=str)
def test_what_cannot_be_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequest, TimelineError)):
        asked(checker(tmp_path), **fields)
