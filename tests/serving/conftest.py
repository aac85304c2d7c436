"""What many tests of the server are given."""

from __future__ import annotations

import pytest
import torch

from serving.weights.loader import OpenedModel, open_model


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """The pocket model, loaded once for each file of tests."""
    return open_model("pocket", tmp_path_factory.mktemp("none"), torch.device("cpu"), torch.float32)
