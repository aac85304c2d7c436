"""The decoder's stream, as far as it can be seen without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engines.device.side_stream import SideStream
from engines.errors import ConfigError


def test_a_device_beside_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ConfigError, match=r"on cuda:1, but cuda:0 is current; call torch.cuda.set_device\(1\)"):
        SideStream(torch.device("cuda:1"))


def test_kernels_of_the_decoders_stream_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, **options: asked.append(options))
    SideStream(torch.device("cuda:0"))
    assert asked == [{"priority": -1}]
