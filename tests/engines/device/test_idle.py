from __future__ import annotations

import pytest
import torch

from engines.device.idle import wait_until_idle
from tests.support.fake_cuda import install


def test_only_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch)
    wait_until_idle(torch.device("cpu"))
    assert cuda.synchronized == []
    wait_until_idle(torch.device("cuda:0"))
    assert cuda.synchronized == ["device"]
